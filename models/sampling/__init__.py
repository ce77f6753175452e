"""Sampling from a role: token ids in, token ids and finish flags out."""
