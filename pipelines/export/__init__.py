"""A stage of a run as what other tools open: a folder, a GGUF file or a repository of the hub, with a card."""
