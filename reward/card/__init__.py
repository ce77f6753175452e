"""What a reward model is worth: its report card, the probes behind it, and the gate before PPO."""
