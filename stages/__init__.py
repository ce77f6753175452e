"""Stages of the pipeline: pretrain, SFT, rankings, reward model, PPO. Each is a config and a function."""
