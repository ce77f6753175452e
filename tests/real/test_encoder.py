"""An encoder that was pretrained on stories carries a reward model that one of random weights does not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.run.pipeline import Pipeline
from tests.support.real_runs import need

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

SHAPE = {"layers": 2, "width": 64, "feed_forward": 128, "heads": 4, "context": 96}
RUNTIME = {"device": "cpu", "threads": 1}
PAIRS, WORDS = 200, 40


def encoder(shared: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Pretrained on the stories; the metrics."""
    scratch = {"objective": "masked", "tokenizer": "wordpiece", "vocabulary": 512, "model": SHAPE, "steps": steps}
    recipe = {
        "base": {"pretrain": scratch},
        "stages": ["pretrain"],
        "data": {"documents": str(need(shared, "data/ready/text/tinystories.train.jsonl.gz")), "held_out": 0.1},
        "runtime": RUNTIME,
    }
    Pipeline.from_recipe(recipe, run_dir=folder).run()
    found: dict[str, Any] = json.loads((folder / "pretrain/manifest.json").read_text())["metrics"]
    return found


def on_encoder(shared: Path, folder: Path, rankings: Path, base: Path) -> dict[str, Any]:
    """Trained to tell stories from the same words shuffled; the metrics."""
    recipe = {
        "base": str(need(shared, "models/stories260K")),
        "template": "text",
        "stages": ["reward"],
        "data": {"rankings": str(rankings), "held_out": 0.4},
        "reward": {"base": str(base), "epochs": 4, "batch": 8, "max_tokens": 96, "pooling": "mean"},
        "runtime": RUNTIME,
    }
    Pipeline.from_recipe(recipe, run_dir=folder).run()
    found: dict[str, Any] = json.loads((folder / "reward/manifest.json").read_text())["metrics"]
    return found


def test_stories_teach_an_encoder_what_shuffled_ones_are(shared: Path, tmp_path: Path) -> None:
    """The beginnings of 200 stories against the same words shuffled, by sizes that take minutes."""
    file = need(shared, "data/ready/preference_built/tinystories_shuffled.train.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(PAIRS), strict=False)]
    cut = [{k: " ".join(v.split()[:WORDS]) for k, v in row.items()} for row in rows]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, cut)) + "\n")
    found, accuracy = {}, {}
    for name, steps in (("read", 250), ("one", 1)):
        found[name] = encoder(shared, tmp_path / name, steps)
        base = tmp_path / name / "pretrain/model"
        accuracy[name] = on_encoder(shared, tmp_path / f"reward_{name}", tmp_path / "r.jsonl", base)
    assert found["read"]["held_out_masked_nll"] < found["one"]["held_out_masked_nll"] - 1.0
    assert found["read"]["held_out_masked_nll_before"] == found["one"]["held_out_masked_nll_before"]
    assert accuracy["read"]["pair_accuracy"] > accuracy["one"]["pair_accuracy"] + 0.1
    assert accuracy["read"]["pair_accuracy_ci95"][0] > 0.85
