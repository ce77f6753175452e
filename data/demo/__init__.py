"""The embedded task: requests, responses and pretraining text, written procedurally, with a known gold preference."""
