"""What the report card asks of the model: each row once, no more of them than training is worth, and with progress."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import reward.model
from data.records import RankedAnswers
from data.splits import Split
from reward.card.examine import EXAMINED_MAX, EXAMINED_MIN, PROBED, examined
from reward.card.probes import PROBES
from reward.card.scored_once import ScoredOnce
from stages import reward_model
from stages.settings import RewardConfig
from tests.support.ppo import Silent, make_prompt
from tests.support.training import reward_context

FEW = RewardConfig(epochs=1, learning_rate=1e-2, batch=6, micro_batch=6, calibration_samples=4)


class Phases(Silent):
    """Every phase of a stage: its name, its total, and how much was told of it."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []

    def phase(self, name: str, total: int):
        row: list[Any] = [name, total, 0]
        self.seen.append(row)

        def told(count: int) -> None:
            row[2] += count

        return told


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Role, query and response of every row that a reward model computes."""
    rows: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    plain = reward.model.score_rows

    def watched(base, role, queries, responses, *rest):
        rows.extend((role, tuple(q), tuple(r)) for q, r in zip(queries, responses, strict=True))
        return plain(base, role, queries, responses, *rest)

    monkeypatch.setattr(reward.model, "score_rows", watched)
    return rows


def context_with(folder: Path, held_out: int):
    """Few training rankings, and so many held-out ones, all with different prompts and answers."""
    context = reward_context(folder)
    given = context.corpus.rankings
    rows = [
        RankedAnswers(
            prompt=make_prompt(" ".join(f"w{10 + (i // 7**p) % 7}" for p in range(4))),
            answers=(f"w5 w6 w{30 + i % 10} w8 w9", f"w7 w{30 + i % 7}"),
            ranks=(0, 1),
        )
        for i in range(held_out)
    ]
    bar, said = Phases(), list[str]()
    corpus = replace(context.corpus, rankings=Split(train=given.train, held_out=tuple(rows)))
    return replace(context, corpus=corpus, bar=bar, say=said.append), bar, said


@pytest.mark.parametrize("members", [1, 2])
def test_each_row_is_scored_once_and_their_number_is_bounded_by_training(tmp_path, scored, members) -> None:
    held_out = 300
    context, bar, said = context_with(tmp_path, held_out)
    trained = len(context.corpus.rankings.train)
    assert trained < EXAMINED_MIN < held_out
    config = FEW.model_copy(update={"ensemble": members})
    metrics = reward_model.run(context, config).metrics
    assert len(scored) == len(set(scored))
    passes = Counter(role for role, _, _ in scored)
    most = EXAMINED_MIN * (2 + len(PROBES)) + config.calibration_samples + 1
    assert len(passes) == members and max(passes.values()) <= most < held_out * 2

    card = json.loads((tmp_path / "report_card.json").read_text())
    assert card["held_out"] == {"examined": EXAMINED_MIN, "of": held_out}
    assert card["rankings"] == metrics["held_out_examined"] == metrics["pairs"] == EXAMINED_MIN
    assert metrics["held_out_rankings"] == held_out
    assert any(f"examined {EXAMINED_MIN} of {held_out} held-out rankings" in line for line in said)

    names = [name for name, _, _ in bar.seen]
    assert {"held-out rankings", "damaged responses"} <= set(names)
    assert all(total == told for _, total, told in bar.seen)
    others = ("SFT samples, whose mean score becomes 0", "held-out rows")  # the second: held-out loss while it trains
    assert sum(told for name, _, told in bar.seen if name not in others) == (len(scored) - members)


def test_a_card_on_all_held_out_rankings_says_so(tmp_path) -> None:
    context, _, said = context_with(tmp_path, 40)
    reward_model.run(context, FEW)
    card = json.loads((tmp_path / "report_card.json").read_text())
    assert card["held_out"] == {"examined": 40, "of": 40} and not any("examined" in line for line in said)


def test_rankings_are_examined_in_proportion_to_training_and_evenly_spaced() -> None:
    rows = list(range(10_000))
    assert examined(rows[:50], 3) == rows[:50]
    assert examined(rows, 3) == [i * 10_000 // EXAMINED_MIN for i in range(EXAMINED_MIN)]
    assert len(examined(rows, 1000)) == 1000 and len(examined(rows, 60_000)) == len(examined(rows)) == EXAMINED_MAX
    some = examined(rows, 1000)
    assert some[0] == 0 and some[-1] == 9990 and len(set(some)) == 1000
    assert PROBED * len(PROBES) <= EXAMINED_MAX


def test_a_known_row_has_the_score_that_it_had(tmp_path, scored) -> None:
    """Equal rows of one request and rows of an earlier one are not computed again."""
    context = reward_context(tmp_path)
    base = context.base
    base.add_role("reward", context.adapter, head=True, seed=1)
    model = reward.model.RewardModel(base=base, role="reward", renderer=context.renderer, score_mean=0.5)
    once = ScoredOnce(model=model)
    queries, answers = [[5, 6], [5, 6], [7]], [[20, 2], [20, 2], [21, 2]]
    first = once.score_ids(queries, answers, "rows")
    assert len(scored) == 2 and torch.equal(first[0], first[1])
    again = once.score_ids([[7], [8]], [[21, 2], [22, 2]], "rows")
    assert len(scored) == 3 and torch.equal(again[0], first[2])
    assert torch.allclose(again, model.score_ids([[7], [8]], [[21, 2], [22, 2]]), atol=1e-6)
    assert once.score_ids([], [], "rows").shape == (0,)
