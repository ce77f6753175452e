"""A rank that is lost ends a run of two within a minute, and the same command resumes; slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resume.rank_kills import RankKills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("torchrun", "actions"),
    [
        (False, [("stop", 0), ("stop", 1), ("raise", 0), ("memory", 1), ("kill", 0)]),
        (True, [("kill", 1)]),  # by the command itself
    ],
)
def test_a_rank_that_is_lost_ends_the_run_in_a_sentence(tmp_path: Path, torchrun: bool, actions: list) -> None:
    kills = RankKills(tmp_path, ["pretrain", "sft"], torchrun=torchrun)
    for number, (action, rank) in enumerate(actions):
        stage = ("pretrain", "sft")[number % 2]
        assert kills.disturb(number, action, rank, stage, kills.seconds[stage] * (0.5 + 0.05 * number)) == []
        assert kills.rows[-1]["hit"]
