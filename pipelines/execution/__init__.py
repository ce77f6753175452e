"""What a running stage is given: models in memory, its request, progress, trackers."""
