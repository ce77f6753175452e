"""What SFT and the reward stage share around Transformers' trainer."""
