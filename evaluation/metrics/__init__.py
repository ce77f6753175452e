"""Metrics of responses, and policies compared by them."""
