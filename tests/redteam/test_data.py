"""Hostile data files: refused by a UserError, or the bad rows rejected with file and line, within seconds."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.sources import DataConfig, load_records

GOOD = '{"prompt": "q", "completion": "a"}\n'


def load(folder: Path, source: str, kind: str = "demonstrations", **config):
    return load_records([source], kind, DataConfig(**config), seed=0, base_dir=folder)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "\\ud800", "completion": "a"}', "surrogate"),
        ('{"prompt": "q", "completion": %s}' % ("9" * 5000), "digits"),
        ('{"prompt": "q", "completion": NaN}', "usual size"),
        ('{"prompt": "q", "completion": 1e999}', "usual size"),
        ('{"prompt": "q", "completion": "\\u0000"}', "NUL"),
        ("[" * 100_000, "nested too deeply"),
        ('{"instruction": "q", "output": "a", "history": [["one"]]}', "history holds a turn of 1"),
        ('{"prompt": [{"role": ["user"], "content": "q"}], "completion": "a"}', "a turn of role"),
        ('{"prompt": "q", "responses": ["a", "b"], "ranks": [0.4, 0]}', "whole numbers"),
        ('{"prompt": "q", "responses": ["a", "b"], "scores": [1e400, 0]}', "finite"),
        ('{"prompt": "q", "responses": ["a", "b"], "scores": [%s, 0]}' % ("9" * 400), "finite"),
        (json.dumps({"prompt": "q", "responses": [str(i) for i in range(200_000)]}), "at most 1,000"),
    ],
)
def test_hostile_rows_are_rejected_with_file_and_line(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(GOOD + line + "\n")
    started = time.process_time()
    loaded = load(tmp_path, "rows.jsonl")
    assert len(loaded.records) == 1 and [r.source for r in loaded.rejected] == ["rows.jsonl:2"]
    assert reason in loaded.rejected[0].reason and len(loaded.rejected[0].reason) < 300
    assert time.process_time() - started < 5


def test_a_group_column_of_any_kind(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "q", "g": "x"}\n{"prompt": "r", "g": "\\udfff"}\n{"prompt": "s", "g": {}}\n'
    )
    loaded = load(tmp_path, "rows.jsonl", "prompts", group_by="g")
    assert len(loaded.records) == 1 and len(loaded.rejected) == 2


def test_a_small_file_that_unpacks_to_a_huge_one(tmp_path: Path) -> None:
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * (70 * 2**20), compresslevel=1))
    started = time.process_time()
    with pytest.raises(UserError, match="unpacks to more than"):
        load(tmp_path, "bomb.jsonl.gz")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "source",
    [
        "\x00",
        "a\x00.jsonl",
        "~no-such-user/x.jsonl",
        "x" * 5000,
        "a**b.jsonl",
        "/dev/zero",
        "demo-task?rows=999999999999",
        "demo-task?rows=\u00b2",
        "demo-task?rows=" + "9" * 5000,
        "hub:../../x",
    ],
)
def test_hostile_sources(source: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data.hub.hub_is_known", lambda: False)
    with pytest.raises(UserError):
        load(tmp_path, source)


def test_a_header_with_a_name_twice_would_lose_a_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text("prompt,completion,prompt\nq,a,r\n")
    pq.write_table(pa.table([pa.array(["q"]), pa.array(["r"])], names=["prompt", "prompt"]), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(UserError, match="'prompt' twice"):
            load(tmp_path, name, "prompts")


def test_a_fifo_is_no_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError):
        load(tmp_path, "pipe.jsonl")


def test_a_csv_header_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"\nprompt\rcompletion\na,b\n")
    (tmp_path / "old.csv").write_bytes(b"two\rpo\nt")
    for name in ("rows.csv", "old.csv"):
        with pytest.raises(UserError, match=name):
            load(tmp_path, name)
