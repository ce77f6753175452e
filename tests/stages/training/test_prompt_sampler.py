"""Rankings of one prompt stand in one step: packed by hand, in every epoch of a training, resumed as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.records import RankedAnswers
from data.splits import Corpus, Split
from stages import reward_model
from stages.safe_points.checkpoints import Checkpoints
from stages.settings import RewardConfig
from stages.training import ranking_trainer
from stages.training.prompt_sampler import OnePromptAStep, packed
from tests.conftest import make_base
from tests.support.killed import Killed, Stops
from tests.support.ppo import make_context, make_prompt


def test_groups_are_packed_into_steps_by_hand():
    assert packed([[0, 1], [2], [3, 4], [5]], 4) == [0, 1, 2, 5, 3, 4]  # 3 and 4 would be cut, so 5 goes first
    assert packed([[0], [1], [2]], 2) == [0, 1, 2]
    assert packed([[0, 1], [2, 3], [4, 5]], 3) == [0, 1, 2, 3, 4, 5]  # no group is small enough: one must be cut


def test_every_row_once_an_epoch_and_no_prompt_in_two_steps():
    rng = np.random.default_rng(0)
    prompts = [p for p in range(200) for _ in range(rng.integers(1, 5))] + [None] * 100
    order = OnePromptAStep(prompts, 8, seed=3)
    assert order.needed and not OnePromptAStep([1, 2, None, None], 8, seed=3).needed
    epochs = []
    for epoch in range(2):
        order.set_epoch(epoch)
        rows = list(order)
        assert sorted(rows) == list(range(len(prompts))) and list(order) == rows
        steps: dict[int, set[int]] = {}
        for place, row in enumerate(rows):
            if prompts[row] is not None:
                steps.setdefault(prompts[row], set()).add(place // 8)
        cut = sum(len(where) > 1 for where in steps.values())
        assert cut <= 1  # what is left at the very end may not fit
        epochs.append(rows)
    assert epochs[0] != epochs[1]


def seen_steps(folder, monkeypatch, checkpoints=None):
    """The prompts of each step of a training on rankings by two annotators, whose order the run does not know."""
    folder.mkdir()
    ranked = [
        RankedAnswers(prompt=make_prompt(f"w{i % 12}"), answers=("w20 w20", "w3 w4"), ranks=(0, 1)) for i in range(24)
    ]
    context = make_context(make_base(), folder, Corpus(rankings=Split(train=tuple(ranked), held_out=())))
    context = context if checkpoints is None else replace(context, checkpoints=checkpoints)
    context.base.add_role("sft", context.adapter)
    seen, collate = [], ranking_trainer.collate
    monkeypatch.setattr(
        ranking_trainer, "collate", lambda batch, *rest: seen.append([r.prompt for r in batch]) or collate(batch, *rest)
    )
    reward_model.run(context, RewardConfig(epochs=2, batch=6, micro_batch=3, calibration_samples=4))
    monkeypatch.undo()
    return seen


def test_training_sees_both_rankings_of_a_prompt_in_one_step(tmp_path, monkeypatch):
    steps = seen_steps(tmp_path / "a", monkeypatch)
    assert len(steps) == 8 and all(len(step) == 6 for step in steps)
    assert all(step.count(prompt) == 2 for step in steps for prompt in step)
    assert steps[:4] != steps[4:]  # another order in the second epoch


def test_a_training_that_goes_on_sees_the_rest_of_the_same_order(tmp_path, monkeypatch):
    whole = seen_steps(tmp_path / "whole", monkeypatch)

    folder = tmp_path / "checkpoints"
    checkpoints = Stops(folder, "key")
    checkpoints.left = 6
    with pytest.raises(Killed):
        seen_steps(tmp_path / "first", monkeypatch, checkpoints)
    monkeypatch.undo()
    rest = seen_steps(tmp_path / "second", monkeypatch, Checkpoints(folder, "key"))
    assert rest[-2:] == whole[-2:]
