"""Settings by which a stage would run to its end and learn nothing: its result would be what it began with.

What no setting alone can say of itself (a scalar head may learn where its trunk does not) stands here.
"""

from __future__ import annotations

from pipelines.recipe.errors import Problem
from pipelines.recipe.schema import Recipe


def nothing_learnt(recipe: Recipe) -> list[Problem]:
    """Each of the recipe's stages that would train at a rate of 0."""
    found: list[Problem] = []
    for stage in ("sft", "distil", "ppo"):
        if stage in recipe.stages and getattr(recipe, stage).learning_rate == 0:
            what = "the policy would stay" if stage == "ppo" else "its result would be"
            found.append(((stage, "learning_rate"), f"at 0 nothing is learnt: {what} what it begins with. {MEND}"))
    reward = recipe.reward
    if "reward" in recipe.stages and reward.learning_rate == 0 and not reward.head_learning_rate:
        why = "at 0 nothing is learnt, not even by the head, whose rate (reward.head_learning_rate) is 0 as well"
        found.append((("reward", "learning_rate"), f"{why}. {MEND}"))
    return found


MEND = "Leave it out for the rate that follows from the base, or give one above 0"
