"""Cleaning of texts and rows: what is changed, masked and dropped, each counted."""
