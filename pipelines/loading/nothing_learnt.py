"""Settings by which a stage would run to its end and learn nothing: its result would be what it began with.

What no setting alone can say of itself (a scalar head may learn where its trunk does not) stands here.
"""

from __future__ import annotations

from pipelines.recipe.errors import Problem
from pipelines.recipe.schema import Recipe


def nothing_learnt(recipe: Recipe) -> list[Problem]:
    """Each of the recipe's stages that would train at a rate of 0."""
    found: list[Problem] = []
    for stage in recipe.stages:
        settings = getattr(recipe, stage, None)
        if getattr(settings, "learning_rate", None) != 0 or getattr(settings, "head_learning_rate", None):
            continue
        has_head = hasattr(settings, "head_learning_rate")
        also = f", not even by the head, whose rate ({stage}.head_learning_rate) is 0 as well" if has_head else ""
        found.append(((stage, "learning_rate"), f"at 0 nothing is learnt{also}: {FIX}"))
    return found


FIX = "leave it out for the rate that follows from the base, or give one above 0"
