"""Files of every kind to records, bad input with its place, and the real files beside the checkout."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.common.errors import UserError
from data.formats import Reject, parse
from data.source_settings import Source
from data.sources import DataConfig, load_records, parse_file

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = [{"prompt": "q1", "completion": "a1"}, {"prompt": "q2", "completion": 'ä,2\t"x"\nnext'}]


def load(folder: Path, source: str | Source, kind: str = "demonstrations", **config):
    return load_records([source], kind, DataConfig(**config), seed=0, base_dir=folder)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path.name


def lines(rows, end="\n") -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + end for r in rows)


def test_same_records_from_every_kind_of_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path / "a.jsonl", lines(ROWS))
    write(tmp_path / "b.json", json.dumps(ROWS, indent=1))
    write(tmp_path / "c.json", json.dumps({"data": ROWS}))
    write(tmp_path / "d.json", lines(ROWS))
    with open(tmp_path / "e.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    write(tmp_path / "g.jsonl.gz", gzip.compress(lines(ROWS).encode()))
    write(tmp_path / "h.jsonl", b"\xef\xbb\xbf" + lines(ROWS, "\r\n").encode())
    write(tmp_path / "i.jsonl", lines(ROWS).encode("utf-16"))
    expected = [(r["prompt"], r["completion"]) for r in ROWS]
    for path in sorted(tmp_path.iterdir()):
        loaded = load(tmp_path, path.name)
        assert [(d.prompt.text, d.answer) for d in loaded.records] == expected, path
        assert not loaded.rejected
    assert len(load(tmp_path, "*.json").records) == 6


def test_places_are_lines(tmp_path):
    name = write(tmp_path / "a.jsonl", "\n" + lines(ROWS))
    assert [d.prompt.source for d in load(tmp_path, name).records] == ["a.jsonl:2", "a.jsonl:3"]
    name = write(tmp_path / "b.json", json.dumps(ROWS, indent=1))
    assert [d.prompt.source for d in load(tmp_path, name).records] == ["b.json:2", "b.json:6"]
    name = write(tmp_path / "c.csv", 'prompt,completion\nq,"a\nb"\nr,c\n')
    assert [d.prompt.source for d in load(tmp_path, name).records] == ["c.csv:2", "c.csv:4"]


def test_bad_lines_are_rejected_with_their_place(tmp_path):
    bad = [
        b'{"prompt": "x", }',
        b"[1]",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\u0000", "completion": "a"}',
        b'{"a": 1}',
    ]
    name = write(tmp_path / "a.jsonl", b"\n".join([lines(ROWS[:1]).strip().encode(), *bad, b'{"prompt": "a\x00"}']))
    loaded = load(tmp_path, name)
    reasons = {r.source: r.reason for r in loaded.rejected}
    assert len(loaded.records) == 1 and list(reasons) == [f"a.jsonl:{i}" for i in range(2, 8)]
    assert "not JSON" in reasons["a.jsonl:2"] and "instead of an object" in reasons["a.jsonl:3"]
    assert "not UTF-8" in reasons["a.jsonl:4"] and "NUL" in reasons["a.jsonl:5"] and "NUL" in reasons["a.jsonl:7"]
    assert reasons["a.jsonl:6"] == "no known format has the columns a"


def test_csv_lists_and_ragged_rows(tmp_path):
    name = write(tmp_path / "a.csv", 'prompt,responses\nq,"[""a"", ""b""]"\nq\n"[1]","[""c"", ""d""]"\n')
    loaded = load(tmp_path, name, "rankings")
    assert [r.answers for r in loaded.records] == [("a", "b"), ("c", "d")]
    assert loaded.records[1].prompt.text == "[1]"  # an ordinary cell stays text, whatever it looks like
    assert loaded.rejected[0].source == "a.csv:3" and "1 cells, the header 2" in loaded.rejected[0].reason


def test_tsv_rankings_and_tables(tmp_path):
    name = write(tmp_path / "a.tsv", 'good\t"bad\u2028\tworse"\r\nx\tx\nonly\n')
    loaded = load(tmp_path, Source(path=name, header=False), "rankings")
    assert [r.answers for r in loaded.records] == [("good", '"bad\u2028', 'worse"')]
    assert [r.source for r in loaded.rejected] == ["a.tsv:2", "a.tsv:3"]
    name = write(tmp_path / "b.tsv", "id\tprompt\tchosen\trejected\n1\tq\ta\tb\n")
    assert load(tmp_path, name, "rankings").records[0].prompt.text == "q"


def test_text_units(tmp_path):
    name = write(tmp_path / "a.txt", "one\r\ntwo\r\n\r\n\r\nthree\r\n")

    def texts(**config):
        return [(d.text, d.source) for d in load(tmp_path, name, "documents", **config).records]

    assert texts() == texts(text_unit="paragraph") == [("one\ntwo", "a.txt:1"), ("three", "a.txt:5")]
    assert [t for t, _ in texts(text_unit="line")] == ["one", "two", "three"]
    assert len(texts(text_unit="file")) == 1
    name = write(tmp_path / "b.txt", "one\ntwo\n")
    assert [t for t, _ in texts()] == ["one", "two"]
    assert [p.text for p in load(tmp_path, "a.txt", "prompts").records] == ["one", "two", "three"]


def test_files_that_cannot_be_used(tmp_path):
    def fails(source: str, message: str, kind: str = "demonstrations") -> None:
        with pytest.raises(UserError, match=message):
            load(tmp_path, source, kind)

    fails(write(tmp_path / "empty.jsonl", ""), "is empty")
    fails(write(tmp_path / "blank.jsonl", "\n \n"), "is empty")
    fails(write(tmp_path / "packed.jsonl.gz", b"no gzip"), "not a whole gzip")
    fails(write(tmp_path / "cut.jsonl.gz", gzip.compress(lines(ROWS * 50).encode())[:-30]), "not a whole gzip")
    fails(write(tmp_path / "broken.json", "{\n]"), "broken.json:2 is not JSON")
    fails(write(tmp_path / "latin.csv", "prompt,completion\nq,\xe4".encode("latin-1")), "not UTF-8.*latin.csv:2")
    fails(write(tmp_path / "table.parquet", b"PAR1"), "not a parquet file")
    fails(write(tmp_path / "x.docx", b"PK"), "'.docx' cannot be read; known are .jsonl")
    fails("emty.jsonl", "Did you mean 'empty.jsonl'")
    fails("no/where/a.jsonl", "folder .* does not exist")
    (tmp_path / "bare").mkdir()
    fails("bare", "is a folder without a data file")
    fails("*.nothing", "no file matches")
    fails(
        write(tmp_path / "q.jsonl", '{"question": "x"}\n'),
        "none of its 1 rows.*Columns found: question. Known: .*prompt",
    )
    fails(
        write(tmp_path / "p.jsonl", '{"prompt": "x"}\n'),
        "as rankings; most often: it has no different responses",
        "rankings",
    )


def test_hub_without_a_network_is_one_clear_error(tmp_path, monkeypatch):
    import socket

    def unknown(*_):
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for source in ("hub:someone/something:test", "someone/something"):
        with pytest.raises(UserError, match=f"{source} is no file, and there is no network"):
            load(tmp_path, source)
    with pytest.raises(UserError, match="is no hub id"):
        load(tmp_path, "hub:something")


def test_hub_rows_come_through_datasets(tmp_path, monkeypatch):
    import datasets

    asked = []

    def fake(name, split, streaming):
        asked.append((name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert len(load(tmp_path, "hub:a/b:test").records) == len(load(tmp_path, "a/b").records) == 2
    assert asked == [("a/b", "test"), ("a/b", "train")]


def test_demo_world_and_its_options(tmp_path):
    one = load(tmp_path, "demo-task?rows=7", "prompts").records
    assert len(one) == 7 and one != load(tmp_path, "demo-task?rows=7&seed=5", "prompts").records
    with pytest.raises(UserError, match="rows=many is wrong"):
        load(tmp_path, "demo-task?rows=many", "prompts")
    with pytest.raises(UserError, match="the stage `rankings`"):
        load(tmp_path, "demo-task", "rankings")


def test_config_takes_one_or_many_and_refuses_the_rest():
    assert DataConfig(prompts="a.txt").prompts == ("a.txt",) and DataConfig(prompts=["a", "b"]).prompts == ("a", "b")
    assert DataConfig(prompts=None).prompts == () and DataConfig(held_out="a.txt").held_out == "a.txt"
    for wrong in ({"held_out": 1.0}, {"held_out": -0.1}, {"prompt": "a"}, {"text_unit": "word"}):
        with pytest.raises(ValidationError):
            DataConfig(**wrong)


RAW = [
    ("raw/hh_harmless_base.jsonl.gz", "rankings", 1908, 0),
    ("raw/dpo_en_demo.json", "rankings", 299, 0),
    ("raw/reviews_ranked4_zh.tsv", "rankings", 2091, 0),
    ("raw/vicuna80_scored_answers.jsonl", "rankings", 77, 3),
    ("raw/vicuna80_scored_answers.jsonl", "demonstrations", 77, 3),
    ("raw/alpaca_en_demo.json", "demonstrations", 999, 0),
    ("raw/self_instruct_seed_tasks.jsonl", "demonstrations", 175, 0),
    ("raw/user_oriented_instructions.jsonl", "prompts", 252, 0),
    ("raw/tinyshakespeare.txt", "documents", 7222, 0),
    ("raw/wiki_demo.txt", "documents", 30, 0),
]
READY = {
    "ranked": ("rankings", {"oasst1_zh.train": 635, "oasst_en_100.train": 179, "pandalm_human.train": 65,
                            "alpacaeval2_gpt4judge.train": 698, "vicuna_gpt4score.all": 74}),
    "preference": ("rankings", {"oasst1_zh_pairs.train": 1458, "oasst_en_100_pairs.train": 665,
                                "autoj_pairwise_human.train": 859, "pandalm_human.train": 626, "llmbar.train": 359,
                                "llmbar_processed_human.train": 378, "medicalgpt_dpo_zh.train": 415,
                                "hhh_alignment.all": 221}),
    "preference_built": ("rankings", {"tinystories_shuffled.train": 1995, "tinystories_mismatch.train": 1995}),
    "sft": ("demonstrations", {"tinystories_continue.train": 1995, "p3_sample.train": 2485, "alpaca_en_demo.train": 843,
                               "alpaca_zh_demo.train": 836, "oasst1_zh.train": 633, "oasst_en_100_best.train": 215,
                               "belle_zh_dev1k.train": 812, "belle_zh_seed.train": 140, "sharegpt_zh_1k.train": 843,
                               "medical_zh_1k.train": 880, "self_instruct_seed.train": 150, "identity.train": 76}),
    "prompts": ("prompts", {"tinystories_openings.train": 1664, "alpaca_eval_805.train": 702,
                            "arena_hard_v0_1.all": 500, "arena_hard_v2_0.all": 750, "mt_bench_80.all": 80,
                            "vicuna_80.all": 80, "koala_180.all": 180, "self_instruct_252.all": 252,
                            "ifeval_541.all": 540, "xstest_450.all": 450,
                            "belle_eval_zh.all": 1000, "cvalues_zh.all": 664, "oasst_lottery_en.train": 212}),
    "text": ("documents", {"tinystories.train": 1995, "tinyshakespeare.train": 6082, "wizard_of_oz.train": 139,
                           "wiki_en.train": 25, "c4_en.train": 259}),
}  # fmt: skip
REAL = RAW + [
    (f"ready/{folder}/{name}.jsonl.gz", kind, rows, 0)
    for folder, (kind, files) in READY.items()
    for name, rows in files.items()
]


@pytest.mark.real_data
@pytest.mark.parametrize(("file", "kind", "rows", "rejected"), REAL)
def test_real_files_have_their_published_rows(file, kind, rows, rejected):
    if not (SHARED / file).is_file():
        pytest.skip(f"{file} is not beside the checkout")
    loaded = load(SHARED, Source(path=file, header=False) if file.endswith(".tsv") else file, kind)
    assert (len(loaded.records), len(loaded.rejected)) == (rows, rejected)


@pytest.mark.real_data
def test_no_real_file_is_left_out():
    if not SHARED.is_dir():
        pytest.skip("no real data beside the checkout")
    there = {str(p.relative_to(SHARED)) for p in SHARED.glob("r*/**/*") if p.is_file()}
    assert there == {file for file, *_ in REAL}


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _broken(path: Path) -> None:
    path.symlink_to("nowhere.jsonl")


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("source", ["rows/*.jsonl", "rows", "rows/**/*.jsonl"])
@pytest.mark.parametrize("make", [_pipe, _broken, _circle, _device])
def test_what_is_no_file_among_those_of_a_pattern_or_folder_is_refused(tmp_path, make, source):
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows/a.jsonl", lines(ROWS))
    write(tmp_path / "rows/notes.txt", "not data beside rows")
    assert len(load(tmp_path, source).records) == 2
    make(tmp_path / "rows/b.jsonl")
    with pytest.raises(UserError, match=r"rows/b\.jsonl is no regular file but a (link to nothing|pipe)"):
        load(tmp_path, source)


def test_a_folder_that_a_pattern_matches_is_told(tmp_path):
    write(tmp_path / "a.jsonl", lines(ROWS))
    (tmp_path / "b.jsonl").mkdir()
    write(tmp_path / "b.jsonl/c.jsonl", lines(ROWS))
    found = load(tmp_path, "*.jsonl")
    assert len(found.records) == 2
    assert any("folders that match are not read: b.jsonl" in str(remark) for remark in found.remarks)
    with pytest.raises(UserError, match=r"no file matches b\* .*only folders: .*b\.jsonl"):
        load(tmp_path, "b*")
    assert len(load(tmp_path, "**/*.jsonl").records) == 4


def test_splits_that_save_to_disk_wrote_are_not_mixed(tmp_path: Path) -> None:
    import datasets

    rows = {split: datasets.Dataset.from_list([{"prompt": split, "completion": "c"}]) for split in ("train", "test")}
    datasets.DatasetDict(rows).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"holds several splits: train, test; choose one with `split`"):
        load_records(["saved"], "demonstrations", DataConfig(), seed=0, base_dir=tmp_path)
    chosen = Source(path="saved", split="test")
    found = load_records([chosen], "demonstrations", DataConfig(), seed=0, base_dir=tmp_path)
    assert [r.prompt.text for r in found.records] == ["test"] and found.read == 1 and not found.rejected
    datasets.DatasetDict({"train": rows["train"]}).save_to_disk(str(tmp_path / "one"))
    found = load_records(["one"], "demonstrations", DataConfig(), seed=0, base_dir=tmp_path)
    assert [r.prompt.text for r in found.records] == ["train"] and found.read == 1


def test_a_link_to_nothing_is_named_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to("gone/rows.jsonl")
    with pytest.raises(UserError, match=r"^rows\.jsonl is a link to gone/rows\.jsonl, which is not there"):
        load_records(["rows.jsonl"], "prompts", DataConfig(), seed=0, base_dir=tmp_path)


@pytest.mark.parametrize(
    "row, said",
    [
        ({"prompt": "p", "completion": b"raw"}, "completion is bytes, not text"),
        ({"prompt": "p", "completion": "c", "score": 10**400}, "score is too large, not a finite number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_by_its_kind(row: dict[str, Any], said: str) -> None:
    with pytest.raises(Reject, match=said):
        parse(row, "x:1")


SIDES = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]


def as_csv(rows) -> str:
    return "".join(",".join(row[k] or "" for k in SIDES[0]) + "\n" for row in ({k: k for k in SIDES[0]}, *rows))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize(("name", "written"), [("a.jsonl", lines), ("a.csv", as_csv)])
def test_a_row_without_one_of_its_sides_is_rejected_alone(tmp_path, name, written, side):
    kept, lacking = [SIDES[0], SIDES[2]], SIDES[1] | {side: None}
    loaded = load(tmp_path, write(tmp_path / name, written([kept[0], lacking, kept[1]])), "rankings")
    assert [r.answers for r in loaded.records] == [(row["chosen"], row["rejected"]) for row in kept]
    [bad] = loaded.rejected
    assert bad.source == f"{name}:{3 if name.endswith('csv') else 2}" and f"column '{side}'" in bad.reason
    [checked] = [p for p in parse_file(tmp_path / name, name) if p.row is None]
    assert (checked.place, checked.reason) == (bad.source, bad.reason)


@pytest.mark.parametrize(
    "columns, rest",
    [
        (("accepted", "rejected"), {}),
        (("response_a", "response_b"), {"winner": "a"}),
        (("response_0", "response_1"), {"better_response_id": 0}),
        (("response_1", "response_2"), {"score_1": 2, "score_2": 1}),
    ],
)
@pytest.mark.parametrize("blank", [0, 1])
def test_a_blank_cell_of_a_table_is_a_response_that_is_missing(tmp_path, columns, rest, blank):
    rows = [["q1", "good", "bad", *rest.values()], ["q2", "good", "bad", *rest.values()]]
    rows[1][1 + blank] = ""
    table = "\n".join(",".join(map(str, row)) for row in [["prompt", *columns, *rest], *rows]) + "\n"
    loaded = load(tmp_path, write(tmp_path / "a.csv", table), "rankings")
    assert [r.answers for r in loaded.records] == [("good", "bad")]
    assert [r.source for r in loaded.rejected] == ["a.csv:3"]
    assert f"nothing stands in its column '{columns[blank]}', so a response is missing" in loaded.rejected[0].reason
    assert len(load(tmp_path, "a.csv", "prompts").records) == 2  # a prompt it is all the same


def test_blank_cells_under_names_of_the_recipe_and_of_judged_responses_are_missing(tmp_path):
    write(tmp_path / "a.csv", "prompt,mine,theirs\nq1,good,bad\nq2,good,\n")
    source = Source(path="a.csv", columns={"chosen": "mine", "rejected": "theirs"})
    assert len(load(tmp_path, source, "rankings").records) == 1
    assert len(load(tmp_path, source, "demonstrations").records) == 2  # the better one is there
    write(tmp_path / "b.csv", "prompt,completion,score\nq,good,3\nq,,4\nq,bad,1\n")
    [ranking] = load(tmp_path, "b.csv", "rankings").records
    assert ranking.answers == ("good", "bad")


@pytest.mark.parametrize("blank", ["", None])
def test_rows_of_a_wide_table_may_have_fewer_responses(tmp_path, blank):
    head = ["prompt", *(f"response_{n}" for n in (1, 2, 3)), *(f"rank_{n}" for n in (1, 2, 3))]
    rows = [["q1", "x", "y", "z", 2, 1, 3], ["q2", "x", "y", blank, 2, 1, blank], ["q3", blank, "y", "z", blank, 2, 1]]
    if blank is None:
        name = write(tmp_path / "a.jsonl", lines(dict(zip(head, row, strict=True)) for row in rows))
    else:
        name = write(tmp_path / "a.csv", "\n".join(",".join(map(str, row)) for row in [head, *rows]) + "\n")
    assert [r.answers for r in load(tmp_path, name, "rankings").records] == [("y", "x", "z"), ("y", "x"), ("z", "y")]
    write(tmp_path / "b.jsonl", lines(dict(zip(head, row, strict=True)) for row in [rows[0], [*rows[0][:-1], None]]))
    [without] = load(tmp_path, "b.jsonl", "rankings").rejected
    assert without.reason == "response_3 has no rank"


def test_a_column_that_no_row_fills_leaves_the_others_unread(tmp_path):
    name = write(tmp_path / "a.jsonl", lines(row | {"rejected": None} for row in SIDES))
    with pytest.raises(UserError, match=r"columns that nothing reads: chosen \(3 rows\)"):
        load(tmp_path, name, "rankings")


def test_an_empty_response_in_json_is_one(tmp_path):
    loaded = load(tmp_path, write(tmp_path / "a.jsonl", lines([SIDES[0], SIDES[1] | {"rejected": ""}])), "rankings")
    assert [r.answers[1] for r in loaded.records] == ["bad 0", ""]


@pytest.mark.parametrize("written", [lines, lambda rows: "prompt,completion,label\n" + "".join(
    f"{r['prompt']},{r['completion']},{'' if r['label'] is None else r['label']}\n" for r in rows)])  # fmt: skip
def test_a_response_without_a_label_among_labelled_ones_is_no_demonstration(tmp_path, written):
    labels = {"first": None, "good": True, "later": None, "bad": False}
    rows = [{"prompt": f"Is it {word}?", "completion": word, "label": label} for word, label in labels.items()]
    name = write(tmp_path / ("a.jsonl" if written is lines else "a.csv"), written(rows))
    loaded = load(tmp_path, name)
    assert [d.answer for d in loaded.records] == ["good"] and loaded.counts[0].rejected == 3
    assert sum("its label is blank" in r.reason for r in loaded.rejected) == 2
    assert [d.answer for d in load(tmp_path, name, ignore=("label",)).records] == list(labels)
    unread = [one.place for one in parse_file(tmp_path / name, name) if "its label is blank" in one.reason]
    assert len(unread) == 2
    assert len(load(tmp_path, name, "prompts").records) == 4

    nobody = write(tmp_path / "b.jsonl", lines([{**row, "label": None} for row in rows]))
    assert [d.answer for d in load(tmp_path, nobody).records] == list(labels)
    assert all(one.row is not None for one in parse_file(tmp_path / nobody, nobody))
