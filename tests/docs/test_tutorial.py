"""The tutorial, word for word: its files are written, its commands run in order, and what it says of them holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipelines.recipe.schema import load_recipe
from tests.docs.commands import TUTORIAL, shell

TEXT = TUTORIAL.read_text(encoding="utf-8")
FILES = dict(re.findall(r"(?m)^`([\w.]+)`:\n\n```(?:python|yaml)\n(.*?)^```", TEXT, re.DOTALL))
BLOCKS = re.findall(r"(?ms)^```sh\n(.*?)^```", TEXT)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def reader(folder: Path) -> Path:
    """An empty folder with the page's files, and ``trivet`` and ``python`` as the reader has them."""
    import sys

    (folder / "bin").mkdir()
    for name, module in (("trivet", " -m pipelines"), ("python", "")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n')
        script.chmod(0o755)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_page_has_its_files_and_commands() -> None:
    assert list(FILES) == ["make_data.py", "base.yaml", "mine.yaml", "polite.py"]
    assert len(COMMANDS) == 11 and all(c.startswith(("trivet ", "python ")) for c in COMMANDS)


def test_the_data_is_as_the_page_says(tmp_path: Path) -> None:
    folder = reader(tmp_path)
    done = [shell(command, folder) for command in COMMANDS[:2]]
    assert [d.returncode for d in done] == [0, 0], done[-1].stderr
    assert re.search(r"longer is better +33% of the pairs", done[1].stdout) and "share 240 prompts" in done[1].stdout
    for name in ("base.yaml", "mine.yaml"):
        load_recipe(folder / name)


@pytest.mark.slow
def test_the_tutorial_runs_and_ends_as_it_says(tmp_path: Path) -> None:
    folder = reader(tmp_path)
    said = {}
    for command in COMMANDS:
        done = shell(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        said[command] = done.stdout
    plan = said["trivet plan mine.yaml"]
    shown = [line.split() for line in re.search(r"(?ms)^```text\n stage(.*?)^```", TEXT)[1].splitlines()[1:]]  # type: ignore[index]
    told = [
        line.split() for line in plan.splitlines() if line.split()[:1] and line.split()[0] in ("sft", "reward", "ppo")
    ]
    assert [row[:6] + row[-2:] for row in told] == [row[:6] + row[-2:] for row in shown[:3]]
    results = json.loads((folder / "runs/mine/evaluation/results.json").read_text())
    assert results["prompts"] == 56
    ppo = next(c for c in results["comparisons"] if (c["a"], c["b"], c["by"]) == ("ppo", "sft", "gold"))
    assert ppo["ci95"][0] > 0.5
    card = json.loads((folder / "runs/mine/reward/report_card.json").read_text())
    assert card["accuracy"]["share"] > 0.95
    assert (folder / "comparison.html").is_file() and (folder / "aligned/model.safetensors").is_file()
    assert len((folder / "scored.jsonl").read_text().splitlines()) == 720
