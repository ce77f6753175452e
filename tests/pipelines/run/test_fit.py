"""Settings that fit a memory: found, written, told where they would help, and used at a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.common.errors import UserError
from models.backbone.device_memory import device_memory, parse_size
from pipelines import Pipeline
from pipelines.cli import main as cli
from pipelines.loading.load import load_recipe
from pipelines.run import plan_details
from pipelines.run.fit import CHECKPOINTING, Fit, halves, needed
from pipelines.stages.estimates import LIBRARIES
from pipelines.workspace.run_folder import read_run
from tests.support.memory_peak import make_data, make_folder, recipe_of
from tests.support.recipes import RECIPE, results

MB = 10**6


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fit")
    made = make_folder(folder / "base", 128)
    return recipe_of(made, make_data(folder / "data", rows=32), name="fit")


def fit_of(recipe: dict[str, Any], limit: int, tmp_path: Path) -> Fit:
    details = Pipeline.from_recipe(recipe, run_dir=tmp_path / "run").details
    return Fit(details.recipe, details.estimator, limit)


def peak_of(fit: Fit, name: str, settings: dict[str, Any]) -> int:
    parts = fit.takes(name, settings).parts
    assert parts is not None
    return needed(parts)


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("1.5g", 1_500_000_000), ("900", 900)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--fit") == size


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0GB", "24 potatoes"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match=r"--fit.*24GB"):
        parse_size(text, "--fit")


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = device_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device_memory(torch.device("cpu")) == alone // 2


def test_sizes_that_are_tried() -> None:
    assert list(halves(16, 1)) == [16, 8, 4, 2, 1]
    assert list(halves(24, 4)) == [24, 16, 8, 4]
    assert list(halves(1, 1)) == [1]


def test_what_is_found_fits_and_is_the_largest(recipe: dict[str, Any], tmp_path: Path) -> None:
    whole = fit_of(recipe, 10**12, tmp_path)
    assert not whole.best().misfits and whole.fits("sft", {CHECKPOINTING: False, "sft.micro_batch": 16})
    half = peak_of(whole, "sft", {CHECKPOINTING: False, "sft.micro_batch": 8})
    fit = fit_of(recipe, half, tmp_path)
    sizes = fit.sizes("sft", {CHECKPOINTING: False}, 4)
    assert sizes == {"sft.micro_batch": 8}
    assert not fit.fits("sft", {CHECKPOINTING: False, "sft.micro_batch": 16})
    smaller = fit_of(recipe, half - 1, tmp_path)
    assert smaller.sizes("sft", {CHECKPOINTING: False}, 4) == {"sft.micro_batch": 4}


def test_checkpointing_comes_before_tiny_batches(recipe: dict[str, Any], tmp_path: Path) -> None:
    whole = fit_of(recipe, 10**12, tmp_path)
    limit = peak_of(whole, "sft", {CHECKPOINTING: False, "sft.micro_batch": 4}) - 1
    found = fit_of(recipe | {"stages": ["sft"]}, limit, tmp_path).best()
    assert found.settings[CHECKPOINTING] is True and not found.misfits
    assert found.recipe.runtime.gradient_checkpointing is True


def test_a_size_that_nothing_fits_names_the_stages(recipe: dict[str, Any], tmp_path: Path) -> None:
    found = fit_of(recipe, LIBRARIES, tmp_path).best()
    assert found.misfits == ("sft", "reward", "ppo")
    assert fit_of(recipe, LIBRARIES, tmp_path).remedy("sft") is None
    assert fit_of(recipe, 10**12, tmp_path).remedy("sft") == {}


def memory_of(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A machine whose usable memory is ``size``."""
    monkeypatch.setattr(plan_details, "device_memory", lambda device: int(size / plan_details.USABLE) + 1)


def test_the_plan_tells_of_a_remedy(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    whole = fit_of(recipe, 10**12, tmp_path)
    never = recipe | {"runtime": recipe["runtime"] | {"gradient_checkpointing": False}}
    (tmp_path / "r.yaml").write_text(json.dumps(never))
    memory_of(monkeypatch, peak_of(whole, "sft", {CHECKPOINTING: False, "sft.micro_batch": 4}))
    assert cli.main(["plan", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "sft: needs about" in told and "--set sft.micro_batch=4" in told
    memory_of(monkeypatch, 10**12)
    assert cli.main(["plan", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]) == 0
    assert "needs about" not in capsys.readouterr().out


def test_a_recipe_that_fits_is_written_and_read(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    given, written = tmp_path / "r.yaml", tmp_path / "small.yaml"
    given.write_text(json.dumps(recipe))
    whole = fit_of(recipe, 10**12, tmp_path)
    size = max(peak_of(whole, n, {CHECKPOINTING: True}) for n in ("sft", "reward", "ppo"))
    fit = f"{int(size / plan_details.USABLE) + 10}B"
    assert cli.main(["plan", str(given), "--fit", fit, "--write", str(written)]) == 0
    told = capsys.readouterr().out
    assert "policy with optimizer" in told and "gradients" in told and "sampling cache" in told
    made = load_recipe(written)
    assert made.runtime.gradient_checkpointing in (True, False) and made.runtime.fit is None
    assert made.ppo.model_dump(exclude={"micro_batch", "sampling_batch"}) == load_recipe(given).ppo.model_dump(
        exclude={"micro_batch", "sampling_batch"}
    )
    assert cli.main(["plan", str(given), "--fit", fit, "--write", str(given)]) == 2
    assert json.loads(given.read_text()) == recipe
    assert cli.main(["plan", str(given), "--fit", "1MB"]) == 2
    assert cli.main(["plan", str(given), "--write", str(written)]) == 2
    assert cli.main(["plan", str(given), "--fit", "9GB", "--write", "/elsewhere/small.yaml"]) == 2
    assert cli.main(["plan", str(given), "--fit", "much"]) == 2


def run_of(changes: dict[str, Any], folder: Path) -> Pipeline:
    recipe = {k: v for k, v in RECIPE.items() if k not in ("evaluation", "ppo", "rankings", "reward")}
    recipe |= {"stages": ["pretrain", "sft"]}
    made = Pipeline.from_recipe(recipe | {"runtime": RECIPE["runtime"] | changes}, run_dir=folder)  # type: ignore
    made.run()
    return made


def test_nothing_is_said_to_fit_whose_base_is_not_there(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe | {"base": "qwen2.5-7b"}))
    assert cli.main(["plan", str(file), "--fit", "24GB", "--write", str(tmp_path / "fits.yaml")]) == 2
    shown = capsys.readouterr()
    assert "base qwen2.5-7b is not on this machine" in shown.err and "fit" not in shown.out
    assert not (tmp_path / "fits.yaml").exists()


def test_auto_decides_at_the_run_and_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run_of({"gradient_checkpointing": False}, tmp_path / "plain")
    memory_of(monkeypatch, LIBRARIES + 1)  # nothing fits
    auto = run_of({}, tmp_path / "auto")
    assert results(plain.run_dir) == results(auto.run_dir)
    made = read_made_with(auto)
    assert made == {"sft": True}
    assert set(read_made_with(plain).values()) == {False}
    assert {s.status for s in auto.plan()} == {"cached"}  # and stays finished, whatever the machine
    monkeypatch.undo()
    assert {s.status for s in auto.plan()} == {"cached"} and {s.status for s in plain.plan()} == {"cached"}
    assert read_run(auto.run_dir)["stages"]["sft"]["status"] == "done"


def read_made_with(pipeline: Pipeline) -> dict[str, bool]:
    import json

    folders = {name: pipeline.run_dir / name / "manifest.json" for name in ("sft",)}
    return {n: json.loads(f.read_text())["made_with"][CHECKPOINTING] for n, f in folders.items()}


def test_runtime_fit_chooses_sizes_at_the_run(tmp_path: Path) -> None:
    import json

    whole = Pipeline.from_recipe(RECIPE, run_dir=tmp_path / "none").details.fit
    size = peak_of(whole, "sft", {CHECKPOINTING: True, "sft.micro_batch": 2})
    recipe = RECIPE | {"stages": ["pretrain", "sft"]}
    recipe = {k: v for k, v in recipe.items() if k not in ("rankings", "reward", "ppo", "evaluation")}
    fit = f"{int(size / plan_details.USABLE) + 10}B"
    made = Pipeline.from_recipe(recipe | {"runtime": RECIPE["runtime"] | {"fit": fit}}, run_dir=tmp_path / "run")  # type: ignore
    made.run()
    noted = json.loads((tmp_path / "run" / "sft" / "manifest.json").read_text())["made_with"]
    assert noted["sft.micro_batch"] <= 8 and noted[CHECKPOINTING] in (True, False)
    assert {s.status for s in made.plan()} == {"cached"}


def test_a_stage_whose_result_is_given_takes_no_memory(recipe: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "sft").mkdir()
    pipeline = Pipeline.from_recipe(recipe, run_dir=tmp_path / "run", inputs={"sft": str(tmp_path / "sft")})
    fit = replace(pipeline.details.fit, limit=1)
    assert "sft" not in fit.stages and set(fit.best().misfits) == set(pipeline.stages)
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe))
    assert cli.main(["plan", str(file), "--fit", "64GB", "--input", f"sft={tmp_path / 'sft'}"]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert "sft" not in shown and "reward" in shown
