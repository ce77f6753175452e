"""``trivet data fix``: a clean copy with everything that was not cleaned, and a list of the rest."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from data.cleaning.settings import CleanConfig
from data.common.errors import UserError
from data.fix import DEFAULT, fix_file, usual_copy
from data.source_settings import Source
from data.sources import DataConfig
from data.splits import load_corpus
from pipelines.cli.main import main


def write(path: Path, rows: list[Any]) -> Path:
    lines = (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ROWS: list[Any] = [
    {"id": 7, "prompt": "cafe\u0301?", "completion": "yes", "own": ["a\u200bb"]},
    {"id": 8, "prompt": "q", "completion": "as it is"},
    "{broken",
    {"id": 8, "prompt": "q", "completion": "as it is\u200b"},
    {"nothing": 1},
]


def test_the_copy_keeps_what_was_not_cleaned_and_the_list_names_the_rest(tmp_path):
    file, out = write(tmp_path / "a.jsonl", ROWS), tmp_path / "b.jsonl"
    fixed = fix_file(file, out)
    assert read(out) == [{"id": 7, "prompt": "café?", "completion": "yes", "own": ["ab"]}, ROWS[1]]
    assert (fixed.read, fixed.written, fixed.bad, fixed.lost) == (5, 2, 2, 3)
    first, broken, same, nothing = read(fixed.changes)
    assert first == {
        "place": f"{file}:1",
        "changed": {"unicode in NFC": 1, "control and zero-width characters removed": 1},
        "before": {"prompt": "cafe\u0301?", "own": ["a\u200bb"]},
        "after": {"prompt": "café?", "own": ["ab"]},
    }
    assert broken["place"] == f"{file}:3" and broken["dropped"].startswith("it cannot be read: not JSON")
    assert same == {"place": f"{file}:4", "dropped": "the same as one before", "first": f"{file}:2"}
    assert nothing["place"] == f"{file}:5" and nothing["dropped"].startswith("it is no row of data")
    assert file.read_text(encoding="utf-8").count("\u200b") == 2, "the file itself is left alone"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "b.jsonl.changes.jsonl"]


def test_a_copy_is_what_the_same_cleaning_in_a_recipe_makes(tmp_path):
    rows = [{"prompt": f"Mail u{i}@b.org", "completion": f"<p>Done {i // 2}</p>"} for i in range(6)]
    rows += [{"prompt": "Name a river", "chosen": "The Ebro.", "rejected": "x" * 50}, rows[0]]
    write(tmp_path / "a.jsonl", rows)
    clean = {"mask": "email", "markup": True, "duplicates": "exact", "max_characters": 40}
    fix_file(tmp_path / "a.jsonl", tmp_path / "b.jsonl", CleanConfig.model_validate(clean))
    settings = {"demonstrations": "a.jsonl", "held_out": 0.0, "clean": clean}
    cleaned = load_corpus(DataConfig.model_validate(settings), seed=0, base_dir=tmp_path)
    copied = load_corpus(DataConfig(demonstrations=("b.jsonl",), held_out=0.0), seed=0, base_dir=tmp_path)
    assert len(copied.demonstrations.train) == 3
    assert copied.fingerprint("demonstrations") == cleaned.fingerprint("demonstrations")


def test_every_kind_of_copy_is_read_as_the_file(tmp_path):
    rows = [{"prompt": f'a, "b"\t{i}\nc', "completion": "é\u200bü", "tags": ["x", {"y": 1}]} for i in range(3)]
    file = write(tmp_path / "a.jsonl", rows)
    copies = {s: fix_file(file, tmp_path / f"b{s}").out for s in (".jsonl", ".json", ".csv", ".tsv")}
    found = {}
    for suffix, copy in copies.items():
        made = load_corpus(DataConfig(demonstrations=(copy.name,), held_out=0.0), seed=0, base_dir=tmp_path)
        found[suffix] = [(d.prompt.text, d.answer) for d in made.demonstrations.train]
    assert set(map(tuple, found.values())) == {tuple((r["prompt"], "éü") for r in rows)}
    assert (
        json.loads(next(csv.DictReader(copies[".csv"].open(encoding="utf-8", newline="")))["tags"]) == rows[0]["tags"]
    )
    (tmp_path / "t.txt").write_text("one\u200b\n\ntwo\n\none\n", encoding="utf-8")
    assert fix_file(tmp_path / "t.txt", tmp_path / "u.txt").out.read_text(encoding="utf-8") == "one\n\ntwo\n\n"


def test_a_line_of_several_rows_stays_with_one(tmp_path):
    row = {"instruction": "Add", "instances": [{"input": "1", "output": "a"}, {"input": "2", "output": "long enough"}]}
    file = write(tmp_path / "a.jsonl", [row, row])
    fixed = fix_file(file, tmp_path / "b.jsonl", CleanConfig(min_characters=5, duplicates="exact"))
    assert read(fixed.out) == [row] and read(fixed.changes)[0]["dropped"] == "the same as one before"


def test_nothing_is_overwritten_or_left_half_written(tmp_path, monkeypatch):
    file, out = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", ["mine"])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for target, why in {
        out: "is there already.*--overwrite",
        tmp_path / "b.xlsx": "one of these suffixes",
        tmp_path / "none" / "b.jsonl": "there is no folder",
    }.items():
        with pytest.raises(UserError, match=why):
            fix_file(file, target)
    with pytest.raises(UserError, match="is the file itself"):
        fix_file(file, file, overwrite=True)
    with pytest.raises(UserError, match="none of its 5 rows is left"):
        fix_file(file, tmp_path / "c.jsonl", CleanConfig(min_characters=100))
    with pytest.raises(UserError, match=r"is not there.*Did you mean 'a\.jsonl'"):
        fix_file(tmp_path / "aa.jsonl", tmp_path / "c.jsonl")
    monkeypatch.setattr("data.fix.json.dumps", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="cannot be written"):
        fix_file(file, tmp_path / "c.jsonl")
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert fix_file(file, out, DEFAULT, overwrite=True).written == 2 and len(read(out)) == 2


def test_columns_that_nobody_reads_stay_and_names_are_mapped(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"question": "q\u200b", "completion": "a", "remark": "kept"}])
    fixed = fix_file(file, tmp_path / "b.jsonl", reading=Source(path="-", columns={"prompt": "question"}))
    assert read(fixed.out) == [{"question": "q", "completion": "a", "remark": "kept"}]


def test_the_command(tmp_path, capsys):
    file = write(
        tmp_path / "a.jsonl", [{"prompt": "Mail a@b.org", "completion": "x"}, {"prompt": "p", "completion": "y"}]
    )
    out = tmp_path / "b.jsonl"
    command = ["data", "fix", str(file), "--out", str(out)]
    assert main([*command, "--clean", "mask=[email]", "duplicates=near"]) == 0
    said = capsys.readouterr().out
    assert f"1 rows email masked; the first is {file}:1" in said and f"2 rows read, 2 written to {out}" in said
    assert main([*command, "--overwrite", "--clean", "maks=[email]"]) == 2
    assert "Did you mean 'mask'" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--clean", "min_characters=0"]) == 2
    assert "--clean min_characters: Input should be greater than or equal to 1" in capsys.readouterr().err
    assert main([*command]) == 2 and "--overwrite" in capsys.readouterr().err
    assert read(out)[0]["prompt"] == "Mail [EMAIL]"


def test_a_parquet_file_becomes_one_with_the_same_columns_and_types(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))),
            ("id", pa.int32()),
            ("at", pa.timestamp("ms")),
            ("empty", pa.list_(pa.int8())),
        ]
    )
    turns = [{"role": "user", "content": "q\u200b"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"messages": [dict(turns[0], content=f"q{i}\u200b"), turns[1]], "id": i, "at": i, "empty": []} for i in range(3)
    ]
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([*rows, rows[0]], schema=schema), file)
    assert main(["data", "fix", str(file)]) == 0
    copy = pq.read_table(tmp_path / "a.fixed.parquet")
    assert copy.schema == schema and copy.column("id").to_pylist() == [0, 1, 2]
    assert [m[0]["content"] for m in copy.column("messages").to_pylist()] == ["q0", "q1", "q2"]
    assert copy.column("at").to_pylist() == pq.read_table(file).column("at").to_pylist()[:3]


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("a.b.csv", "a.b.fixed.csv"),
        ("a.tsv", "a.fixed.jsonl"),
        ("a", "a.fixed.jsonl"),
        ("a.v1.CSV.gz", "a.v1.fixed.csv"),
    ],
)
def test_the_usual_copy(name, copy):
    assert usual_copy(Path("x", name)) == Path("x", copy)


def test_rows_of_other_columns_are_no_parquet(tmp_path):
    file = write(
        tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": "q", "completion": "c", "id": 3}]
    )
    with pytest.raises(UserError, match=r"columns that the first has not \(id\)|do not fit"):
        fix_file(file, tmp_path / "b.parquet")
    assert not (tmp_path / "b.parquet").exists()
    write(file, [{"prompt": "p", "completion": "c", "id": 1}, {"prompt": "q", "completion": "c", "id": 3}])
    assert fix_file(file, tmp_path / "b.parquet").written == 2


@pytest.mark.parametrize("name", ["copy.jsonl", "copy.json", "copy.csv", "copy.tsv"])
def test_bytes_of_a_parquet_file_are_no_text(tmp_path: Path, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {"prompt": ["a"], "completion": ["b"], "raw": [b"\x00\xff"]}
    pq.write_table(pa.table(row), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"a row holds bytes, which no text can; write \.parquet"):
        fix_file(tmp_path / "rows.parquet", tmp_path / name)
    assert not (tmp_path / name).exists()
    fix_file(tmp_path / "rows.parquet", tmp_path / "copy.parquet")
    assert pq.read_table(tmp_path / "copy.parquet").to_pydict() == row


def test_a_time_is_written_to_a_table_as_it_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    when = datetime.datetime(2020, 1, 2, 3, 4, 5)
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"], "created_at": [when]}), tmp_path / "rows.parquet")
    fix_file(tmp_path / "rows.parquet", tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_text() == "prompt,completion,created_at\na,b,2020-01-02 03:04:05\n"


@pytest.mark.parametrize(("name", "text"), [("a.json", "[]"), ("a.csv", "prompt,completion\n")])
def test_a_file_without_a_row_says_so_and_leaves_no_copy(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: holds no row, only a header or blank lines$"):
        fix_file(tmp_path / name, tmp_path / "b.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == [name]
