"""PPO against the reward, as a stage."""
