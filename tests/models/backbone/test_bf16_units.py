"""Which precision "auto" is: by what the processor says, what was measured, and the base's width."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.backbone import bf16_units, processes
from models.backbone.bf16_units import bf16_speed, own_bf16_units, remembered_speed
from models.backbone.processes import resolve_dtype
from models.hub.load import dtype_of
from models.hub.registry import BaseModelSpec
from models.roles.shared_base import SharedBase
from pipelines.execution.loaded_models import LoadedModels
from pipelines.loading.load import load_recipe
from pipelines.run.plan_details import numbers_of
from pipelines.stages.shapes import shape_of
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.launching import launched
from tests.support.recipes import RECIPE

CPU = torch.device("cpu")


@pytest.fixture
def units(monkeypatch):
    """Whether the processor multiplies bf16 faster, for whoever asks."""
    return lambda found: monkeypatch.setattr(processes, "has_bf16_units", lambda: found)


def test_auto_on_a_cpu_is_bf16_for_wide_bases_where_that_is_faster(units):
    for faster in (False, True):
        units(faster)
        assert resolve_dtype("auto", CPU, 512) == (torch.bfloat16 if faster else torch.float32)
        assert resolve_dtype("auto", CPU, 511) == resolve_dtype("auto", CPU) == torch.float32
        assert (
            resolve_dtype("bfloat16", CPU, 8) == torch.bfloat16 and resolve_dtype("float32", CPU, 4096) == torch.float32
        )


@pytest.mark.parametrize(
    ("width", "entry", "asked", "expected"),
    [
        (512, "auto", "auto", torch.bfloat16),
        (64, "auto", "auto", torch.float32),
        (512, "float32", "auto", torch.float32),
        (64, "bfloat16", "auto", torch.bfloat16),
        (512, "bfloat16", "float32", torch.float32),
    ],
)
def test_a_base_is_loaded_in_what_entry_width_and_recipe_say(units, tmp_path, width, entry, asked, expected):
    units(True)
    (tmp_path / "config.json").write_text(
        json.dumps({"text_config": {"hidden_size": width}} if width > 64 else {"n_embd": width})
    )
    spec = BaseModelSpec(name="some", source=str(tmp_path), dtype=entry)
    assert dtype_of(spec, asked, CPU) == expected


def test_what_was_measured_first_is_what_counts(tmp_path, monkeypatch):
    for cap in bf16_units.CAPS:  # which the whole suite may run under
        monkeypatch.delenv(cap, raising=False)
    speeds = iter([1.6, 1.4])
    monkeypatch.setattr(bf16_units, "bf16_speed", lambda: next(speeds))
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert remembered_speed() == remembered_speed() == 1.6
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")  # another processor, in effect
    assert remembered_speed() == 1.4
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert remembered_speed() == 1.6


def test_processes_that_measure_at_once_agree(tmp_path, monkeypatch):
    """On the first measurement that was kept, also where another process kept it while this one measured."""
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path))
    (tmp_path / "data").mkdir()
    speeds = iter([1.4])

    def slower_one() -> float:
        if (other := next(speeds, None)) is not None:
            monkeypatch.setattr(bf16_units, "bf16_speed", lambda: other)
            assert remembered_speed() == other
        return 1.6

    monkeypatch.setattr(bf16_units, "bf16_speed", slower_one)
    assert remembered_speed() == 1.4 == remembered_speed()


def test_processes_of_unlike_processors_compute_alike(tmp_path):
    """As on two machines, or with a measurement that other work disturbed: in bf16 where all of them gain by it."""
    found = launched(Path(__file__).parent / "unlike_processors.py", tmp_path / "run", 2)
    assert found == [{"all have them": ["torch.bfloat16"] * 2, "one has them": ["torch.float32"] * 2}] * 2


def test_other_work_on_the_machine_does_not_decide(monkeypatch):
    """A product that waited for another process took longer than it takes: 4 ms in fp32 and 2 in bf16 are twofold."""
    seconds = iter([9, 9, 4, 8, 8, 2, 4, 9, 5, 7, 4, 2.5])
    monkeypatch.setattr(bf16_units, "_seconds", lambda *_: next(seconds))
    assert bf16_speed() == 2


@pytest.mark.parametrize(("flag", "speed", "expected"), [(True, 1.5, True), (True, 1.49, False), (False, 9.0, False)])
def test_units_count_where_they_are_named_and_fast(monkeypatch, flag, speed, expected):
    monkeypatch.setattr(bf16_units, "has_flag", lambda: flag)
    monkeypatch.setattr(bf16_units, "remembered_speed", lambda: speed)
    assert own_bf16_units.__wrapped__() == expected


def test_the_measurement_gives_a_ratio():
    assert 0 < bf16_speed() < 1000


class Ranks:
    """Two processes, of which the other loads its base in a precision of its own."""

    device, world_size = CPU, 2

    def __init__(self, other: str) -> None:
        self.other = other

    def gather(self, items: list[str]) -> list[str]:
        return [*items, self.other]


def test_plan_and_run_choose_alike_and_processes_agree(units, tmp_path, monkeypatch):
    units(True)
    tiny_lm(hidden_size=512, intermediate_size=64, num_hidden_layers=1).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert SharedBase.load(tmp_path, device="cpu").dtype == torch.bfloat16
    recipe = load_recipe({**RECIPE, "base": str(tmp_path), "data": {**RECIPE["data"], "documents": []}})
    for faster in (True, False):  # whether sampling packs the output layer goes with the products
        monkeypatch.setattr("models.fast.products.has_bf16_units", lambda faster=faster: faster)
        numbers = numbers_of(recipe, CPU, shape_of(recipe))
        assert numbers.weight == 2 and numbers.packed_output == (numbers.product == 2) == faster
    for other, expected in [("torch.bfloat16", torch.bfloat16), ("torch.float32", torch.float32)]:
        loaded = LoadedModels(recipe, Ranks(other), {})
        assert loaded.base().dtype == expected
