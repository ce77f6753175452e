"""Held-out answers of several systems, metrics, paired statistics, baselines."""
