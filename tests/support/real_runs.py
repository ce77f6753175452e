"""Runs on the data and models beside the checkout: example recipes with real paths in place of a user's file names."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from data.common.intervals import MINIMUM
from data.records import Message
from models.backbone.logprobs import make_rows
from models.roles.shared_base import SharedBase
from pipelines.execution.progress import Progress
from pipelines.run.pipeline import Pipeline
from stages.ppo.rollout import policy_pass

EXAMPLES = Path(__file__).parents[2] / "examples"
HERE = ["runtime.device=cpu", "runtime.threads=1"]


def example_module(name: str) -> ModuleType:
    """A Python file of ``examples/`` as a module."""
    spec = importlib.util.spec_from_file_location("example_" + Path(name).stem, EXAMPLES / name)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def need(shared: Path, name: str) -> Path:
    """A file or folder of the real data, or a skip that names it."""
    path = shared / name
    if not path.exists():
        pytest.skip(f"real data: {name} is not beside the checkout")
    return path


def lines(path: Path) -> list[str]:
    """Lines of a text file, gzipped or not, each with its end."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [line + "\n" for line in raw.decode("utf-8").split("\n") if line]


def some_of(path: Path, rows: Sequence[str], folder: Path) -> Path:
    """A file of the same kind that holds only these rows."""
    out = folder / path.name.removesuffix(".gz")
    out.write_text("".join(rows), encoding="utf-8")
    return out


def run(example: str, overrides: Sequence[str], folder: Path) -> Pipeline:
    """Run an example of ``examples/`` quietly into ``folder/run``, on one CPU thread."""
    pipeline = Pipeline.from_recipe(EXAMPLES / example, [*overrides, *HERE], run_dir=folder / "run")
    pipeline.run(progress=Progress(active=False))
    return pipeline


def metrics(pipeline: Pipeline, stage: str) -> dict[str, Any]:
    """What a finished stage measured."""
    return json.loads((pipeline.run_dir / stage / "manifest.json").read_text())["metrics"]


def results(pipeline: Pipeline) -> dict[str, Any]:
    return json.loads((pipeline.run_dir / "evaluation" / "results.json").read_text())


def comparison(pipeline: Pipeline, system: str, by: str = "gold") -> dict[str, Any]:
    """One system's sampled answers against SFT's."""
    found = [c for c in results(pipeline)["comparisons"] if (c["a"], c["by"], c["decoding"]) == (system, by, "sampled")]
    assert len(found) == 1
    return found[0]


@torch.no_grad()
def base_nll(pipeline: Pipeline, system: str) -> float:
    """Nats a token of a system's sampled answers under the bare base, over all tokens but the stop token."""
    base, renderer = pipeline.loaded.base(), pipeline.loaded.renderer()
    total, count = 0.0, 0
    rows = [json.loads(line) for line in lines(pipeline.run_dir / "evaluation" / "samples.jsonl")]
    rows = [row for row in rows if row["decoding"] == "sampled"]
    for start in range(0, len(rows), 32):
        asked = [[Message(role="user", content=row["prompt"])] for row in rows[start : start + 32]]
        answers = [row["systems"][system]["response"] for row in rows[start : start + 32]]
        responses = [renderer.answer_ids(m, a, finished=False) for m, a in zip(asked, answers, strict=True)]
        queries = [renderer.prompt_ids(m) for m in asked]
        with base.role("base") as view:
            logprobs, _ = policy_pass(view, make_rows(queries, responses, renderer.pad_id, base.device), 1.0)
        total, count = total - logprobs.sum().item(), count + len(logprobs)
    return total / count


def assert_measured(found: dict[str, Any]) -> None:
    """A reward stage's accuracy is a share, with an interval around it where there are prompts enough for one."""
    assert 0 <= found["pair_accuracy"] <= 1
    assert (found["pair_accuracy_ci95"] is None) == (found["held_out_rankings"] < MINIMUM)
    if found["pair_accuracy_ci95"] is not None:
        low, high = found["pair_accuracy_ci95"]
        assert 0 <= low <= found["pair_accuracy"] <= high <= 1 and low < high
    assert found["pairs"] > 0
    assert math.isfinite(found["score_mean"]) and math.isfinite(found["score_std"])
    assert found["score_std"] > 0


def assert_base_as_it_was(pipeline: Pipeline) -> None:
    base: SharedBase = pipeline.loaded.base()
    assert base.base_fingerprint() == base.fingerprint
