"""The report checks what it reads where it reads it: other shapes are left out by name, and errors of ours rise."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import page as report
from pipelines.report import words as report_words
from pipelines.report.page import page_of, view, write_report
from pipelines.report.run_files import read_run

FILES = ["run.json", "evaluation/results.json", "reward/report_card.json", "reward/manifest.json", "ppo/manifest.json"]
OTHERS: list[Any] = [None, True, -1, 0.5, 10**400, "x", [], ["x"], [None, 1], {}, {"mean": "x"}, {"x": 1}]


def changed(value: Any, put: Any) -> Iterator[Any]:
    """Copies of a JSON value, each with another inner value replaced (in lists the first one alone)."""
    places = list(value) if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ()
    for place in places:
        out = copy.copy(value)
        out[place] = put
        yield out
        for inner in changed(value[place], put):
            out = copy.copy(value)
            out[place] = inner
            yield out


@pytest.fixture
def demo(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "demo"))


@pytest.mark.parametrize("name", FILES)
def test_any_value_of_any_file_may_be_of_another_shape(demo: Path, name: str) -> None:
    for slow in ("evaluation/samples.jsonl", "ppo/metrics.jsonl"):
        (demo / slow).unlink()
    file, rng = demo / name, random.Random(name)
    good = json.loads(file.read_text(encoding="utf-8"))
    noted = 0
    for put in OTHERS:
        every = list(changed(good, put))
        for bad in rng.sample(every, min(8, len(every))):
            file.write_text(json.dumps(bad), encoding="utf-8")
            files = read_run(demo)
            view(files)
            noted += any(Path(name).name in note for note in files.notes)
    assert noted > 3


@pytest.mark.parametrize("name", ["ppo/metrics.jsonl", "evaluation/samples.jsonl"])
def test_rows_of_another_shape_are_counted_and_the_others_kept(demo: Path, name: str) -> None:
    file = demo / name
    rows = file.read_text(encoding="utf-8").splitlines()
    rows[1:3] = [json.dumps({"step": "two", "systems": {"ppo": 3}}), json.dumps({"step": [], "systems": None})]
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    files = read_run(demo)
    assert len(files.metrics["ppo"] if "metrics" in name else files.samples) == len(rows) - 2
    assert any(f"{name}: 2 of {len(rows)} rows are not of the shape that trivet writes" in n for n in files.notes)
    view(files)


def test_what_is_left_out_is_named_with_its_place(demo: Path) -> None:
    file = demo / "evaluation/results.json"
    results = json.loads(file.read_text(encoding="utf-8"))
    results["comparisons"][0]["win_rate"] = "most"
    file.write_text(json.dumps(results), encoding="utf-8")
    files = read_run(demo)
    assert files.results == {} and len(files.notes) == 1
    assert files.notes[0].startswith("evaluation/results.json: not of the shape that trivet writes (comparisons.0.win_")
    assert "comparisons.0.win_rate" in write_report(demo).read_text(encoding="utf-8")


def test_an_error_of_ours_is_no_damage_of_the_files(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> dict[str, str]:
        return dict[str, dict[str, str]]()["ours"]

    monkeypatch.setattr(report, "headline", broken)
    with pytest.raises(KeyError, match="ours"):
        page_of(read_run(demo))
    assert report_words.headline is not broken
