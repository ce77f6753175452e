"""SFT, rankings and the reward stage do the same in two processes as in one: batches, weights, metrics, answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.common.errors import UserError
from models.backbone.launch import check_world_size
from models.backbone.processes import Processes
from tests.stages.several_processes import ALIGNED, CASES, LENGTHS

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def run(folder: Path, launcher: tuple[str, ...]) -> list[dict[str, Any]]:
    """What each process ended in; one that hangs raises TimeoutExpired."""
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, str(ROOT / "tests/stages/several_processes.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Of one process alone, and of both of two."""
    folder = tmp_path_factory.mktemp("processes")
    (alone,), (first, second) = run(folder / "one", ()), run(folder / "two", (*TORCHRUN, "2"))
    assert (alone["world"], first["world"], second["world"]) == (1, 2, 2)
    return alone, first, second


def assert_same_training(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["weights"].keys() == other["weights"].keys()
    for name, weights in one["weights"].items():
        np.testing.assert_allclose(other["weights"][name], weights, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_sft_trains_on_the_same_batches(found, case):
    alone, first, second = (f["sft"][case] for f in found)
    assert first["weights"] == second["weights"]
    assert_same_training(alone, first)
    for one, other in zip(alone["log"], first["log"], strict=True):
        assert one["num_tokens"] == other["num_tokens"]
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert other["mean_token_accuracy"] == pytest.approx(one["mean_token_accuracy"], abs=1e-9)


def test_an_epoch_sees_every_token_once(found):
    """Each conversation is "user : w w assistant : answer <eos>" after <bos>: 8 tokens and the answer's words."""
    alone, first, _ = (f["sft"]["rows"] for f in found)
    whole = alone["log"][-1]["num_tokens"]
    assert whole == first["log"][-1]["num_tokens"]
    per_row = whole / 2 - sum(LENGTHS)
    assert per_row % len(LENGTHS) == 0 and per_row > 0


def test_the_reward_stage_trains_alike_and_counts_pairs_over_pieces_and_processes(found):
    """Whole batches of one process count all pairs in one call; the others must come to the same."""
    whole = found[0]["reward"]["4"]
    for other in (found[0]["reward"]["1"], found[1]["reward"]["1"], found[1]["reward"]["4"]):
        for training in (whole, other):
            training["weights"].pop("reward.head.bias", None)  # differences of scores do not know it: noise by Adam
        assert_same_training(whole, other)
        for key in ("pair_accuracy", "tokens"):
            assert [row[key] for row in other["log"]] == pytest.approx([row[key] for row in whole["log"]], abs=1e-9)
    first, second = (f["reward"]["1"]["weights"] for f in found[1:])
    assert all(second[name] == weights for name, weights in first.items())


def test_rankings_are_the_same_rows(found):
    alone, first, _ = (f["rankings"] for f in found)
    assert len(alone) == 7 and first == alone


@pytest.mark.parametrize("case", ALIGNED)
def test_ppo_samples_and_trains_alike(found, case):
    """Token for token, and weights up to the rounding of sums over processes."""
    alone, first, second = (f["ppo"][case] for f in found)
    assert first["responses"] == second["responses"] == alone["responses"]
    assert len(alone["responses"]) == 2 and all(len(r) == ALIGNED[case]["rollouts"] for r in alone["responses"])
    assert first["weights"] == second["weights"]
    assert_same_training(alone, first)


def test_a_launcher_that_speaks_of_other_processes_is_an_error():
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        with pytest.raises(UserError, match=f"{name}=2: .* 2 processes, but this one works with 1; .*torchrun"):
            check_world_size(1, {name: "2"})
        check_world_size(2, {name: "2"})
    check_world_size(8, {"WORLD_SIZE": "8", "SLURM_STEP_NUM_TASKS": "2"})  # torchrun once a node
    check_world_size(1, {})


def test_shares_are_whole_and_disjoint_for_any_count():
    class Played(Processes):
        def __init__(self, rank: int, world_size: int) -> None:
            self.rank, self.world_size = rank, world_size

    for world_size in (1, 2, 3, 5):
        for count in range(12):
            assert [i for r in range(world_size) for i in Played(r, world_size).share(count)] == list(range(count))
