"""``trivet ui``: pages on loopback from which everything is started that the command line can do."""
