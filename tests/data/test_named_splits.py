"""Files, members of a zip and sheets of which some are for training and others held out are never read together."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from pathlib import Path

import openpyxl
import pytest

from data.common.errors import UserError
from data.source_counts import Loaded
from data.source_settings import Source
from data.sources import DataConfig, load_records


def load(folder: Path, source: str | Source) -> Loaded:
    return load_records([source], "demonstrations", DataConfig(), seed=0, base_dir=folder)


def write(path: Path, text: str = "q") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    row = (json.dumps({"prompt": text, "completion": "c"}) + "\n").encode()
    path.write_bytes(gzip.compress(row) if path.suffix == ".gz" else row)


@pytest.mark.parametrize(
    ("files", "splits", "split", "read"),
    [
        (["train.jsonl", "test.jsonl"], "test, train", "train", ["train.jsonl"]),
        (["train.jsonl", "notes.jsonl", "dev.jsonl"], "dev, train", "dev", ["dev.jsonl"]),
        (["my-Training.jsonl", "my-eval.jsonl"], "Training, eval", "training", ["my-Training.jsonl"]),
        (
            ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"],
            "test, train",
            "train",
            ["train/a.jsonl", "train/b.jsonl"],
        ),
        (["x/train.jsonl.gz", "x/test.jsonl.gz", "y/train.jsonl"], "test, train", "test", ["x/test.jsonl.gz"]),
        (
            ["d/train-00000-of-00002.jsonl", "d/train-00001-of-00002.jsonl", "d/test-00000-of-00001.jsonl"],
            "test, train",
            "train",
            ["d/train-00000-of-00002.jsonl", "d/train-00001-of-00002.jsonl"],
        ),
        (
            ["train_sft-00000-of-00001.jsonl", "train_gen-00000-of-00001.jsonl"],
            "train_gen, train_sft",
            "train_gen",
            ["train_gen-00000-of-00001.jsonl"],
        ),
        (["c4-train.00000-of-00002.jsonl", "c4-validation.00000-of-00001.jsonl"], "validation", "train", None),
    ],
)
def test_files_of_several_splits_are_not_mixed(
    tmp_path: Path, files: list[str], splits: str, split: str, read: list[str] | None
) -> None:
    """Of a folder, a pattern and a zip: what is held out would else be trained on."""
    for name in files:
        write(tmp_path / "d" / name, name)
    sources = ["d", "d/**/*.jsonl*"]
    if not any(name.endswith(".gz") for name in files):
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            for name in files:
                archive.write(tmp_path / "d" / name, name)
        sources.append("z.zip")
    for source in sources:
        with pytest.raises(UserError, match=rf"{re.escape(source)} holds several splits: .*{splits}; choose one"):
            load(tmp_path, source)
        with pytest.raises(UserError, match=r"of it is of split 'nope'|split 'nope' has no effect"):
            load(tmp_path, Source(path=source, split="nope"))
        found = load(tmp_path, Source(path=source, split=split))
        expected = read if read is not None else [files[0]]
        assert sorted(r.prompt.text for r in found.records) == sorted(expected)


def test_a_part_of_a_split_is_asked_for_by_its_whole_name(tmp_path: Path) -> None:
    for name in ("train_sft", "train_gen"):
        write(tmp_path / f"d/{name}-00000-of-00001.jsonl")
    with pytest.raises(UserError, match="several splits: train_gen, train_sft"):
        load(tmp_path, Source(path="d", split="train"))


@pytest.mark.parametrize(
    "files",
    [
        ["train.jsonl", "more.jsonl"],  # one that says nothing is no split
        ["train_a.jsonl", "train_b.jsonl"],
        ["a/train-00000-of-00001.jsonl", "b/train-00000-of-00001.jsonl"],  # two sets
        ["de-00000-of-00001.jsonl", "en-00000-of-00001.jsonl"],
        ["train_test_split.jsonl", "contest.jsonl", "testament.jsonl", "latest.jsonl"],
    ],
)
def test_files_that_are_of_one_split_are_read_together(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        write(tmp_path / "test" / name, name)
    for source in ("test", "test/**/*.jsonl", str(tmp_path / "test/**/*.jsonl")):
        assert len(load(tmp_path, source).records) == len(files)


def test_sheets_of_several_splits_are_not_mixed(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "train"
    for sheet in (book.active, book.create_sheet("test")):
        for row in (["prompt", "completion"], [sheet.title, "c"]):
            sheet.append(row)
    book.save(tmp_path / "b.xlsx")
    with pytest.raises(UserError, match=r"b\.xlsx holds several splits: train, test"):
        load(tmp_path, "b.xlsx")
    assert [r.prompt.text for r in load(tmp_path, Source(path="b.xlsx", split="test")).records] == ["test"]


@pytest.mark.parametrize("key", ["config", "revision", "data_dir"])
def test_settings_of_hub_data_sets_are_refused_for_a_pattern(tmp_path: Path, key: str) -> None:
    write(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=f"{key} is for hub data sets, and this is a pattern"):
        load(tmp_path, Source(path="*.jsonl", **{key: "x"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"train": [{"prompt": "q", "completion": "c"}]}', r"holds no list 'test'; it holds train \(1 rows\)"),
        ('{"prompt": "q", "completion": "c"}', "split 'test' has no effect: it holds no lists by name"),
        ('{"prompt": "q", "completion": "c"}\n{"prompt": "r", "completion": "c"}', "split 'test' has no effect"),
        ('[{"prompt": "q", "completion": "c"}]', "split 'test' has no effect"),
        ('{"prompt": ["q", "r"], "completion": ["c", "d"]}', "split 'test' has no effect"),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_a_split_that_a_file_does_not_hold_is_refused(
    tmp_path: Path, text: str, words: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the only list was taken whatever its name, and rows that are in none were read all the same."""
    monkeypatch.setattr("data.readers.json_rows.is_large", lambda content: large)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=words):
        load(tmp_path, Source(path="a.json", split="test"))
