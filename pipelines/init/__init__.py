"""A first recipe from a base and data files: what files are taken for, what a machine holds, the text."""
