"""Settings by which a stage would run for hours and end with what it began with are refused when a recipe is read."""

from __future__ import annotations

from typing import Any

import pytest

from data.common.errors import UserError
from pipelines.loading.load import load_recipe

DATA = {"demonstrations": "demo-task?rows=60", "rankings": "demo-task?rows=60", "prompts": "demo-task?rows=80"}


def loaded(**settings: Any) -> Any:
    return load_recipe({"base": "gpt2", "data": DATA} | settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sft": {"learning_rate": 0}}, r"sft\.learning_rate: at 0 nothing is learnt: leave it out"),
        ({"distil": {"teacher": "gpt2", "learning_rate": 0.0}}, r"distil\.learning_rate: at 0 nothing is learnt"),
        ({"reward": {"learning_rate": 0}}, r"reward\.learning_rate: at 0 nothing is learnt, not even by the head"),
        (
            {"reward": {"learning_rate": 0, "head_learning_rate": 0}},
            r"reward\.learning_rate: at 0 nothing is learnt, not",
        ),
        ({"ppo": {"learning_rate": 0}}, r"ppo\.learning_rate: at 0 nothing is learnt: leave it out"),
        ({"ppo": {"learning_rate": 0, "value_learning_rate": 1e-4}}, r"ppo\.learning_rate: at 0 nothing is learnt"),
        ({"ppo": {"adam_epsilon": 1e30}}, r"ppo\.adam_epsilon: must be at most 1"),
        ({"adapter": {"targets": ""}}, r"adapter\.targets: names nothing that an adapter could stand on"),
    ],
)
def test_a_stage_that_would_learn_nothing_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        loaded(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"reward": {"learning_rate": 0, "head_learning_rate": 1e-3}},  # a linear probe
        {"reward": {"head_learning_rate": 0}},
        {"ppo": {"value_learning_rate": 0}},
        {"stages": ["sft"], "ppo": {"learning_rate": 0}},  # it waits
    ],
)
def test_a_rate_of_0_beside_which_something_is_learnt_is_taken(settings: dict[str, Any]) -> None:
    assert loaded(**settings).sft.learning_rate > 0
