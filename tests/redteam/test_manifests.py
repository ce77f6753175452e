"""Damaged and hostile manifests and ``run.json``: one clear error by name; nothing outside the folder is touched."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from data.common.strict_json import object_of, read_object
from models.backbone.artifacts import Artifact, load_artifact, publish, read_artifact
from pipelines.cli import main as cli
from pipelines.workspace.run_folder import read_run
from pipelines.workspace.store import Store

KEY = "a" * 64


@pytest.fixture
def made(tmp_path: Path) -> Path:
    part = tmp_path / "run/.sft.partial"
    part.mkdir(parents=True)
    (part / "w.safetensors").write_text("weights")
    publish(part, tmp_path / "run/sft", {"stage": "sft", "key": KEY})
    (tmp_path / "run/recipe.yaml").write_text("name: r\n")
    (tmp_path / "outside").write_text("weights")
    return tmp_path / "run"


ENTRY = {"sha256": "b" * 64, "bytes": 7}
TEXTS: dict[str, bytes] = {
    "truncated": b'{"format": 1, "key": "',
    "empty": b"",
    "not UTF-8": b'{"format": 1, "key": "\xff"}',
    "a key twice": b'{"format": 1, "key": "a", "key": "b", "files": {}}',
    "a list": b"[]",
    "nested": b'{"a": ' + b"[" * 100_000,
    "digits": b'{"format": ' + b"9" * 5000 + b"}",
    "binary": b"\x00" * 100,
}
SHAPES: dict[str, dict[str, Any]] = {
    "another format": {"format": 2},
    "no files": {"files": None},
    "files as a list": {"files": ["w.safetensors"]},
    "a file above": {"files": {"../outside": ENTRY}},
    "a file above, hidden": {"files": {"a/../../outside": ENTRY}},
    "an absolute file": {"files": {"/etc/passwd": ENTRY}},
    "a Windows file": {"files": {"..\\outside": ENTRY}},
    "a file without a name": {"files": {"": ENTRY}},
    "NUL": {"files": {"a\x00b": ENTRY}},
    "a log above": {"logs": {"../outside": ENTRY}},
    "bytes as text": {"files": {"w.safetensors": ENTRY | {"bytes": "7"}}},
    "bytes below zero": {"files": {"w.safetensors": ENTRY | {"bytes": -7}}},
    "no hash": {"files": {"w.safetensors": {"bytes": 7}}},
    "another hash's shape": {"files": {"w.safetensors": ENTRY | {"sha256": "x"}}},
    "a key that is a number": {"key": 7},
    "an endless key": {"key": "a" * 10_000},
    "parents as text": {"parents": "sft"},
    "metrics as a list": {"metrics": []},
}


def check_refused(made: Path) -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=r"manifest\.json: (damaged|is not|missing)") as error:
        load_artifact(made / "sft", "sft stage")
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert read_artifact(made / "sft") is None and time.process_time() - started < 2
    assert cli.main(["verify", str(made)]) == 2


@pytest.mark.parametrize("name", TEXTS)
def test_a_manifest_that_is_none(name: str, made: Path) -> None:
    (made / "sft/manifest.json").write_bytes(TEXTS[name])
    check_refused(made)


@pytest.mark.parametrize("name", SHAPES)
def test_a_manifest_of_another_shape(name: str, made: Path) -> None:
    manifest = json.loads((made / "sft/manifest.json").read_text())
    (made / "sft/manifest.json").write_text(json.dumps(manifest | SHAPES[name]))
    check_refused(made)


def test_a_huge_manifest_is_not_read(made: Path) -> None:
    with (made / "sft/manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="too many"):
        load_artifact(made / "sft", "sft stage")


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "manifest.json", "../../outside", "../../nowhere"])
def test_a_manifest_that_is_a_link_or_a_device(target: str, made: Path) -> None:
    file = made / "sft/manifest.json"
    if target == "../../outside":
        (made.parent / "outside").write_text(file.read_text())
    file.unlink()
    if target == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(target)
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_artifact(made / "sft", "sft stage")


def test_nothing_is_copied_out_of_an_entry_to_elsewhere(made: Path, tmp_path: Path) -> None:
    """Even if a manifest that names other places came past the reader."""
    found = read_artifact(made / "sft")
    assert found is not None
    store = Store(tmp_path / "store")
    manifest = dict(found.manifest) | {"files": {"../owned": ENTRY}}
    (made / "owned").write_text("x")  # beside the stage, and to be copied beside the store's half-written entry
    with pytest.raises(ValueError, match="outside its folder"):
        store.put(Artifact(path=found.path, manifest=manifest))
    assert not list(store.root.rglob("owned")) and store.keys() == []


RUNS: dict[str, Any] = {
    "stages as a list": {"stages": []},
    "a stage as text": {"stages": {"sft": "done"}},
    "time as text": {"stages": {"sft": {"status": "done", "seconds": "1"}}},
    "time without end": {"stages": {"sft": {"status": "done", "seconds": float("inf")}}},
    "inputs as numbers": {"inputs": {"sft": 1}},
    "a folder that is none": {"recipe_folder": 3},
}


@pytest.mark.parametrize("name", [*TEXTS, *RUNS])
@pytest.mark.parametrize("command", ["verify", "gc", "ls"])
def test_a_run_json_that_is_none(name: str, command: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = TEXTS[name] if name in TEXTS else json.dumps(RUNS[name]).encode()
    (made / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json: damaged.*remove it"):
        read_run(made)
    assert cli.main([command, str(made)]) == 2
    out = capsys.readouterr()
    assert "run.json: damaged" in out.out + out.err and "Traceback" not in out.err


@pytest.mark.parametrize("change", [lambda p: p.symlink_to("/dev/zero"), lambda p: os.mkfifo(p), lambda p: p.mkdir()])
def test_a_run_json_that_is_no_file(change: Callable[[Path], object], made: Path) -> None:
    change(made / "run.json")
    with pytest.raises(UserError, match=r"run\.json: is not a regular file"):
        read_run(made)


def test_objects_are_read_as_json_reads_them(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, {"b": "é\u2028"}], "": {}}
    (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_object(tmp_path / "x.json") == value
    with pytest.raises(UserError, match=r"the key 'b' is given twice"):
        object_of('{"a": {"b": 1, "b": 2}}', "x")
