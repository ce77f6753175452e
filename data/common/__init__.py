"""What every room uses and nothing of which is about data: errors, settings, statistics, files, user functions."""
