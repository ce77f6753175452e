"""What lies on disk: run folders, keys, the store; looking after them."""
