"""Judges of pairs of responses, and what a judge must not fall for."""
