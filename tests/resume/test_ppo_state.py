"""The state of a PPO is all of it: a fresh one that is put there goes on to the same bits. Fast, without a pipeline."""

from __future__ import annotations

from dataclasses import replace

import torch

from stages.ppo import state as ppo_state
from stages.safe_points.checkpoints import Checkpoints, State
from tests.support.ppo import everything, facts, make_ppo

SETTINGS = {"kl": "adaptive", "kl_target": 0.1, "kl_horizon": 100.0, "minibatches": 2, "learning_rate": 1e-2}


def test_a_ppo_that_is_put_between_two_minibatches_goes_on_to_the_same_bits(tmp_path):
    """K1-K4: weights of both roles and the head, moments, counters, cursor, KL coefficient; the reference stays."""
    whole, kept = make_ppo(tmp_path / "whole", **SETTINGS), []

    def safe_point() -> None:
        if whole.position == 7:  # in the second update, after its first minibatch
            found = ppo_state.snapshot(whole)
            kept.append(replace(found, tensors={n: t.detach().clone() for n, t in found.tensors.items()}))

    whole.safe_point = safe_point
    rows = list(whole.train())
    again = make_ppo(tmp_path / "again", **SETTINGS)
    reference = {n: p.clone() for n, p in again.base.parameters_of("reference").items()}
    ppo_state.restore(again, kept[0])
    assert again.position == 7 and again.controller.coef == kept[0].numbers["kl_coef"] != again.config.kl_coef
    assert facts(list(again.train())) == facts(rows[1:])
    found, expected = everything(again), everything(whole)
    assert set(found) == set(expected) and any(n.startswith("optimizer/exp_avg") for n in found)
    assert [n for n in found if not torch.equal(found[n], expected[n])] == []
    assert all(torch.equal(p, reference[n]) for n, p in again.base.parameters_of("reference").items())


def test_an_altered_checkpoint_is_refused_by_name_and_the_one_before_stays(tmp_path):
    """K5: one bit of the newest one's tensors is another."""
    told: list[str] = []
    points = Checkpoints(tmp_path / "checkpoints", "key", warn=told.append)
    for number in (9, 10):
        points.save(number, State(tensors={"x": torch.full((8,), float(number))}))
        points.wait()
    file = tmp_path / "checkpoints/step_10/tensors.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    points.tidy(tmp_path / "metrics.jsonl")
    assert len(told) == 1 and "step_10 is refused" in told[0] and file.name in told[0]
    assert points.steps() == [9]
