"""Questions with choices: every way of naming the right one, and those that could name two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from data.formats import Reject, parse
from data.formats.multiple_choice import COUNTED
from data.source_settings import DataConfig
from data.sources import load_records

TEXTS = ["Po", "Ebro", "Rhine", "Elbe"]
LISTED = "A. Po\nB. Ebro\nC. Rhine\nD. Elbe"
SHAPES: list[Any] = [
    {"choices": TEXTS},
    {"options": dict(zip("ABCD", TEXTS, strict=True))},
    {"choices": {"text": TEXTS, "label": list("ABCD")}},
    {"choices": [{"label": label, "text": text} for label, text in zip("ABCD", TEXTS, strict=True)]},
    {"options": [f"{label}. {text}" for label, text in zip("ABCD", TEXTS, strict=True)]},
    dict(zip("ABCD", TEXTS, strict=True)),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("named", ["C", "c", "(C)", "C.", "C) Rhine", "Rhine", 2, 2.0])
@pytest.mark.parametrize("column", ["answer", "answerKey", "answer_idx", "correct_answer", "label"])
def test_the_right_choice_is_the_response(shape: dict[str, Any], named: Any, column: str) -> None:
    _, [row] = parse({"question": "Which one?", **shape, column: named, "id": 3}, "rows.jsonl:1")
    assert [(m.role, m.content) for m in row.messages] == [("user", f"Which one?\n\n{LISTED}")]
    assert row.answers == ("Rhine",) and (COUNTED in row.notes) == isinstance(named, int | float)


def test_what_the_question_is_about_and_the_system_come_before() -> None:
    given = {"system": "Be brief.", "article": "Rivers.", "question": "Which one?", "options": TEXTS, "answer": "B"}
    _, [row] = parse(given, "rows.jsonl:1")
    assert [m.content for m in row.messages] == ["Be brief.", f"Rivers.\n\nWhich one?\n\n{LISTED}"]
    labelled = {"question": "Which?", "choices": {"text": TEXTS, "label": list("1234")}, "answerKey": "4"}
    assert parse(labelled, "rows.jsonl:1")[1][0].answers == ("Elbe",)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (4, "counted from 0; if the file counts from 1"),
        (-1, "counted from 0"),
        ("2", "may be counted from 0 or from 1"),
        ("E", "none of its 4 choices"),
        ("B) Rhine", "none of its 4 choices"),
        ("Thames", "none of its 4 choices"),
    ],
)
def test_an_answer_that_names_no_choice_is_the_rows_fault(answer: Any, why: str) -> None:
    with pytest.raises(Reject, match=why):
        parse({"question": "Which one?", "choices": TEXTS, "answer": answer}, "rows.jsonl:1")


def test_numbers_that_may_be_a_choice_or_its_place() -> None:
    with pytest.raises(Reject, match="the text of a choice or its number"):
        parse({"question": "1 + 1?", "choices": ["1", "2", "3"], "answer": 2}, "rows.jsonl:1")
    for answer, right in (("3", "3"), (7, "7")):
        row = {"question": "1 + 2?", "choices": ["1", right, "2"], "answer": answer}
        assert parse(row, "rows.jsonl:1")[1][0].answers == (right,)
    with pytest.raises(Reject, match="label of one choice and the text of another"):
        parse({"question": "Which?", "choices": ["B", "A"], "answer": "A"}, "rows.jsonl:1")


def test_two_answers_must_agree() -> None:
    row = {"question": "Which one?", "options": dict(zip("ABCD", TEXTS, strict=True)), "answer_idx": "B"}
    assert parse(row | {"answer": "Ebro"}, "rows.jsonl:1")[1][0].answers == ("Ebro",)
    with pytest.raises(Reject, match="its right choices contradict each other: answer_idx, answer"):
        parse(row | {"answer": "Po"}, "rows.jsonl:1")


@pytest.mark.parametrize(("answers", "refused"), [((1, 4), True), ((0, 3), False), ((1, -1), False), (("A", 4), False)])
def test_an_answer_that_counts_from_1_makes_its_file_doubtful(tmp_path: Path, answers: Any, refused: bool) -> None:
    rows = [{"question": f"Which one? {at}", "choices": TEXTS, "answer": one} for at, one in enumerate(answers)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def load() -> Any:
        return load_records(["a.jsonl"], "demonstrations", DataConfig(), seed=0, base_dir=tmp_path)

    if refused:
        with pytest.raises(UserError, match=r"a.jsonl:2: answer is 4, and its 4 choices are counted from 0"):
            load()
        return
    places = {0: "Po", 1: "Ebro", 3: "Elbe", "A": "Po"}
    assert [d.answer for d in load().records] == [places[one] for one in answers if one in places]
