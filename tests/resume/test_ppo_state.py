"""The state of a PPO is all of it: a fresh one that is put there goes on to the same bits. Fast, without a pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.backbone.settings import AdapterConfig
from stages.ppo import state as ppo_state
from stages.ppo.state import DERIVED, FIELDS
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


def parts_of(whole, found: State, shares: list[range]) -> list:
    """A state of one process as several would have saved it, each with its share of the rows."""
    cycle, rollout, parts = found.own_numbers["cycle"], whole.cycle.rollout, []
    lengths = [len(q) + len(r) for q, r in zip(rollout.queries, rollout.responses, strict=True)]
    for rows in shares:
        mine = slice(rows.start, rows.stop)
        responses = cycle["responses"][mine]
        width = max([1, *map(len, responses)])
        own = {n: t[mine] if t.ndim == 1 else t[mine, :width] for n, t in found.own.items() if n != "lower"}
        if "lower" in found.own and responses:
            own["lower"] = torch.cat(found.own["lower"].split(lengths)[mine])
        parts.append((own, {"limits": {}, "cycle": cycle | {"responses": responses}}))
    return parts


@pytest.mark.parametrize("layers", ["all", [1]])
@pytest.mark.parametrize("shares", [[range(0, 4), range(4, 8)], [range(0, 1), range(1, 8), range(8, 8)]])
def test_a_cycle_that_several_processes_saved_is_whole_again_in_any_number(tmp_path, layers, shares):
    """Saved by two, or by three of which the last has no row; resumed by one to the same bits; each of four
    has all rows, and saves its share."""
    settings = SETTINGS | {"adapter": AdapterConfig(rank=4, alpha=8, layers=layers), "updates": 2}
    whole, kept = make_ppo(tmp_path / "whole", **settings), []

    def safe_point() -> None:
        if whole.position == 2:  # after the first minibatch
            found = ppo_state.snapshot(whole)
            tensors = {n: t.detach().clone() for n, t in found.tensors.items()}
            kept.append(replace(found, tensors=tensors, parts=parts_of(whole, found, shares)))
            fields.update({n: getattr(whole.cycle.rollout, n).clone() for n in FIELDS + DERIVED})

    fields: dict[str, torch.Tensor] = {}
    whole.safe_point = safe_point
    rows = list(whole.train())
    state = replace(kept[0], own=kept[0].parts[0][0], own_numbers=kept[0].parts[0][1])
    assert ("lower" in state.own) is (layers != "all")
    again = make_ppo(tmp_path / "again", **settings)
    ppo_state.restore(again, state)
    assert all(torch.equal(getattr(again.cycle.rollout, n), fields[n]) for n in fields)
    assert facts(list(again.train())) == facts(rows)
    found, expected = everything(again), everything(whole)
    assert [n for n in found if not torch.equal(found[n], expected[n])] == []

    for rank in range(4):
        part = make_ppo(tmp_path / str(rank), **settings)
        part.context.processes.rank, part.context.processes.world_size = rank, 4
        ppo_state.restore(part, state)
        rollout = part.cycle.rollout
        assert len(rollout.prompts) == 8 and all(torch.equal(getattr(rollout, n), fields[n]) for n in fields)
        records = kept[0].own_numbers["cycle"]["records"]
        assert [r.row_ids for r in part.cycle.records] == [r["row_ids"] for r in records]
        assert len(part.cycle.records) == 1 and len(part.cycle.records[0].row_ids) == 4
        saved, mine = ppo_state.snapshot(part), slice(2 * rank, 2 * rank + 2)
        assert all(torch.equal(saved.own[n], fields[n][mine]) for n in fields)
        assert saved.own_numbers["cycle"]["responses"] == [list(r) for r in rollout.responses[mine]]
        lengths = rollout.row_lengths
        assert ("lower" in saved.own) is (layers != "all")
        if layers != "all":
            assert torch.equal(saved.own["lower"], torch.cat(rollout.prefix_states.split(lengths)[mine]))
