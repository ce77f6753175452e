"""A rank that is stopped or raises ends a run of two within a minute, and the same command resumes; slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resume.rank_kills import RankKills


@pytest.mark.slow
def test_a_rank_that_is_lost_ends_the_run_in_a_sentence(tmp_path: Path) -> None:
    kills = RankKills(tmp_path, ["pretrain", "sft"])
    for number, (action, rank) in enumerate([("stop", 0), ("stop", 1), ("raise", 0), ("memory", 1), ("kill", 0)]):
        assert kills.disturb(number, action, rank, kills.seconds * (0.5 + 0.05 * number)) == []
