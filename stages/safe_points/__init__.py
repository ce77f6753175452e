"""Where a stage may stop and resume: checkpoints, and asking for a stop."""
