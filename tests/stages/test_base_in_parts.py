"""All stages do the same on a base that two processes hold in parts as on a whole one in one process."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stages.base_in_parts import FAMILIES, SFT, TRAINED_BY_PPO, everything, make_folders
from tests.support.launching import assert_same_training, launched

CLOSE = 1e-4  # of weights; the modules round otherwise than the fast path


SCRIPT = Path(__file__).parent / "base_in_parts.py"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process and two of them end in, at the same time: each waits for its imports most of it."""
    folder = tmp_path_factory.mktemp("alone")
    make_folders(folder)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(launched, SCRIPT, tmp_path_factory.mktemp("processes") / "run", 2)
        one = json.loads(json.dumps(everything(folder)))
        return one, others.result()


@pytest.fixture(scope="module")
def alone(both) -> dict[str, Any]:
    """What one process ends in, whose base is whole."""
    found = both[0]
    assert found["world"] == 1 and not found["divided"]
    return found


@pytest.fixture(scope="module")
def two(both) -> list[dict[str, Any]]:
    """What each of two processes ends in, whose base is divided."""
    found = both[1]
    assert [f["world"] for f in found] == [2, 2] and all(f["divided"] for f in found)
    return found


@pytest.mark.slow
def test_three_processes_train_and_sample_as_one_does(alone, tmp_path):
    """Of a width that three do not divide, so that the last has fewer rows of each tensor."""
    found = launched(SCRIPT, tmp_path / "run", 3)
    for case in SFT:
        assert_same_training(alone["sft"][case], [f["sft"][case] for f in found], CLOSE, CLOSE)
    for case in TRAINED_BY_PPO:
        assert all(f["ppo"][case]["responses"] == alone["ppo"][case]["responses"] for f in found)
        assert_same_training(alone["ppo"][case], [f["ppo"][case] for f in found], CLOSE, 1e-3)
    for case in ("sft", "reward", "ppo", "short of memory"):
        one, first = alone["full"][case], found[0]["full"][case]
        assert_same_training(one, [first], CLOSE, CLOSE if case != "ppo" else 1e-3)
    for case in ("sft", "ppo"):
        assert found[0]["full"][f"{case} again"]["weights"] == found[0]["full"][case]["weights"]
    assert found[0]["full"]["stored"]["bytes"] == alone["full"]["stored"]["bytes"]
    assert all(f["evaluation"] == alone["evaluation"] for f in found)


@pytest.mark.parametrize("case", SFT)
def test_sft_trains_alike(alone, two, case):
    """With a process that has no row, and with one whose passes break off for want of memory."""
    assert_same_training(alone["sft"][case], [f["sft"][case] for f in two], CLOSE, CLOSE)


def test_the_reward_model_is_trained_alike(alone, two):
    assert_same_training(alone["reward"], [f["reward"] for f in two], CLOSE, CLOSE)


def test_rankings_are_the_same_rows(alone, two):
    assert len(alone["rankings"]) == 7 and two[0]["rankings"] == alone["rankings"]


@pytest.mark.parametrize("case", TRAINED_BY_PPO)
def test_ppo_samples_and_trains_alike(alone, two, case):
    one, others = alone["ppo"][case], [f["ppo"][case] for f in two]
    assert all(other["responses"] == one["responses"] for other in others)
    assert_same_training(one, others, CLOSE, 1e-3)


def test_evaluation_answers_and_chooses_alike(alone, two):
    assert all(f["evaluation"] == alone["evaluation"] for f in two)


@pytest.mark.parametrize("name", [name for name, _, _ in FAMILIES])
def test_passes_of_other_numbers_in_each_process_give_the_same(alone, two, name):
    """One process passes once and the other three times; with recomputation and without, tied weights and others."""
    whole = alone["families"][name]
    for rank, found in enumerate(two):
        times = str(1 + 2 * rank)
        for mine, expected in zip(found["families"][name][times], whole[times], strict=True):
            assert mine == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert found["families"][name]["fingerprint"] == whole["fingerprint"]


@pytest.mark.parametrize("name", [name for name, _, _ in FAMILIES])
def test_roles_that_follow_each_other_gather_a_layer_once(alone, two, name):
    """With the bits of one role after the other, which gather it each for itself."""
    whole = alone["families"][name]["roles"]
    assert whole["in turn"] == whole["together"] and not whole["together"]["asked"]
    for found in (f["families"][name]["roles"] for f in two):
        apart, together = found["in turn"], found["together"]
        assert together["numbers"] == apart["numbers"]
        for mine, expected in zip(together["numbers"], whole["in turn"]["numbers"], strict=True):
            assert mine == pytest.approx(expected, rel=1e-4, abs=1e-4)
        blocks = [unit for unit in apart["asked"] if unit.endswith((".0", ".1"))]
        assert len(blocks) == 2 and all(apart["asked"][unit] == 3 for unit in blocks)
        assert all(together["asked"][unit] == 1 for unit in blocks)
        assert sum(together["asked"].values()) < sum(apart["asked"].values()) / 2


def test_ppo_evaluates_its_roles_in_one_gathering_of_each_layer(two):
    for rank, found in enumerate(two):
        counts = [one["micro_batches"] for one in found["evaluated"]]
        assert counts == [1, 1, 1 - rank, 1 - rank]  # of one row, one process has none
        for one, count in zip(found["evaluated"], counts, strict=True):
            assert [one["asked"].get(f"model.layers.{i}", 0) for i in (0, 1)] == [count] * 2


def test_a_process_holds_its_part_and_few_gathered_layers(alone, two):
    """Less than 0.6 of the whole base, beside the adapters, activations and logits that a process has anyway."""
    whole = alone["memory"]
    assert whole["here"] == whole["whole"] > 50e6 and not whole["gathered"]
    for found in (f["memory"] for f in two):
        assert found["whole"] == whole["whole"] and found["here"] < 0.51 * whole["whole"]
        assert whole["whole"] / 50 < found["gathered"] < 0.6 * whole["whole"] - found["here"]


def test_a_process_reads_its_own_part_of_the_files(two):
    assert all(f["memory"]["read"] == f["memory"]["here"] for f in two)


@pytest.mark.parametrize("case", ["sft", "reward", "ppo", "short of memory"])
def test_whole_models_are_trained_alike(alone, two, case):
    """Each process has its rows of all weights, gradients and moments; one has no memory for some of its passes."""
    one, (first, second) = alone["full"][case], (f["full"][case] for f in two)
    assert_same_training(one, [first], CLOSE, CLOSE if case != "ppo" else 1e-3)
    if case == "short of memory":  # 1 broken off, 1 of 2 that are broken off again, then 4 of one row each
        assert second["passes"] == 1 + 2 + 4
    assert set(second["weights"]) == {n for n in one["weights"] if ".head." in n}  # it has gathered nothing


@pytest.mark.parametrize("case", ["sft", "ppo"])
def test_whole_models_resume_from_a_checkpoint_to_the_same_bits(two, case):
    first = two[0]["full"]
    assert first[f"{case} again"]["weights"] == first[case]["weights"]


def test_a_whole_model_in_parts_is_saved_and_read_as_one_process_does(alone, two):
    assert alone["full"]["stored"]["here"] == alone["full"]["stored"]["whole"]
    for found in (f["full"]["stored"] for f in two):
        assert found["same"] and found["here"] == alone["full"]["stored"]["whole"] / 2
        assert found["files"] == alone["full"]["stored"]["files"]
    assert two[0]["full"]["stored"]["bytes"] == alone["full"]["stored"]["bytes"]


@pytest.mark.parametrize("stage", ["sft", "ppo", "full", "full with biases"])
def test_a_base_in_bf16_is_trained_alike(alone, two, stage):
    """Of the same micro-batches. Whole models, whose norms are computed in fp32 there as here, to the last places."""
    whole = stage.startswith("full")
    one, other = alone["bf16"][stage], two[0]["bf16"][stage]
    assert len(one["losses"]) > 1
    assert other["losses"] == pytest.approx(one["losses"], abs=1e-5 if whole else 1e-3)
    assert len(one["logprobs"]) == 10
    assert other["logprobs"] == pytest.approx(one["logprobs"], abs=1e-3 if whole else 2e-2)
    a, b = np.array(one["update"]), np.array(other["update"])
    assert np.abs(a).max() > (1e-6 if whole else 1e-3)
    assert a @ b >= (0.9999 if whole else 0.99) * np.linalg.norm(a) * np.linalg.norm(b)
    assert one.get("dtypes") == other.get("dtypes") and one.get("dtypes", ["torch.float32"]) == ["torch.float32"]


def test_the_fingerprint_is_that_of_the_whole_base(alone, two):
    assert [f["fingerprint"] for f in two] == [alone["fingerprint"]] * 2
