"""Evaluation says how many answers of systems it makes, so that progress has a total and a time left."""

from __future__ import annotations

from data.splits import Corpus
from pipelines.recipe.schema import Recipe
from pipelines.stages.table import STAGES


def steps(**evaluation: object) -> int | None:
    stages = ["sft", "reward", "ppo", "evaluate"]
    given = {"base": "b", "data": {"demonstrations": ["d.jsonl"]}, "evaluation": evaluation, "stages": stages}
    return STAGES["evaluate"].steps(Recipe.model_validate(given), Corpus())


def test_each_system_is_a_step_and_greedy_another_but_for_best_of_n() -> None:
    systems = ["base", "sft", "best_of_4", "ppo", "sft"]
    assert steps(systems=systems, greedy=True) == 4 + 3
    assert steps(systems=systems, greedy=False) == 4
