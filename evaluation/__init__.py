"""Held-out responses of several systems, metrics, paired statistics, baselines."""
