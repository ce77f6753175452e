"""What people bring: records, sources, checks, templates, batching, user functions, and the demo task."""
