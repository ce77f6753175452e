"""The embedded task: requests, answers and pretraining text, written procedurally, with a known gold preference."""
