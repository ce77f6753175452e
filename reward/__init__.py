"""Ranking losses, the reward model, composed rewards."""
