"""A recipe: YAML to frozen, typed settings, every mistake named by its place."""
