"""The store: sharing by key, damage, races, half-written entries."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from data.common.errors import UserError
from models.backbone.artifacts import Artifact, problems, publish, read_artifact
from pipelines.workspace.store import Store

KEY = "a" * 64


def stage(folder: Path, key: str = KEY, text: str = "weights") -> Artifact:
    part = folder.with_name(f".{folder.name}.partial")
    (part / "adapter").mkdir(parents=True)
    (part / "adapter/a.safetensors").write_text(text)
    (part / "metrics.jsonl").write_text("{}\n")
    return publish(part, folder, {"stage": "sft", "key": key})


def test_a_stage_goes_from_one_run_to_another(tmp_path: Path) -> None:
    Store(tmp_path / "store").put(stage(tmp_path / "one"))
    store = Store(tmp_path / "store")
    got = store.fetch(KEY, tmp_path / "two")
    assert got is not None and not problems(got) and (tmp_path / "two/metrics.jsonl").is_file()
    assert store.fetch("b" * 64, tmp_path / "three") is None and store.fetch("../one", tmp_path / "three") is None
    assert set(store.users(KEY)) == {tmp_path / "one", tmp_path / "two"}
    (tmp_path / "two/adapter/a.safetensors").write_text("altered")
    assert store.verify() == [] and not problems(stage_at(tmp_path / "one"))


def stage_at(path: Path) -> Artifact:
    found = read_artifact(path)
    assert found is not None
    return found


def test_a_damaged_entry_is_never_used_and_is_replaced(tmp_path: Path) -> None:
    store, made = Store(tmp_path / "store"), stage(tmp_path / "one")
    store.put(made)
    (store.entries / KEY / "adapter/a.safetensors").write_text("weighty")
    assert "altered" in store.verify()[0]
    assert store.fetch(KEY, tmp_path / "two") is None and not (tmp_path / "two").exists()
    store.put(made)
    assert store.fetch(KEY, tmp_path / "two") is not None
    (store.entries / KEY / "manifest.json").write_text("{")
    assert "manifest.json: damaged" in store.verify()[0]
    store.put(made)
    assert store.verify() == []


def test_a_half_written_entry_is_never_used_and_can_be_removed(tmp_path: Path) -> None:
    store, made = Store(tmp_path / "store"), stage(tmp_path / "one")
    left = store.partial / f"{KEY}.dead"
    (left / "adapter").mkdir(parents=True)
    assert store.fetch(KEY, tmp_path / "two") is None
    assert list(store.unneeded(0)) == [left]
    store.put(made)
    assert left in list(store.unneeded(0)) and store.entries / KEY not in list(store.unneeded(0))  # run "one" holds it


def put(root: Path, number: int) -> None:
    store = Store(root / "store")
    store.put(stage(root / f"run{number}"))
    assert store.fetch(KEY, root / f"copy{number}") is not None


def test_processes_that_finish_the_same_stage_all_succeed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    all_of = [context.Process(target=put, args=(tmp_path, n)) for n in range(6)]
    for p in all_of:
        p.start()
    for p in all_of:
        p.join(30)
    assert [p.exitcode for p in all_of] == [0] * 6
    store = Store(tmp_path / "store")
    assert store.keys() == [KEY] and store.verify() == [] and not list(store.partial.glob("*"))


def test_another_folder_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is no store"):
        Store(tmp_path)
    with pytest.raises(UserError, match="is no store"):
        Store(tmp_path / "new", make=False)
