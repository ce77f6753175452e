"""The chain of docs/measurements/base_chain.md, cut short: each step lowers the loss of held-out text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.base_chain import QUICK, halves, measure, passages
from tests.conftest import SHARED

ROOT = Path(__file__).parents[2]
TEXT = SHARED / "data/raw/tinyshakespeare.txt"


def test_passages_are_whole_paragraphs_and_are_cut_at_white_space() -> None:
    text = "\n\n".join([("one two three " * 20).strip()] * 6)
    found = passages(text)
    assert all(600 <= len(p) < 600 + 300 for p in found) and "\n\n".join(found) == text
    cut = halves(found[0])
    assert cut["prompt"] + cut["completion"] == found[0] and cut["completion"].startswith(" ")


@pytest.mark.slow
@pytest.mark.skipif(not TEXT.is_file(), reason=f"needs {TEXT.name}, a public text that is no part of the repository")
def test_each_step_helps(tmp_path: Path) -> None:
    found = measure(TEXT.read_text(encoding="utf-8"), tmp_path, QUICK)
    models = found["models"]
    for step in ("pretrain", "continued", "distil"):
        assert models[step]["ci95"][1] < 0, step
    assert models["export"]["nats_per_byte"] == pytest.approx(models["distil"]["nats_per_byte"], abs=1e-6)
    assert models["bytes by frequency"]["nats_per_byte"] < 5.55  # of a byte at random: log 256
    assert models["teacher"]["parameters"] > 2 * models["distil"]["parameters"]
    distil = found["manifests"]["distil"]
    assert distil["curve"]["change_ci95"][1] < 0 and distil["agreement"] > distil["agreement_before"]


def test_the_page_says_what_was_measured() -> None:
    found = json.loads((ROOT / "benchmarks/results/base_chain.json").read_text())
    page = (ROOT / "docs/measurements/base_chain.md").read_text()
    for name, model in found["models"].items():
        assert f"| {model['nats_per_byte']:.3f} |" in page, name
        if "change" in model and name != "export":
            low, high = model["ci95"]
            assert f"| {model['change']:+.3f} [{low:+.3f}, {high:+.3f}] |" in page, name
    taught = found["distil_less_control"]
    assert f"{-taught['change']:.3f}" in page and f"({taught['ci95'][0]:+.3f} to {taught['ci95'][1]:+.3f})" in page
