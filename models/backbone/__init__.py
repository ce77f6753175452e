"""A causal LM and the ground under it: forward passes, log-probabilities, processes, seeds, artifacts."""
