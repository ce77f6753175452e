"""Containers as people have them: delimiters, encodings, quotes, JSON of every shape, packed files, workbooks."""

from __future__ import annotations

import bz2
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.readers.files import read_file
from data.readers.rows import BadLine, Remark

ROWS = [{"prompt": "a?", "completion": "b"}, {"prompt": "c?", "completion": "d, e"}]


def read(folder: Path, name: str, content: str | bytes) -> list:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_file(path, name))


def rows(found: list) -> list:
    return [row for _, row in found if not isinstance(row, BadLine | Remark)]


def bad(found: list) -> list[str]:
    return [place for place, row in found if isinstance(row, BadLine)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends(tmp_path, delimiter, end):
    lines = ["Prompt , COMPLETION".replace(",", delimiter), f"a?{delimiter}b", f'c?{delimiter}"d, e"']
    assert rows(read(tmp_path, "a.csv", end.join(lines) + end)) == ROWS
    assert rows(read(tmp_path, "b.csv", end.join([f"sep={delimiter}", *lines]))) == ROWS


def test_an_unclosed_quote_costs_its_row_and_what_does_not_fit(tmp_path):
    text = 'prompt,completion\na,b\nc,"d\nmore\ne,f\ng,"h, h"\n'
    found = read(tmp_path, "a.csv", text)
    assert bad(found) == ["a.csv:3", "a.csv:4"]
    assert [r["completion"] for r in rows(found)] == ["b", "f", "h, h"]
    found = read(tmp_path, "b.csv", 'prompt,completion\na,b"\nc,"d\n\ne"\n')
    assert bad(found) == ["b.csv:2"] and rows(found) == [{"prompt": "c", "completion": "d\n\ne"}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        {"data": ROWS},
        {"version": 1, "train": ROWS, "about": "x", "more": 2},
        {"features": [], "rows": [{"row_idx": i, "row": r, "truncated_cells": []} for i, r in enumerate(ROWS)]},
        {"prompt": ["a?", "c?"], "completion": ["b", "d, e"]},
        {"prompt": {"0": "a?", "1": "c?"}, "completion": {"0": "b", "1": "d, e"}},
        {"columns": ["prompt", "completion"], "index": [0, 1], "data": [["a?", "b"], ["c?", "d, e"]]},
        {"x/1.json": ROWS[0], "x/2.json": ROWS[1]},
    ],
)
def test_json_of_every_shape(tmp_path, suffix, value):
    for indent in (None, 2):
        assert rows(read(tmp_path, "a" + suffix, json.dumps(value, indent=indent))) == ROWS


def test_json_lines_of_lists_and_texts_and_keys_that_come_twice(tmp_path):
    assert rows(read(tmp_path, "a.jsonl", '["x", "y"]\n"z"\n')) == [["x", "y"], "z"]
    found = read(tmp_path, "b.jsonl", '{"prompt": "a", "completion": "b", "completion": "c"}\n{"prompt": "d"}\n')
    assert bad(found) == ["b.jsonl:1"] and "'completion' twice" in found[0][1].reason
    one = {"responses": ["a", "b"], "scores": [1, 2]}
    assert rows(read(tmp_path, "c.json", json.dumps(one))) == [one]  # a row, not columns
    with pytest.raises(UserError, match=r"train \(2 rows\), test \(2 rows\); choose one with `split`"):
        read(tmp_path, "d.json", json.dumps({"train": ROWS, "test": ROWS}))


def test_cells_hold_lists_where_a_list_is_expected(tmp_path):
    text = "messages,responses,prompt\n\"[{'role': 'user', 'content': 'x'}\n {'role': 'assistant', 'content': 'y'}]\","
    found = rows(read(tmp_path, "a.csv", text + "\"['a' 'b']\",[1]\n"))
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert found == [{"messages": turns, "responses": ["a", "b"], "prompt": "[1]"}]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        *[
            ("gb18030", "水是什么,水是一种液体"),
            ("utf-16", "水,液"),
            ("utf-16-le", "what,ice"),
            ("utf-16-be", "what,ice"),
        ],
        *[
            ("latin-1", "Où est la gare,près de Liège"),
            ("cp1251", "Что такое лёд,вода"),
            ("euc_kr", "안녕하세요,무엇"),
            ("cp1250", "Zażółć gęślą jaźń,źródło światła"),
            ("cp1250", "Příliš žluťoučký kůň,úpěl ďábelské ódy"),
        ],
        ("shift_jis", "これは何ですか,水です"),
    ],
)
def test_encodings_are_found_and_told(tmp_path, encoding, text):
    found = read(tmp_path, "a.csv", f"prompt,completion\n{text}\n".encode(encoding))
    assert list(rows(found)[0].values()) == text.split(",")
    assert encoding == "utf-16" or any(isinstance(row, Remark) and "read as" in row.text for _, row in found)


def test_one_bad_byte_is_damage_and_not_an_encoding(tmp_path):
    found = read(tmp_path, "a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9t"}\n{"prompt": "c"}\n')
    assert bad(found) == ["a.jsonl:2"] and len(rows(found)) == 2


def test_packed_files_and_workbooks(tmp_path):
    import openpyxl
    import pyarrow as pa

    text = "".join(json.dumps(r) + "\n" for r in ROWS).encode()
    assert rows(read(tmp_path, "a.jsonl.bz2", bz2.compress(text))) == ROWS
    assert rows(read(tmp_path, "a.jsonl.xz", lzma.compress(text))) == ROWS
    assert rows(read(tmp_path, "a.jsonl.zst", pa.Codec("zstd").compress(text, asbytes=True))) == ROWS
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/one.jsonl", text)
        archive.writestr("two.csv", "prompt,completion\na?,b\n")
        archive.writestr("README.md", "about")
    found = list(read_file(tmp_path / "a.zip", "a.zip"))
    assert rows(found) == [ROWS[0], *ROWS] and found[-1][0] == "a.zip/x/one.jsonl:2"
    assert "not read: README.md" in found[0][1].text
    book = openpyxl.Workbook()
    for cells in (["Prompt", "Completion"], ["a?", "b"], [None, None], ["c?", "d, e"]):
        book.active.append(cells)
    book.save(tmp_path / "a.xlsx")
    found = list(read_file(tmp_path / "a.xlsx", "a.xlsx"))
    assert rows(found) == ROWS and found[-1][0] == "a.xlsx, row 4"
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, pa.Table.from_pylist(ROWS).schema) as out,
    ):
        out.write_table(pa.Table.from_pylist(ROWS))
    assert rows(list(read_file(tmp_path / "a.arrow", "a.arrow"))) == ROWS
    for name in ("cut.jsonl.xz", "cut.jsonl.bz2", "cut.jsonl.zst", "cut.zip"):
        with pytest.raises(UserError, match=r"not a whole"):
            read(tmp_path, name, b"\x00" * 50)


def test_tab_separated_cells_that_are_quoted_as_in_csv(tmp_path):
    """What pandas writes with ``sep="\\t"``: quotes around a cell with a tab, a line end or a quotation mark."""
    rows = [("plain", "cell"), ('say ""hi""', "b"), ("a tab\tinside", "two\nlines")]
    text = "prompt\tcompletion\n" + f'plain\tcell\n"{rows[1][0]}"\tb\n"{rows[2][0]}"\t"{rows[2][1]}"\n'
    found = read(tmp_path, "a.tsv", text.encode())
    wanted = [{"prompt": p.replace('""', '"'), "completion": c} for p, c in rows]
    assert [row for _, row in found if isinstance(row, dict)] == wanted
    assert [row.text for _, row in found if isinstance(row, Remark)] == ["cells are quoted as in csv"]
    every = '"prompt"\t"completion"\n"one"\t"two"\n'
    assert [r for _, r in read(tmp_path, "b.tsv", every.encode()) if isinstance(r, dict)] == [
        {"prompt": "one", "completion": "two"}
    ]
    marks = 'prompt\tcompletion\n"Yes"\tno\nhe said "no"\t"\n'
    assert [r for _, r in read(tmp_path, "c.tsv", marks.encode()) if isinstance(r, dict)] == [
        {"prompt": '"Yes"', "completion": "no"},
        {"prompt": 'he said "no"', "completion": '"'},
    ]


def test_a_row_whose_cell_lost_its_opening_quote_is_not_shortened(tmp_path):
    text = 'prompt,completion\na,b\nlong,line one\nline two\nend of it"\nc,d\nhow tall,6 feet"\ne,f\n'
    found = read(tmp_path, "a.csv", text.encode())
    assert [row for _, row in found if isinstance(row, dict)] == [
        {"prompt": p, "completion": c} for p, c in (("a", "b"), ("c", "d"), ("e", "f"))
    ]
    bad = {place.rpartition(":")[2]: row.reason for place, row in found if isinstance(row, BadLine)}
    assert list(bad) == ["3", "4", "5", "7"] and "may go on to line 5" in bad["3"]


@pytest.mark.parametrize("form", ["file", "stream", "feather"])
def test_arrow_is_read_batch_by_batch_and_damage_costs_what_follows(tmp_path, form):
    import pyarrow as pa
    from pyarrow import feather

    rows, path = [{"prompt": f"q{i}", "completion": "a" * 500} for i in range(4000)], tmp_path / "a.arrow"
    table = pa.Table.from_pylist(rows)
    if form == "feather":
        feather.write_feather(table, path, version=1)
    else:
        with {"file": pa.ipc.new_file, "stream": pa.ipc.new_stream}[form](str(path), table.schema) as out:
            out.write_table(table, max_chunksize=1500)
    assert [row for _, row in read_file(path, "a")] == rows
    if form == "stream":
        path.write_bytes(path.read_bytes()[:-600_000])
        found = list(read_file(path, "a"))
        assert [row for _, row in found[:-1]] == rows[:1500] or [row for _, row in found[:-1]] == rows[:3000]
        assert isinstance(found[-1][1], BadLine) and found[-1][0] == f"a, row {len(found)}"


def test_json_of_every_suffix_is_read_as_json(tmp_path):
    """Objects, one a line or in a list over lines, whatever the file is called; a text that has brackets stays one."""
    objects = [{"prompt": "q, one", "completion": "a"}, {"prompt": "r", "completion": "b"}]
    lines, spread = "\n".join(map(json.dumps, objects)), json.dumps(objects, indent=1)
    for suffix in ("txt", "csv", "tsv", "md"):
        for text in (lines, spread, json.dumps(objects)):
            found = read(tmp_path, f"a.{suffix}", text.encode())
            assert rows(found) == objects, (suffix, text)
            assert any(isinstance(row, Remark) and "read as JSON" in row.text for _, row in found)
    for text in ("[Scene 1]\nHe speaks.", "{braces}\nand more", "[1, 2]\n[3, 4]"):
        assert [row["text"] for row in rows(read(tmp_path, "b.txt", text.encode()))] == text.split("\n")


def test_lines_of_a_list_without_its_brackets(tmp_path):
    found = read(tmp_path, "a.jsonl", b'{"prompt": "q"},\n{"prompt": "r"},\n{"prompt": "s"}\n')
    assert [row["prompt"] for row in rows(found)] == ["q", "r", "s"] and not bad(found)
    spread = read(tmp_path, "a.json", b'[\n{"prompt": "q"},\n{"prompt": "r"},\n{"prompt": "s"}\n]\n')
    assert [row["prompt"] for row in rows(spread)] == ["q", "r", "s"] and not bad(spread)


def test_comments_are_left_out_and_said(tmp_path):
    found = read(tmp_path, "a.jsonl", b'// mine\n{"prompt": "q"}\n# more\n{"prompt": "r"}\n')
    assert not bad(found) and len(rows(found)) == 2 and found[-1][1].text.startswith("comments are left out")


def test_a_table_of_one_column_has_whole_lines(tmp_path):
    text = 'text\nOne, two, three.\n"Quoted, so; it is"\nPlain\n"He said ""x"", twice"\n'
    found = read(tmp_path, "a.csv", text.encode())
    assert [row["text"] for row in rows(found)] == [
        "One, two, three.",
        "Quoted, so; it is",
        "Plain",
        'He said "x", twice',
    ]


def test_an_index_a_mark_and_line_ends_of_windows(tmp_path):
    found = read(tmp_path, "a.csv", "\ufeff,Prompt,Completion\r\n0,q,a\r\n\r\n1,r,b\r\n".encode())
    assert [(row["prompt"], row["completion"]) for row in rows(found)] == [("q", "a"), ("r", "b")] and not bad(found)
    found = read(tmp_path, "a.jsonl", '\ufeff{"prompt": "q"}\r\n\r\n{"prompt": "r", "x": NaN}\r\n'.encode())
    assert [row["prompt"] for row in rows(found)] == ["q", "r"] and not bad(found)


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_of_nothing_but_turns_is_one_conversation(tmp_path, keys, indent):
    turns = [dict(zip(keys, said, strict=True)) for said in (("user", "q"), ("assistant", "a"))]
    (tmp_path / "chat.json").write_text(json.dumps(turns, indent=indent))
    assert [row for _, row in read_file(tmp_path / "chat.json", "chat.json")] == [turns]
    (tmp_path / "chats.json").write_text(json.dumps([turns, turns], indent=indent))
    assert [row for _, row in read_file(tmp_path / "chats.json", "chats.json")] == [turns, turns]
    (tmp_path / "table.json").write_text(json.dumps([*turns, {"other": 1}], indent=indent))
    assert len([row for _, row in read_file(tmp_path / "table.json", "table.json")]) == 3


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("between", ["\n", "\n\n", ""])
def test_objects_over_several_lines_one_behind_another(tmp_path, name, between):
    found = read(tmp_path, name, between.join(json.dumps(row, indent=2) for row in ROWS))
    assert rows(found) == ROWS
    assert [place for place, _ in found] == [f"{name}:1", f"{name}:{4 + len(between)}"]


def test_an_object_that_is_not_json_among_others_is_refused_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"a\.json:5 is not JSON: Extra data"):
        read(tmp_path, "a.json", json.dumps(ROWS[0], indent=2) + "\n{\n  nothing\n}")
