"""Ranking losses, the reward model, composed rewards."""

from trivet_names import refuse_clashes

refuse_clashes("reward", ("data", "models"))
