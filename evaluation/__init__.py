"""Held-out responses of several systems, metrics, paired statistics, baselines."""

from trivet_names import refuse_clashes

refuse_clashes("evaluation", ("data", "models", "reward", "stages"))
