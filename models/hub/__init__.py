"""Base models by name: the catalogue, downloads, checks of foreign files, loading."""
