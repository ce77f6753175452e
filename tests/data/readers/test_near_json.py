"""Files that are nearly JSON: comments, commas behind a last item, and dictionaries as Python prints them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.readers.files import read_file
from data.readers.near_json import COMMAS, COMMENTS, PYTHON, printed_by_python, without_comments
from data.readers.rows import BadLine, Remark

ROWS = [{"prompt": f"see http://x/{i} // not a comment, }}", "completion": 'say "/* no */", ]'} for i in range(3)]


def read(tmp_path: Path, name: str, text: str) -> tuple[list, list[str]]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = list(read_file(tmp_path / name, name))
    told = [row.text for _, row in found if isinstance(row, Remark)]
    return [(place, row) for place, row in found if not isinstance(row, Remark)], told


def test_comments_in_lines_are_left_out_and_said(tmp_path: Path) -> None:
    lines = [
        "// head",
        json.dumps(ROWS[0]),
        "# other",
        json.dumps(ROWS[1]) + " // tail",
        "",
        "/* x */",
        json.dumps(ROWS[2]),
    ]
    rows, told = read(tmp_path, "a.jsonl", "\n".join(lines) + "\n")
    assert rows == [("a.jsonl:2", ROWS[0]), ("a.jsonl:4", ROWS[1]), ("a.jsonl:7", ROWS[2])] and told == [COMMENTS]
    rows, told = read(tmp_path, "b.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n")
    assert [row for _, row in rows] == ROWS and not told


@pytest.mark.parametrize("head", ["", "// head\n", "/* two\n lines */\n"])
def test_comments_and_commas_in_a_list_are_left_out_and_places_stay(tmp_path: Path, head: str) -> None:
    items = ",\n".join(json.dumps(row).removesuffix("}") + ",}" for row in ROWS)
    rows, told = read(tmp_path, "a.json", f"{head}[ // the rows\n{items}, /* last */\n]\n")
    first = 2 + head.count("\n")
    assert rows == [(f"a.json:{first + i}", row) for i, row in enumerate(ROWS)] and told == [COMMAS]


def test_a_comment_mends_no_damage(tmp_path: Path) -> None:
    bad = json.dumps(ROWS[1]).replace(', "completion"', ' "completion"') + " // why"
    rows, _ = read(tmp_path, "a.jsonl", "\n".join([json.dumps(ROWS[0]), bad, json.dumps(ROWS[2])]) + "\n")
    assert [place for place, _ in rows] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert isinstance(rows[1][1], BadLine) and "Expecting ',' delimiter" in rows[1][1].reason


def test_dictionaries_that_python_prints_are_read_and_said(tmp_path: Path) -> None:
    given = [*ROWS, {"prompt": "it's\n", "completion": "ü \\ ' \"", "n": None, "ok": True, "scores": [1, 2.5]}]
    rows, told = read(tmp_path, "a.jsonl", "\n".join(map(str, given)) + "\n")
    assert [row for _, row in rows] == given and told == [PYTHON.format(4)]
    rows, told = read(tmp_path, "b.json", str(given))
    assert [row for _, row in rows] == given and told == [PYTHON.format(1)]
    rows, told = read(tmp_path, "c.jsonl", f"{given[0]}\n{json.dumps(given[1])}\n{str(given[2])[:-5]}\n")
    assert [row for _, row in rows[:2]] == given[:2] and isinstance(rows[2][1], BadLine) and told == [PYTHON.format(1)]


@pytest.mark.parametrize(
    "text",
    ["{'a': 'x' 'y'}", "{'a': 'x',}", "{'a': b'x'}", "{'a', 'b'}", "{'a': f(1)}", "{'a': 1, 'a': 2}", "{}", "[1"],
)
def test_what_python_would_not_print_so_is_damage(text: str) -> None:
    assert printed_by_python(text) is None


def test_no_text_inside_a_string_is_taken_for_a_comment() -> None:
    r = random.Random(0)
    for _ in range(300):
        row = {"".join(r.choices('ab"\\/*,}] \n#', k=5)): "".join(r.choices('ab"\\/*,}] \n#', k=12)) for _ in range(3)}
        text = json.dumps(row)
        assert without_comments(text) == text
        within = text[:-1] + r.choice([", ", ",/* x */", " // x\n", ',\n // " x\n']) + "}"
        assert json.loads(without_comments(within, commas=True)) == row
        assert len(without_comments(within, commas=True)) == len(within)


def test_marks_in_front_of_a_line_are_none_of_its_value(tmp_path: Path) -> None:
    for name, mark in (("a.jsonl", "\x1e"), ("b.jsonl", "\ufeff")):
        rows, told = read(tmp_path, name, "\n".join(mark + json.dumps(row) for row in ROWS))
        assert [row for _, row in rows] == ROWS and not told


def test_a_dictionary_of_more_than_plain_values_is_named(tmp_path: Path) -> None:
    lines = [json.dumps(ROWS[0]), "{'prompt': 'p', 'score': np.float64(0.5)}", json.dumps(ROWS[1])]
    rows, _ = read(tmp_path, "a.jsonl", "\n".join(lines))
    assert isinstance(rows[1][1], BadLine) and "write rows by json.dumps" in rows[1][1].reason
    with pytest.raises(UserError, match=r"write rows by json\.dumps"):
        read(tmp_path, "b.jsonl", f"{lines[1]}\n{lines[1]}\n")


@pytest.mark.parametrize("pack, what", [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_packed_bytes_under_a_plain_name_are_named(tmp_path: Path, pack: Callable[[bytes], bytes], what: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(pack(json.dumps(ROWS).encode()))
    with pytest.raises(UserError, match=f"no text but packed by {what}"):
        list(read_file(tmp_path / "a.jsonl", "a.jsonl"))
