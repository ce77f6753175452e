"""All stages do the same in two and in three processes as in one: batches, weights, metrics, answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.backbone.processes import Processes
from tests.stages.several_processes import ALIGNED, CASES, LENGTHS, SHORT_OF_MEMORY, everything
from tests.support.launching import assert_same_training, launched


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process ends in."""
    found = json.loads(json.dumps(everything(tmp_path_factory.mktemp("alone"))))
    assert found["world"] == 1
    return found


@pytest.fixture(scope="module", params=[2, 3])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two and of three processes ends in."""
    script = Path(__file__).parent / "several_processes.py"
    found = launched(script, tmp_path_factory.mktemp("processes") / "run", request.param)
    assert [f["world"] for f in found] == [request.param] * request.param
    return found


def test_a_base_from_scratch_is_trained_alike(alone, several):
    assert_same_training(alone["pretrain"], [f["pretrain"] for f in several])


def test_an_encoder_is_trained_alike(alone, several):
    assert_same_training(alone["encoder"], [f["encoder"] for f in several])


def test_a_base_is_trained_further_alike(alone, several):
    """The main process alone writes the base; the losses before and after are every process's."""
    written = several[0]["continued"]
    assert all(not f["continued"]["weights"] for f in several[1:])
    assert_same_training(alone["continued"], [written])
    for found in several:
        assert found["continued"]["losses"] == pytest.approx(alone["continued"]["losses"], rel=1e-5)


def test_a_student_is_taught_alike(alone, several):
    assert_same_training(alone["distil"], [f["distil"] for f in several])
    assert all(f["distil"]["agreement"] == alone["distil"]["agreement"] for f in several)


@pytest.mark.parametrize("case", CASES)
def test_sft_trains_on_the_same_batches(alone, several, case):
    assert_same_training(alone["sft"][case], [f["sft"][case] for f in several])


@pytest.mark.parametrize("case", SHORT_OF_MEMORY)
def test_a_process_short_of_memory_takes_its_part_of_a_step_in_smaller_ones(alone, several, case):
    name = f"{case}, short of memory"
    assert_same_training(alone["sft"][name], [f["sft"][name] for f in several])


def test_the_same_micro_batches_give_the_same_bits(alone, several):
    """11 rows by 6, and then 5: twos, and one left, in one process, in two and in three. The weights are one base's."""
    case = "the same micro-batches"
    ppo = (case, f"{case} by tokens", "with a pretraining loss")
    for stage, name in (("sft", case), ("reward", "1 of 4"), *(("ppo", name) for name in ppo)):
        assert_same_training(alone[stage][name], [f[stage][name] for f in several], weights=0.0, metrics=0.0)


def test_an_epoch_sees_every_token_once(alone, several):
    """Each conversation is "user : w w assistant : answer <eos>" after <bos>: 8 tokens and the answer's words."""
    whole = alone["sft"]["rows"]["log"][-1]["num_tokens"]
    assert whole == several[0]["sft"]["rows"]["log"][-1]["num_tokens"]
    per_row = whole / 2 - sum(LENGTHS)
    assert per_row % len(LENGTHS) == 0 and per_row > 0


@pytest.mark.parametrize("case", ["1 of 4", "4 of 4"])
def test_the_reward_stage_trains_alike(alone, several, case):
    metrics = 3e-6 if case == "4 of 4" else 0.0  # cut smaller by several, so that none is idle
    assert_same_training(alone["reward"][case], [f["reward"][case] for f in several], metrics=metrics)
    assert alone["reward"][case]["weights"]["reward.head.bias"] == [0.0]  # no difference of scores knows it


def test_masks_of_dropout_keep_processes_together(alone, several):
    """Masks are each process's own, so weights are others; rows, their order and the sums of gradients are not."""
    assert all(f["masked"]["weights"] == several[0]["masked"]["weights"] for f in several)
    assert several[0]["masked"]["weights"] != alone["masked"]["weights"]
    for key in ("num_tokens", "learning_rate"):
        assert [row[key] for row in several[0]["masked"]["log"]] == [row[key] for row in alone["masked"]["log"]]


def test_pairs_are_counted_over_micro_batches(alone):
    """Whole batches count all pairs in one call; single rankings must come to the same."""
    for key in ("pair_accuracy", "tokens"):
        whole, single = ([row[key] for row in alone["reward"][case]["log"]] for case in ("4 of 4", "1 of 4"))
        assert single == pytest.approx(whole, abs=1e-9)


def test_rankings_are_the_same_rows(alone, several):
    assert len(alone["rankings"]) == 7 and several[0]["rankings"] == alone["rankings"]


@pytest.mark.parametrize("case", ALIGNED)
def test_ppo_samples_and_trains_alike(alone, several, case):
    """Token for token, with a process that has no row as well, and weights up to the rounding of sums."""
    one, others = alone["ppo"][case], [f["ppo"][case] for f in several]
    assert all(other["responses"] == one["responses"] for other in others)
    assert len(one["responses"]) == 2 and all(len(r) == ALIGNED[case]["rollouts"] for r in one["responses"])
    # of a random policy, whose KL, a small difference of log-probabilities, shows the rounding of these
    assert_same_training(one, others, metrics=0.0 if "micro-batches" in case else 2e-5)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_base_in_bf16_is_trained_alike(alone, several, stage):
    """Of micro-batches that one process cuts otherwise: bf16 rounds their products by up to 1 in 256."""
    one, other = alone["bf16"][stage], several[0]["bf16"][stage]
    assert len(one["losses"]) > 1 and other["losses"] == pytest.approx(one["losses"], abs=1e-3)
    assert len(one["logprobs"]) == 10 and other["logprobs"] == pytest.approx(one["logprobs"], abs=2e-2)
    a, b = np.array(one["update"]), np.array(other["update"])
    assert np.abs(a).max() > 1e-3 and a @ b >= 0.99 * np.linalg.norm(a) * np.linalg.norm(b)
    assert all(f["bf16"] == several[0]["bf16"] for f in several)


def test_evaluation_answers_and_chooses_alike(alone, several):
    """Every process knows all of it; the user's functions saw all rows at once."""
    assert all(f["evaluation"] == alone["evaluation"] for f in several)
    assert alone["evaluation"]["best"] != alone["evaluation"]["plain"]


def test_a_parameter_without_a_gradient_anywhere_keeps_none(alone, several):
    assert [f["untouched"] for f in several] == [[None, [1.0, 1.0], pytest.approx([1.0] * 3)]] * len(several)
    assert alone["untouched"] == [None, [1.0, 1.0], [1.0] * 3]


def test_shares_are_whole_and_disjoint_for_any_count():
    class Played(Processes):
        def __init__(self, rank: int, world_size: int) -> None:
            self.rank, self.world_size = rank, world_size

    for world_size in (1, 2, 3, 5):
        for count in range(12):
            assert [i for r in range(world_size) for i in Played(r, world_size).share(count)] == list(range(count))
