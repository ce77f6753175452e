"""Every command of README and docs is run as it is written, or is listed with a reason why not."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines.workspace.store import Store
from tests.docs.commands import ROOT, all_commands, commands_of, help_examples, shell
from tests.docs.table import FIRST, NOT_RUN, QUICK, SLOW, reason_of
from tests.support.recipes import RECIPE


def test_commands_are_found_in_blocks_and_in_running_text() -> None:
    text = "Do `trivet plan\nx.yaml`, `make` or:\n\n    trivet ls; trivet gc   # both\n\n```sh\n$ pip install y\n```\n"
    assert [(c.line, c.text) for c in commands_of(text)] == [
        (4, "trivet ls"), (4, "trivet gc"), (7, "pip install y"), (1, "trivet plan x.yaml"),
    ]  # fmt: skip


def test_the_examples_of_every_help_are_found() -> None:
    found = {c.text for c in help_examples()}
    assert {"trivet ls ~/trivet-store", "trivet data fix chats.parquet", "trivet plan my.yaml --settings"} <= found
    assert all(c.startswith("trivet ") for c in found) and len(found) > 40


WRITTEN = sorted({c.text for c in all_commands()})
NAMES = [c for c in WRITTEN if len(c.split()) < 4 and any(other.startswith(f"{c} ") for other in WRITTEN)]
"""Commands that running text calls by name, without arguments, such as `trivet data check`."""


@pytest.mark.parametrize("command", [c for c in WRITTEN if c not in NAMES])
def test_every_command_is_classified(command: str) -> None:
    assert command in (FIRST, *QUICK, *SLOW) or reason_of(command), (
        f"{command}: add it to tests/docs/table.py, to be run or with the reason why it cannot be"
    )


def test_the_table_holds_nothing_that_is_not_written() -> None:
    assert not {FIRST, *QUICK, *SLOW} - {*WRITTEN}
    assert not [start for start in NOT_RUN if not any(c.startswith(start) for c in WRITTEN)]
    assert not set(QUICK) & set(SLOW) and not [c for c in (*QUICK, *SLOW) if reason_of(c)]


def lines(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has done the first run: recipe, data, and copies of that run by other names."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bin").mkdir()
    trivet = folder / "bin" / "trivet"
    trivet.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipelines "$@"\n')
    trivet.chmod(0o755)
    recipe = RECIPE | {"name": "mine", "runtime": {"threads": 1}}
    recipe["reward"] = RECIPE["reward"] | {"gate": False}  # type: ignore[operator]
    for name in ("mine", "my"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe | {"name": name}))
    lines(folder / "instructions.jsonl", {"prompt": "w1", "completion": "w2"}, {"prompt": "w3", "completion": "w4"})
    lines(
        folder / "chats.jsonl",
        {"prompt": "mail a@b.org", "completion": "<p>w2</p>"},
        {"prompt": "w3", "completion": "w4"},
    )
    lines(folder / "rankings.jsonl", {"prompt": "w1", "responses": ["w2", "w3"]})
    for name in ("prompts", "other_prompts"):
        lines(folder / f"{name}.jsonl", {"prompt": "write a poem"}, {"prompt": "tell a story"})
    lines(folder / "labelled.jsonl", {"prompt": "is it so", "completion": "yes"}, {"prompt": "or", "completion": "no"})
    lines(folder / "answers.jsonl", {"prompt": "w1", "response": "w2 w3"}, {"prompt": "w4", "response": "w5"})
    lines(folder / "new.jsonl", {"prompt": "write a poem"}, {"prompt": "tell a story"})
    lines(folder / "train.jsonl", {"question": "w1", "completion": "w2", "meta_id": 1})
    lines(folder / "held_out.jsonl", {"prompt": "w3", "completion": "w4"})
    pq.write_table(pa.table({"prompt": ["w1", "w3"], "completion": ["w2", "w4"]}), folder / "chats.parquet")
    (folder / "answers.csv").write_text("prompt,reply\nw1,w2 w3\nw4,w5\n")
    (folder / "my.py").write_text("def kindness(completions, **kwargs):\n    return [len(c) for c in completions]\n")
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "store").mkdir()
    done = shell(FIRST, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("demo", "other", "less-kl"):
        shutil.copytree(folder / "runs/mine", folder / "runs" / name)
    shutil.copytree(folder / "runs/mine/sft", folder / "adapters/sft")
    shutil.copytree(folder / "runs/mine/pretrain/model", folder / "my-base")
    return folder


@pytest.mark.parametrize("command", [*QUICK, *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)])
def test_the_command_runs_as_it_is_written(command: str, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(world, folder)
    if command.startswith(("torchrun", "accelerate")):
        shutil.rmtree(folder / "runs/mine")
    if "my.yaml" in command and "--store" not in command:  # the reader has run it before
        shutil.copytree(folder / "runs/mine", folder / "runs/my")
    if "~/trivet-store" in command and "my.yaml" not in command:
        Store(folder / "trivet-store")
    done = shell(command, folder)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    if command.startswith("torchrun"):
        made = json.loads((folder / "runs/mine/ppo/manifest.json").read_text())
        assert made["made_with"]["processes"] == 2 and made["described"]["runtime"]["device"] == "cpu"
