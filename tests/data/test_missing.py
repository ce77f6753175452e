"""What a row lacks that others of its file have costs that row, and never changes what another one means."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from data import blocks
from data.common.errors import UserError
from data.source_settings import Source
from data.sources import DataConfig, load_records

Rows = list[dict[str, Any]]


def load(folder: Path, rows: Rows, kind: str = "rankings", table: bool = False, **settings: Any) -> Any:
    """The records of rows in a file: JSON Lines, or a table with the columns of the first row."""
    if table:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        name, content = "a.csv", text.getvalue()
    else:
        name, content = "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(content)
    return load_records([Source(path=name, **settings)], kind, DataConfig(), seed=0, base_dir=folder)


def answers(loaded: Any) -> list[tuple[str, ...]]:
    return [record.answers for record in loaded.records]


LISTS = [("scores", [1, 2, 3], "CBA"), ("rank", [2, 1, 3], "BAC")]
POINTS = [("best_index", 1, "BAC"), ("winner", "B", "BAC")]


@pytest.mark.parametrize(
    "name, value, ordered, table",
    [*((*one, table) for one in LISTS for table in (True, False)), *((*one, False) for one in POINTS)],
)
@pytest.mark.parametrize("first", [True, False])
def test_responses_that_nobody_judged_among_judged_ones_have_no_order(
    tmp_path: Path, name: str, value: Any, ordered: str, table: bool, first: bool
) -> None:
    """They stand in some order, which is not that of the better ones where others are marked."""
    texts: Any = ["A", "B", "C"]
    given = json.dumps(value) if table and isinstance(value, list) else value
    both = [{"prompt": f"q{i}", "responses": json.dumps(texts) if table else texts, name: given} for i in (1, 2)]
    without = both[not first]
    without[name] = "" if table else None
    loaded = load(tmp_path, both, table=table)
    assert answers(loaded) == [tuple(ordered)]
    assert len(loaded.rejected) == 1 and f"its {name} is blank, and other rows have one" in loaded.rejected[0].reason
    assert len(load(tmp_path, both, "prompts", table).records) == 2
    with_order = load(tmp_path, [without, without | {"prompt": "q3"}], table=table)
    assert answers(with_order) == [("A", "B", "C")] * 2  # nobody judged anything: best first
    assert answers(load(tmp_path, both, table=table, ignore=[name])) == [("A", "B", "C")] * 2


def test_what_helpers_read_counts_as_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MANY", 20)
    monkeypatch.setattr(blocks, "helpers", lambda: 1)
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": True if i >= 20 else None} for i in range(60)]
    loaded = load(tmp_path, rows, "demonstrations")
    assert (len(loaded.records), loaded.counts[0].rejected) == (40, 20)
    lists = [{"prompt": f"q{i}", "responses": ["A", "B"], "scores": [1, 2] if i >= 20 else None} for i in range(60)]
    loaded = load(tmp_path, lists)
    assert answers(loaded) == [("B", "A")] * 40 and loaded.counts[0].rejected == 20


@pytest.mark.parametrize("name", ["reasoning", "thinking", "cot"])
@pytest.mark.parametrize("table", [True, False])
def test_reasoning_without_a_response_is_no_demonstration(tmp_path: Path, name: str, table: bool) -> None:
    """As where a budget of tokens ended before the response."""
    rows = [{"prompt": "q1", name: "because", "response": "yes"}, {"prompt": "q2", name: "because", "response": ""}]
    loaded = load(tmp_path, rows, "demonstrations", table)
    assert [d.answer for d in loaded.records] == ["<think>\nbecause\n</think>\n\nyes"]
    assert loaded.counts[0].rejected == 1 and len(load(tmp_path, rows, "prompts", table).records) == 2


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": "", "reasoning_content": "because"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "because"}, {"type": "text", "text": ""}]},
    ],
)
def test_a_last_turn_of_reasoning_alone_is_none(tmp_path: Path, last: dict[str, Any]) -> None:
    whole = {"role": "assistant", "content": "yes", "reasoning_content": "because"}
    rows = [{"messages": [{"role": "user", "content": f"q{i}"}, turn]} for i, turn in enumerate((whole, last))]
    loaded = load(tmp_path, rows, "demonstrations")
    assert [d.answer for d in loaded.records] == ["<think>\nbecause\n</think>\n\nyes"] and len(loaded.rejected) == 1


@pytest.mark.parametrize("blank", ["", " "])
def test_a_step_that_is_not_there_follows_nothing(tmp_path: Path, blank: str) -> None:
    rows = [{"prompt": "q", "initial_reason_steps": "So ", "chosen": "x", "rejected": r} for r in ("y", blank)]
    loaded = load(tmp_path, rows)
    assert answers(loaded) == [("So x", "So y")] and "rejected is blank" in loaded.rejected[0].reason


def test_a_list_in_a_cell_says_that_a_response_is_empty(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{s}", "responses": '["A", ""]', "ranks": "[1, 2]", "system": s} for s in ("be brief", "")]
    assert answers(load(tmp_path, rows, table=True)) == [("A", "")] * 2


def test_the_blank_column_that_is_named_is_the_responses_own(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "x", "rejected": r, "system": "", "source": ""} for r in ("y", " ")]
    assert "column 'rejected', so" in load(tmp_path, rows, table=True).rejected[0].reason


@pytest.mark.parametrize(
    "row, blanks",
    [
        ({"response_a": "x", "response_b": "y", "score_a": 1, "score_b": 2}, ("score_a", "score_b")),
        ({"response_a": "x", "response_b": "y", "score_a": 1, "score_b": 2}, ("score_b",)),
        ({"response_1": "x", "response_2": "y", "preference_strength": 2}, ("preference_strength",)),
        (
            {f"response_{n}": n for n in "abc"} | {f"score_{n}": ord(n) for n in "abc"},
            ("score_a", "score_b", "score_c"),
        ),
        ({f"response_{n}": n for n in "abc"} | {f"rank_{n}": ord(n) for n in "abc"}, ("rank_a", "rank_b", "rank_c")),
    ],
)
@pytest.mark.parametrize("table", [True, False])
def test_a_row_without_its_numbers_is_rejected_alone(
    tmp_path: Path, row: dict[str, Any], blanks: tuple[str, ...], table: bool
) -> None:
    rows = [{"prompt": "q1"} | row, {"prompt": "q2"} | row | dict.fromkeys(blanks, "" if table else None)]
    loaded = load(tmp_path, rows, table=table)
    assert len(loaded.records) == 1 and loaded.counts[0].rejected == 1
    assert f"'{blanks[0]}'" in loaded.rejected[0].reason


@pytest.mark.parametrize("mark", ["score", "overall", "rank", "rating"])
@pytest.mark.parametrize("table", [True, False])
def test_a_wide_row_may_have_a_gap_in_any_kind_of_file(tmp_path: Path, mark: str, table: bool) -> None:
    whole = {f"response_{n}": n for n in "abc"} | {f"{mark}_{n}": at for at, n in enumerate("abc", 1)}
    gap = dict.fromkeys(("response_b", f"{mark}_b"), "" if table else None)
    loaded = load(tmp_path, [{"prompt": "q1"} | whole, {"prompt": "q2"} | whole | gap], table=table)
    best = ("a", "b", "c") if mark == "rank" else ("c", "b", "a")
    assert answers(loaded) == [best, tuple(n for n in best if n != "b")]


def test_other_numbered_texts_do_not_hide_the_responses(tmp_path: Path) -> None:
    row = {"prompt": "q"} | {f"response_{n}": f"r{n}" for n in (1, 2, 3)} | {f"rank_{n}": n for n in (1, 2, 3)}
    assert answers(load(tmp_path, [{"content_1": "", "content_2": ""} | row], table=True)) == [("r1", "r2", "r3")]
    with pytest.raises(UserError, match=r"write `ignore: \[option_a, option_b\]`"):
        load(tmp_path, [{"option_a": "x", "option_b": "y"} | row])


def test_a_second_score_that_ties_the_best_with_the_worst_contradicts_nothing(tmp_path: Path) -> None:
    def row(*scores: tuple[float, float]) -> dict[str, Any]:
        texts = [
            {"response": f"r{at}", "overall_score": a, "fine-grained_score": b} for at, (a, b) in enumerate(scores)
        ]
        return {"prompt": f"q{scores}", "completions": texts}

    assert len(load(tmp_path, [row((9, 4), (9, 5), (2, 4), (2, 4)), row((8, 4), (8, 4.5), (7, 4))]).records) == 2
    loaded = load(tmp_path, [row((9, 4), (2, 5)), row((9, 5), (2, 4))])
    assert len(loaded.records) == 1 and "contradict each other" in loaded.rejected[0].reason


def test_the_middle_between_two_sides_is_a_tie(tmp_path: Path) -> None:
    zero = [{"prompt": f"q{v}", "response_0": "x", "response_1": "y", "label": v} for v in (0, 1, 0.5)]
    assert answers(load(tmp_path, zero)) == [("x", "y"), ("y", "x")]
    one = [{"prompt": f"q{v}", "response_1": "x", "response_2": "y", "preference": v} for v in (1, 2, 1.5)]
    assert answers(load(tmp_path, one)) == [("x", "y"), ("y", "x")]
    with pytest.raises(UserError, match="or be a score"):
        load(tmp_path, [*zero, zero[0] | {"label": 0.7}])


def test_a_list_of_places_ranks(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"]}
    for name in ("rank_index", "rank_idx"):
        with pytest.raises(UserError, match=f"columns that nothing reads: {name}"):
            load(tmp_path, [row | {name: [2, 0, 1]}])
    assert len(load(tmp_path, [row | {"token_ids": [2, 0, 1]}]).records) == 1


@pytest.mark.parametrize("no", ["False", "false", "0", ""])
def test_a_dump_of_trees_as_a_table_has_its_switches(tmp_path: Path, no: str) -> None:
    """Of two replies one was turned down by a review in the second tree."""

    def tree(n: int, result: str) -> Rows:
        asked = {"message_id": f"{n}", "parent_id": "", "text": f"q{n}", "role": "prompter", "rank": ""}
        replies: Rows = [
            {"message_id": f"{n}{k}", "parent_id": f"{n}", "text": k, "role": "assistant", "rank": at}
            for at, k in enumerate("abc")
        ]
        rows = [row | {"deleted": no, "review_result": "True"} for row in (asked, *replies)]
        rows[-1]["review_result"] = result
        return rows

    loaded = load(tmp_path, [*tree(1, "True"), *tree(2, "False"), *tree(3, "")], table=True)
    assert sorted(answers(loaded)) == [("a", "b"), ("a", "b", "c"), ("a", "b", "c")]
    gone = [row | {"deleted": "True"} if row["text"] == "a" else row for row in tree(4, "True")]
    gone[2]["rank"] = ""
    loaded = load(tmp_path, [*gone, *tree(5, "True")], table=True)
    assert sorted(answers(loaded)) == [("a", "b", "c")]


@pytest.mark.parametrize("table", [True, False])
def test_a_blank_group_is_none(tmp_path: Path, table: bool) -> None:
    rows = [{"prompt": f"q{t}", "completion": "a", "topic": t} for t in ("x", "y", "")]
    (tmp_path / "a.jsonl").write_text("")
    config = DataConfig(group_by="topic")
    load(tmp_path, rows, "demonstrations", table, ignore=["topic"])
    name = "a.csv" if table else "a.jsonl"
    loaded = load_records([Source(path=name)], "demonstrations", config, seed=0, base_dir=tmp_path)
    assert len(loaded.records) == 2 and "nothing stands in its column 'topic' to group by" in loaded.rejected[0].reason
