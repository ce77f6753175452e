"""Stages of the pipeline: pretrain, SFT, rankings, reward model, PPO. Each is a config and a function."""

from trivet_names import refuse_clashes

refuse_clashes("stages", ("data", "models", "reward"))
