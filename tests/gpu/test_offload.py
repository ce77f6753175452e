"""Activations that wait on the host, on the double of a device: the same numbers, nothing waited for, little kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.backbone.forward import set_gradient_checkpointing
from models.backbone.logprobs import make_rows
from models.fast import hidden_states
from models.roles.shared_base import SharedBase
from pipelines.cli import main as cli
from pipelines.run.pipeline import Pipeline
from pipelines.stages.memory import Numbers, Rows, training
from pipelines.stages.shapes import Shape
from reward.shared_prompt import branch_states
from tests.conftest import ADAPTER, randomise, tiny_lm, word_tokenizer
from tests.support.gpu_double import GpuDouble
from tests.support.memory_peak import make_data, make_folder, recipe_of

QUERIES = [[5, 9], [7, 8, 9, 10, 11], [12, 13], [20]] * 2
RESPONSES = [[4, 5, 6][: 1 + i % 3] for i in range(8)]
LAYERS = 3


def gradients(family: str, gpu: GpuDouble, offload: bool, branches: bool = False) -> dict[str, torch.Tensor]:
    """Of one training pass with layers computed again; its phase is 'pass' where they wait on the host."""
    sizes = {"n_layer": LAYERS} if family == "gpt2" else {"num_hidden_layers": LAYERS}
    lm = tiny_lm(family, initializer_range=0.2, **sizes).to("cuda")
    base = SharedBase(lm, word_tokenizer(), name="tiny")
    base.add_role("policy", ADAPTER, head=True, trainable=True)
    randomise(base, "policy", seed=0)
    rows = make_rows(QUERIES, RESPONSES, 0, base.device)
    with base.training("policy") as trained, base.role("policy") as view:
        set_gradient_checkpointing(lm, True, offload)
        assert view.head is not None
        with gpu.within("pass" if offload else "plain"):
            if branches:
                states = branch_states(lm, [([5, 9], [[4, 5], [6]]), ([7], [[8]])], view.decoder())
                states.square().sum().backward()
            else:
                states = view.states(rows.ids, rows.mask, rows.response_positions(), rows.packing)
                (view.logprobs(states, rows.targets(), 0.7)[0].sum() + view.head(states).sum()).backward()
        set_gradient_checkpointing(lm, False)
        assert not lm.offloads_activations
        return {name: p.grad.cpu().clone() for name, p in trained.items() if p.grad is not None}


@pytest.mark.parametrize("branches", [False, True], ids=["rows", "branches"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_are_the_same_bits(family: str, branches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[torch.Tensor] = []
    parked, pin = hidden_states.parked, torch.autograd.graph.save_on_cpu

    def noted(x: torch.Tensor) -> torch.Tensor:
        waiting.append(parked(x))
        return waiting[-1]

    class Noted(pin):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **settings: Any) -> None:
            waiting.append(torch.empty(0))
            assert settings == {"pin_memory": True}
            super().__init__(*given, **settings)

    monkeypatch.setattr(hidden_states, "parked", noted)
    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Noted)
    with GpuDouble().installed() as gpu:
        expected = gradients(family, gpu, False, branches)
        assert not waiting
        found = gradients(family, gpu, True, branches)
        assert len(waiting) == (LAYERS if family == "llama" else 1)
        assert all(t.device.type == "cpu" for t in waiting)
        if family == "llama":  # each input is read back without a wait
            assert gpu.waited("pass") == gpu.waited("plain")
            assert all(getattr(t, "is_pinned_here", False) for t in waiting)
    assert found.keys() == expected.keys() and found
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def test_a_pass_without_gradients_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_states, "parked", lambda x: pytest.fail("kept"))
    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", lambda **_: pytest.fail("kept"))
    with GpuDouble().installed():
        for family in ("llama", "gpt2"):
            lm = tiny_lm(family).to("cuda")
            base = SharedBase(lm, word_tokenizer(), name="tiny")
            base.add_role("policy", ADAPTER)
            set_gradient_checkpointing(lm, True, True)
            rows = make_rows(QUERIES, RESPONSES, 0, base.device)
            with torch.no_grad(), base.role("policy") as view:
                view.states(rows.ids, rows.mask, rows.response_positions(), rows.packing)


def test_the_plan_counts_one_layers_input_where_the_others_wait_on_the_host() -> None:
    """8 tokens 4 wide in fp32 are 128 bytes; of 5 layers computed again 4 are less on the device at the loss."""
    shape = Shape(parameters=0, linear=0, adapter=0, layers=5, trained_layers=5, width=4, inner=8, heads=1, key_heads=1,
                  head_size=4, vocabulary=1)  # fmt: skip
    rows = Rows(count=1, tokens=8.0, longest=8.0, read=8.0)
    plain, away = (
        training(shape, Numbers(checkpointing=True, offload=offload), rows)["activations"] for offload in (False, True)
    )
    assert plain - away == 3 * 128  # beside the layer in work one more is on its way
    off = training(shape, Numbers(offload=True), rows)
    assert off == training(shape, Numbers(), rows)  # without recomputation nothing is moved


@pytest.fixture
def planned(tmp_path: Path) -> dict[str, Any]:
    return recipe_of(make_folder(tmp_path / "base", 64), make_data(tmp_path / "data", rows=8, answer=9))


def test_on_a_cpu_it_is_refused_with_the_reason(
    planned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned["runtime"] |= {"offload_activations": True}
    (tmp_path / "r.yaml").write_text(json.dumps(planned))
    for command in ("plan", "run"):
        assert cli.main([command, str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]) == 2
        assert "runtime.offload_activations: it moves activations from a GPU" in capsys.readouterr().err
    off = ["--set", "runtime.gradient_checkpointing=false"]
    assert cli.main(["plan", str(tmp_path / "r.yaml"), *off]) == 2
    assert "runtime.offload_activations" in (told := capsys.readouterr().err) and "gradient_checkpointing" in told


def test_no_finished_stage_is_stale_for_it(planned: dict[str, Any], tmp_path: Path) -> None:
    described = []
    for on in (False, True):
        planned["runtime"] |= {"offload_activations": on}
        made = Pipeline.from_recipe(planned, run_dir=tmp_path / "run")
        described.append({name: made.describe(name, {}) for name in made.recipe.stages})
    assert described[0] == described[1]
