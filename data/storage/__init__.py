"""Records on disk: how they are written and read back, sequences over them, and where they lie."""
