"""From YAML to a checked recipe: read, fill in defaults, check, once and in order."""
