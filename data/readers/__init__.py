"""Files to raw rows, one small module a kind of container; ``files.read_file`` chooses. Knows nothing of records."""
