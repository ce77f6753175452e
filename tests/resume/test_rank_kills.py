"""A rank that is lost ends a run of two within a minute, and the same command resumes; slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resume.rank_kills import SETTINGS, RankKills


def lose(kills: RankKills, action: str, rank: int, stage: str, share: float) -> None:
    """Take a rank out at a share of a stage's time; earlier where the machine was faster and the run over before."""
    for _ in range(4):
        assert kills.disturb(len(kills.rows), action, rank, stage, kills.seconds[stage] * share) == []
        if kills.rows[-1]["hit"]:
            return
    raise AssertionError(f"{stage} is over too soon: {kills.rows}")


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
        lose(kills, action, rank, ("pretrain", "sft")[number % 2], 0.5 + 0.05 * number)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["{rank: 4, alpha: 8}", "{method: full}"])
def test_a_rank_that_is_lost_while_the_base_is_in_parts_costs_nothing(tmp_path: Path, method: str) -> None:
    """Passes wait for each other in every layer; the run resumes to the bytes of one that nobody disturbed."""
    settings = (*SETTINGS, "runtime.sharding=fsdp2", f"adapter={method}")
    kills = RankKills(tmp_path, ["pretrain", "sft"], settings)
    for number, (action, rank) in enumerate([("kill", 1), ("stop", 0)]):
        lose(kills, action, rank, "sft", 0.4 + 0.2 * number)
        assert kills.rows[-1]["stage"] == "sft"
