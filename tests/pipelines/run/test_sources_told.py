"""What became of the rows of every source is told before the first stage, kept in run.json and shown by the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.sources import DataConfig
from data.splits import load_corpus
from pipelines.report.stage_facts import sources
from pipelines.run import rehearsal


def corpus(folder: Path) -> Any:
    rows = [json.dumps({"prompt": f"p{i}", "completion": f"a{i}", "score": i % 4}) for i in range(40)]
    (folder / "a.jsonl").write_text("\n".join([*rows, "{broken", json.dumps({"prompt": "p", "completion": 3.5e400})]))
    source = {"path": "a.jsonl", "where": "prompt != 'p0'", "limit": 30}
    config = DataConfig.model_validate({"demonstrations": [source], "held_out": 0.3})
    return load_corpus(config, seed=0, base_dir=folder)


def test_each_source_is_told_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = corpus(tmp_path)
    monkeypatch.setattr(rehearsal, "check_start", lambda *_, **__: None)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_, **__: None)
    monkeypatch.setattr(rehearsal, "check_keys", lambda *_, **__: None)
    monkeypatch.setattr(rehearsal, "unanswered", lambda *_, **__: [])
    told: list[str] = []
    pipeline: Any = SimpleNamespace(
        recipe=None,
        corpus=found,
        processes=SimpleNamespace(unused_devices=""),
        run_dir=tmp_path,
        details=SimpleNamespace(sharding=""),
    )
    progress: Any = SimpleNamespace(say=told.append, warn=told.append)
    rehearsal.before_first_stage(pipeline, progress, ["sft"])
    count = found.counts[0]
    assert (count.read, count.rejected, count.where, count.used, count.not_sampled) == (42, 2, 1, 30, 9)
    assert count.held_out == len(found.demonstrations.held_out) > 0
    assert told[0] == (
        "demonstrations: a.jsonl: 42 rows read, 2 rejected, 1 left out by where, 9 not sampled, "
        f"{count.held_out} held out"
    )
    files: Any = SimpleNamespace(run={"sources": [count.as_dict()]})
    assert sources(files) == [
        (
            "a.jsonl (demonstrations)",
            {
                "read": "42", "rejected": "2", "where": "1", "not sampled": "9", "used": "30",
                "held out": str(count.held_out),
            },
        )
    ]  # fmt: skip
    assert sources(SimpleNamespace(run={})) == [] == sources(SimpleNamespace(run={"sources": "x"}))  # type: ignore[arg-type]
