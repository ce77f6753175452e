"""The evaluate stage: policies on held-out prompts."""
