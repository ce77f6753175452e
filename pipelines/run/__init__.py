"""The pipeline: a recipe in its run folder, what is known ahead, its stages in turn, and finished runs opened again."""
