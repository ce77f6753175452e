"""A run and its number of processes: what is finished stays so, and what two have begun one or three can end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from pipelines.execution.progress import Progress
from pipelines.export.stage import export_stage
from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES
from tests.resume.stopped_by_two import POINTS
from tests.support.recipes import RECIPE

ROOT = Path(__file__).parents[2]
WHOLE: dict[str, Any] = dict(RECIPE)
WHOLE["reward"] = WHOLE["reward"] | {"gate": "off"}
WHOLE["ppo"] = WHOLE["ppo"] | {"minibatches": 2, "rollouts": 6}


def launched(count: int, *arguments: str) -> str:
    """What several processes said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(ROOT / "tests/resume/stopped_by_two.py")
    done = subprocess.run(
        [*command, script, *arguments], capture_output=True, text=True, timeout=400, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{f.relative_to(folder)} {n}": t for f in files for n, t in load_file(f).items()}


def test_a_finished_stage_stays_finished_with_any_number_of_processes(tmp_path: Path) -> None:
    """Dropout alone, whose masks belong to forward passes, makes the number a part of the key."""
    stages = {k: v for k, v in RECIPE.items() if k not in ("rankings", "reward", "ppo", "evaluation")}
    run = Pipeline.from_recipe(stages, run_dir=tmp_path)
    run.run()
    for processes in (1, 3):
        again = Pipeline.from_recipe(stages, run_dir=tmp_path)
        again.processes.world_size = processes
        plans = {p.name: p for p in again.plan()}
        assert {p.status for p in plans.values()} == {"cached"}
        assert ("made with processes 1 (now 3)" in plans["sft"].reason) is (processes == 3)
        masked = Pipeline.from_recipe(stages, ["adapter.dropout=0.1"], run_dir=tmp_path)
        masked.processes.world_size = processes
        described = masked.describe("sft", {})["runtime"]
        assert described["processes"] == processes and "processes" not in masked.describe("pretrain", {})["runtime"]


@pytest.mark.slow
def test_what_two_processes_have_begun_one_and_three_end_as_one_alone_does(tmp_path: Path) -> None:
    """Each stage from the same inputs: stopped in the midst of it by two, resumed by one; PPO by three as well."""
    recipe, begun, by_three = tmp_path / "recipe.json", tmp_path / "begun", tmp_path / "three"
    begin_by_two(recipe, WHOLE, list(POINTS))
    shutil.copytree(begun / "ppo", by_three / "ppo")
    end_by_one(recipe, list(POINTS))
    said_by_three = launched(3, str(recipe), str(by_three), "resume", "ppo")
    assert "saved by 2 processes; here there are 3" in said_by_three
    compare(tmp_path / "whole/ppo", by_three / "ppo/ppo")


@pytest.mark.slow
def test_whole_models_that_two_processes_train_in_parts_one_resumes_and_exports(tmp_path: Path) -> None:
    """Full fine-tuning with FSDP2: what two have begun one ends, and what they have ended one exports."""
    full = {"adapter": {"method": "full"}, "runtime": {"device": "cpu", "sharding": "fsdp2", "engine": "plain"}}
    recipe, by_two = tmp_path / "recipe.json", tmp_path / "two"
    begin_by_two(recipe, WHOLE | full, ["sft", "ppo"])
    shutil.copytree(tmp_path / "begun/ppo", by_two / "ppo")
    end_by_one(recipe, ["sft", "ppo"], 1e-4)
    launched(2, str(recipe), str(by_two), "resume", "ppo")
    compare(tmp_path / "whole/ppo", by_two / "ppo/ppo", 1e-4)
    exported = AutoModelForCausalLM.from_pretrained(export_stage(by_two / "ppo", "ppo", tmp_path / "exported"))
    stored = tensors_of(by_two / "ppo/ppo/model")
    assert len(stored) > 10
    for name, values in stored.items():
        np.testing.assert_array_equal(exported.get_parameter(name.partition(" ")[2]).detach(), values, err_msg=name)


def begin_by_two(recipe: Path, settings: dict[str, Any], names: list[str]) -> None:
    """A run by one process beside the recipe, and for each stage the same run in which two were stopped in it."""
    recipe.write_text(json.dumps(settings))
    whole, begun = recipe.parent / "whole", recipe.parent / "begun"
    Pipeline.from_recipe(json.loads(recipe.read_text()), run_dir=whole).run()
    for name in names:
        shutil.copytree(whole, begun / name)
        shutil.rmtree(begun / name / STAGES[name].folder)
    launched(2, str(recipe), str(begun), "stop", *names)
    assert not [name for name in names if (begun / name / STAGES[name].folder).exists()]


def end_by_one(recipe: Path, names: list[str], close: float = 1e-5) -> None:
    """One process ends each stage that two have begun, in what it alone would have ended in."""
    for name in names:
        said, run = list[str](), recipe.parent / "begun" / name
        progress = Progress(active=False)
        progress.say = said.append  # type: ignore[method-assign,assignment]
        Pipeline.from_recipe(json.loads(recipe.read_text()), run_dir=run).run(only=[name], progress=progress)
        assert any("saved by 2 processes; here there is 1" in text for text in said), said
        compare(recipe.parent / "whole" / STAGES[name].folder, run / STAGES[name].folder, close)


def compare(whole: Path, resumed: Path, close: float = 1e-5) -> None:
    """Weights to rounding; answers and rankings to the byte."""
    expected, found = tensors_of(whole), tensors_of(resumed)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=close, rtol=0, err_msg=name)
    for name in ("rankings.jsonl", "samples.jsonl"):
        assert not (whole / name).exists() or (whole / name).read_text() == (resumed / name).read_text()
