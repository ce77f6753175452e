"""Seconds of a stage from counts and rates, by hand; and the counts against what a run computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.fast import hidden_states
from pipelines.run.pipeline import Pipeline
from pipelines.stages import efforts
from pipelines.stages.duration import (
    FULL,
    LOADING,
    MODULES,
    TRAINER,
    Effort,
    How,
    Line,
    Passes,
    Rates,
    Sampled,
    attention_share,
    layer_size,
    lengthened,
    line_through,
    pass_seconds,
    rates_of_another,
    sampling_seconds,
    seconds,
)
from pipelines.stages.shapes import Shape
from pipelines.stages.table import STAGES
from tests.conftest import tiny_lm
from tests.support.memory_peak import make_data, make_folder, recipe_of

SHAPE = Shape(parameters=0, linear=0, adapter=0, layers=3, trained_layers=2, width=4, inner=10, heads=2, key_heads=1,
              head_size=2, vocabulary=9)  # fmt: skip
RATES = Rates(
    train=Line(start=2.0, each=0.5),
    branches=Line(each=1.0),
    read=Line(start=1.0, each=0.25),
    step=Line(start=0.5, each=0.125),
    loss=Line(each=0.25),
    logprobs=Line(each=0.125),
    choice=Line(start=0.25, each=0.5),
    adam=1e-3,
    pretraining=Line(start=1.0, each=0.01),
)


def test_a_line_goes_through_two_points_and_is_never_negative() -> None:
    assert line_through((10, 3.0), (30, 5.0)) == Line(start=2.0, each=0.1)
    assert line_through((10, 3.0), (30, 5.0))(20) == pytest.approx(4.0)
    assert line_through((10, 6.0), (30, 5.0)) == Line(start=5.0, each=0.0)  # noise: the second point counts
    steep = line_through((10, 1.0), (30, 9.0))
    assert steep.start == pytest.approx(0.0) and steep(30) == pytest.approx(9.0)
    assert Line(start=2.0)(0) == 0.0  # nothing takes no time
    assert Line(start=2.0, each=4.0).times(0.5) == Line(start=1.0, each=2.0)


def test_the_size_of_a_layer_is_that_of_its_matrices() -> None:
    lm = tiny_lm("llama")
    config, block = lm.config, lm.model.layers[0]
    shape = Shape(parameters=0, linear=0, adapter=0, layers=2, trained_layers=2, width=config.hidden_size,
                  inner=config.intermediate_size, heads=config.num_attention_heads,
                  key_heads=config.num_key_value_heads, head_size=config.head_dim, vocabulary=9)  # fmt: skip
    assert layer_size(shape) == sum(p.numel() for p in block.parameters() if p.ndim == 2)
    attention = block.self_attn
    qkv = sum(m.weight.numel() for m in (attention.q_proj, attention.k_proj, attention.v_proj))
    assert attention_share(shape) == pytest.approx(qkv / layer_size(shape))


def test_longer_rows_cost_what_attention_adds() -> None:
    """A token: 2 x 168 operations of products; 4 of L / 2 keys and queries 4 wide: 8 L."""
    assert layer_size(SHAPE) == 4 * (4 + 2 * 2) + 4 * 4 + 3 * 4 * 10 == 168
    assert lengthened(Line(each=1.0), SHAPE, 16, 16) == Line(each=1.0)
    assert lengthened(Line(each=1.0), SHAPE, 16, 58).each == pytest.approx((336 + 8 * 58) / (336 + 8 * 16))


def test_a_pass_by_hand() -> None:
    """168 numbers a layer, 32 of them for q, k, v: with half of its tokens read a layer costs 32/168 + 136/168 / 2."""
    last = 32 / 168 + 136 / 168 / 2
    one = Passes(kind="train", count=1, rows=2, tokens=10, read=5)
    train, read = 2.0 + 10 * 0.5, 1.0 + 10 * 0.25
    assert pass_seconds(one, SHAPE, RATES, How()) == pytest.approx(train * (1 + last) + read + 5 * 0.25)
    again = pass_seconds(one, SHAPE, RATES, How(checkpointing=True))
    assert again == pytest.approx((train + read) * (1 + last) + read + 5 * 0.25)
    known = Passes(kind="train", count=1, rows=2, tokens=10, read=5, known=True, logits=False)
    assert pass_seconds(known, SHAPE, RATES, How()) == pytest.approx(train * (1 + last))
    reading = Passes(kind="read", count=1, rows=2, tokens=10, read=10)
    assert pass_seconds(reading, SHAPE, RATES, How()) == pytest.approx(read * 3 + 10 * 0.125)
    assert pass_seconds(reading, SHAPE, RATES, How(checkpointing=True)) == pytest.approx(read * 3 + 10 * 0.125)


def test_sampling_by_hand() -> None:
    """4 rows of 5 tokens in the mean, the longest of 8: each of 8 steps starts, and 20 tokens are made."""
    one = Sampled(calls=1, rows=4, prompt=3, prompts=12, mean=5, longest=8)
    prompts = 3 * (1.0 + 12 * 0.25)
    assert sampling_seconds(one, SHAPE, RATES) == pytest.approx(prompts + 8 * (3 * 0.5 + 0.25) + 20 * (3 * 0.125 + 0.5))


def test_a_stage_is_the_sum_of_what_it_does() -> None:
    passes = Passes(kind="read", count=6, rows=2, tokens=10, read=10)
    made = Sampled(calls=2, rows=4, prompt=3, prompts=12, mean=5, longest=8)
    each = pass_seconds(passes, SHAPE, RATES, How()), sampling_seconds(made, SHAPE, RATES)
    effort = Effort(passes=(passes,), sampled=(made,), steps=7, trained=100, trainer=True)
    work, steps = 6 * each[0] + 2 * each[1], 7 * (100 * 1e-3 + TRAINER)
    assert seconds(effort, SHAPE, RATES, How()) == pytest.approx(LOADING + work + steps)
    assert seconds(effort, SHAPE, RATES, How(fast=False)) == pytest.approx(LOADING + MODULES * work + steps)
    full = Effort(passes=(passes,), full=True)
    assert seconds(full, SHAPE, RATES, How(fast=False)) == pytest.approx(LOADING + MODULES * FULL * 6 * each[0])
    scratch = Effort(steps=5, pretraining=(5, 200), rest=7.0)
    assert seconds(scratch, SHAPE, RATES, How()) == pytest.approx(LOADING + 7.0 + 5 * (1.0 + 200 * 0.01))


def test_what_another_base_computes_is_counted_by_its_size() -> None:
    """Its layer has 2 x 168 numbers, as it is as wide and its inner width 24 adds 14 x 12; its vocabulary is twice as
    large. Of a copy that is trained whole, the factor is the stage's own, not the other base's."""
    other = replace(SHAPE, layers=5, inner=24, vocabulary=18)
    assert layer_size(other) == 168 * 2
    its = rates_of_another(RATES, SHAPE, other)
    assert its.read == Line(start=2.0, each=0.5) and its.step == Line(start=1.0, each=0.25)
    assert its.logprobs == Line(each=0.25) and its.choice == Line(start=0.5, each=1.0)
    own, one = (
        Passes(kind="train", count=2, rows=2, tokens=10, read=10),
        Sampled(calls=3, rows=4, prompt=3, prompts=12, mean=5, longest=8, by=other),
    )
    expected = 2 * pass_seconds(own, SHAPE, RATES, How()) * FULL + 3 * sampling_seconds(one, other, its)
    effort = Effort(passes=(own,), sampled=(one,), full=True)
    assert seconds(effort, SHAPE, RATES, How()) == pytest.approx(LOADING + expected)
    assert sampling_seconds(one, other, its) > 2 * sampling_seconds(one, SHAPE, RATES)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, dict[tuple[str, str], float]]:
    """A small run, and the tokens that went through its passes: by stage, with gradients or without."""
    folder = tmp_path_factory.mktemp("counted")
    data = make_data(folder / "data", rows=12, prompt=9, answer=14)
    recipe = recipe_of(
        make_folder(folder / "base", 64, num_hidden_layers=2),
        data,
        sft={"batch": 6, "micro_batch": 3, "epochs": 2},
        reward={"batch": 4, "micro_batch": 2},
        ppo={"updates": 2, "rollouts": 8, "micro_batch": 4, "max_new_tokens": 10},
        rankings=None,
        stages=["sft", "reward", "ppo", "evaluate"],
        evaluation={"prompts": 4, "batch": 4, "bootstrap": 40},
    )
    recipe["data"]["held_out"] = 0.25
    made = Pipeline.from_recipe({k: v for k, v in recipe.items() if v is not None}, run_dir=folder / "run")
    tokens: Counter[tuple[str, str]] = Counter()
    true = hidden_states.states
    with pytest.MonkeyPatch.context() as patched:
        for stage in made.recipe.stages:

            def states(decoder: Any, ids: torch.Tensor, *rest: Any, stage: str = stage, **more: Any) -> torch.Tensor:
                kind = (
                    "train" if torch.is_grad_enabled() and any(p.requires_grad for p in decoder.trainable()) else "read"
                )
                tokens[stage, kind] += len(ids)
                return true(decoder, ids, *rest, **more)

            patched.setattr(hidden_states, "states", states)
            made.run(only=[stage])
    return made, dict(tokens)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "evaluate"])
def test_the_tokens_that_are_counted_go_through_the_passes(
    counted: tuple[Pipeline, dict[tuple[str, str], float]], stage: str
) -> None:
    made, tokens = counted
    effort_of = STAGES[stage].effort
    assert effort_of is not None
    effort = effort_of(made.details.estimator)
    trained = sum(one.count * one.tokens for one in effort.passes if one.kind != "read")
    assert trained == pytest.approx(tokens.get((stage, "train"), 0), rel=0.1)
    read = sum(one.count * one.tokens for one in effort.passes if one.kind == "read")
    assert read == pytest.approx(tokens.get((stage, "read"), 0), rel=0.1 if stage == "evaluate" else 0.35, abs=20)


def test_rows_are_padded_to_the_longest_of_them() -> None:
    """Of two rows picked from lengths 2 and 6 the longer is 2 once in four times."""
    assert efforts.longest_of([6.0, 2.0], 2) == pytest.approx(0.25 * 2 + 0.75 * 6)
    assert efforts.longest_of([6.0, 2.0], 1) == pytest.approx(4.0)
    assert efforts.longest_of([5.0] * 7, 24) == pytest.approx(5.0)
    assert efforts.longest_of([], 3) == 0.0


def test_responses_are_as_long_as_the_demonstrations(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", rows=12, prompt=9, answer=14)
    base = make_folder(tmp_path / "base", 64)
    with_sft = Pipeline.from_recipe(recipe_of(base, data)).details.estimator
    assert efforts.response(with_sft, 40) == (15.0, 15.0)  # the stop token among them
    assert efforts.response(with_sft, 10) == (10.0, 10.0)
    (asked,) = efforts.ppo(with_sft).sampled
    assert (asked.rows, asked.calls, asked.mean, asked.longest) == (16.0, 1.0, 15.0, 15.0)


def test_default_systems_that_a_run_lacks_are_not_counted(tmp_path: Path) -> None:
    """Without SFT and reward model evaluation has the base and PPO, whatever counts its systems."""
    data = {"prompts": make_data(tmp_path / "data", rows=12, prompt=9, answer=14)["prompts"]}
    recipe = recipe_of(
        make_folder(tmp_path / "base", 64),
        data,
        stages=["ppo", "evaluate"],
        ppo={"reward": [{"source": "length", "max_length": 5}], "value": {"init": "sft"}},
        evaluation={"prompts": 3},
    )
    recipe["data"]["held_out"] = 0.25
    made = Pipeline.from_recipe({k: v for k, v in recipe.items() if k not in ("sft", "reward")})
    stage, e = STAGES["evaluate"], made.details.estimator
    assert stage.effort is not None
    assert stage.steps(made.recipe, made.corpus) == 2 * 2  # sampled and greedy
    assert stage.estimate(e).tokens == 3 * 2 * 2 * 64
    assert len(stage.effort(e).sampled) == 2
