"""The recipes that are written for a CPU, one card and eight: what a plan finds of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.common.errors import UserError
from pipelines.cli.main import main
from pipelines.init.machines import machine_of
from pipelines.loading.load import load_recipe
from pipelines.run.pipeline import Pipeline
from tests.support.large_bases import cached_base


@pytest.mark.parametrize(
    ("name", "cards", "fit"),
    [("cpu", 0, ""), ("24gb", 1, "24GB"), ("80GB", 1, "80GB"), ("8x80gb", 8, "80GB"), ("2x16g", 2, "16GB")],
)
def test_names_of_machines(name: str, cards: int, fit: str) -> None:
    machine = machine_of(name)
    assert (machine.cards, machine.fit, machine.here) == (cards, fit, False)
    assert machine_of("here").here


@pytest.mark.parametrize("name", ["", "gpu", "24", "0x80gb", "0gb", "8x", "24gb please"])
def test_what_is_no_machine(name: str) -> None:
    with pytest.raises(UserError, match="8x80gb"):
        machine_of(name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's folder, and a hub cache with Llamas of 1.1, 6.7 and 69 billion parameters."""
    from huggingface_hub import constants

    from models.hub import download

    cached_base(tmp_path / "cache", "some/small", 22, 2048, 5632, 32, 4)
    cached_base(tmp_path / "cache", "some/seven", 32, 4096, 11008, 32, 32)
    cached_base(tmp_path / "cache", "some/seventy", 80, 8192, 28672, 64, 8)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    download.commit_of.cache_clear()
    monkeypatch.chdir(tmp_path)
    texts = [" ".join(f"w{(i * 7 + j) % 100}" for j in range(40)) for i in range(60)]
    shown = [{"prompt": f"w{i} w1", "completion": text} for i, text in enumerate(texts)]
    ranked = [{"prompt": f"w{i} w2", "chosen": text, "rejected": "w9 w9"} for i, text in enumerate(texts)]
    for name, rows in (("shown.jsonl", shown), ("ranked.jsonl", ranked)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield tmp_path
    download.commit_of.cache_clear()


@pytest.mark.parametrize(
    ("machine", "base", "lines"),
    [
        ("cpu", "some/small", ["device: cpu"]),
        ("24gb", "some/small", ["dtype: bfloat16", "fit: 24GB"]),
        ("80gb", "some/seven", ["dtype: bfloat16", "fit: 80GB"]),
        ("8x80gb", "some/seven", ["dtype: bfloat16", "fit: 80GB"]),
        ("8x80gb", "some/seventy", ["dtype: bfloat16", "fit: 80GB", "sharding: fsdp2"]),
    ],
)
def test_a_recipe_for_a_machine_passes_the_plan(
    hub: Path, machine: str, base: str, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "shown.jsonl", "ranked.jsonl", "--base", base, "--for", machine]) == 0
    said = capsys.readouterr().out
    text = (hub / "mine.yaml").read_text()
    written = [line.split("#")[0].strip() for line in text.split("\nruntime:\n")[1].splitlines()]
    assert [line for line in written if line] == lines
    recipe = load_recipe(hub / "mine.yaml")
    assert recipe.stages == ("sft", "reward", "ppo", "evaluate")
    plans = Pipeline.from_recipe(hub / "mine.yaml").plan()
    assert [plan.status for plan in plans] == ["new"] * 4
    if "fsdp2" not in text:  # of which a plan in one process counts the whole base
        assert not any(plan.details["too_large"] for plan in plans)
    assert "no setting of memory" not in said
    assert ("accelerate launch --num_processes 8" in text) == machine.startswith("8x")


def test_a_base_that_no_setting_fits_is_said(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """69 billion numbers take 138 GB in bf16 and 39 GB in four bits: no card of 24 GB holds either."""
    assert main(["init", "shown.jsonl", "ranked.jsonl", "--base", "some/seventy", "--for", "24gb"]) == 0
    assert (
        "warning: sft, reward, ppo, evaluate: no setting of memory makes this fit into 22.1 GB"
        in capsys.readouterr().out
    )


def test_four_bits_where_bf16_does_not_fit(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """6.7 billion numbers take 13.5 GB in bf16, sampling as much again: too much for 24 GB, but not in four bits."""
    from pipelines.init import memory
    from pipelines.loading import checks

    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    for there, quantize in ((True, "nf4"), (False, None)):
        monkeypatch.setattr(memory, "can_quantize", lambda there=there: there)
        assert main(["init", "shown.jsonl", "ranked.jsonl", "--base", "some/seven", "--for", "24gb", "--force"]) == 0
        assert load_recipe(hub / "mine.yaml").runtime.quantize == quantize
        assert ("pip install 'trivet[nf4]'" in capsys.readouterr().out) is not there


def test_a_base_that_is_not_here(hub: Path) -> None:
    assert main(["init", "shown.jsonl", "--base", "qwen2.5-0.5b", "--for", "24gb"]) == 0
    text = (hub / "mine.yaml").read_text()
    assert "not on this machine yet" in text and load_recipe(hub / "mine.yaml").runtime.fit == "24GB"
