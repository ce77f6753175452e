"""What a format may have besides its own columns is read or named as lost, whatever else is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from data.formats import FORMATS, Reject, parse
from data.formats.reading import ACTING

WORDS = "words that nobody else has"


def optional() -> Iterator[tuple[str, str]]:
    for name, one in FORMATS.items():
        for columns in one.optional:
            for column in [columns] if isinstance(columns, str) else columns:
                if column in ACTING - {"tools", "functions"} and column not in one.example:
                    yield name, column


@pytest.mark.parametrize(("name", "column"), optional())
def test_a_text_beside_an_example_is_read_or_named(name, column):
    try:
        _, rows = parse({**FORMATS[name].example, column: WORDS})
    except Reject as error:
        assert "reads no column" in str(error) or column in str(error)
    else:
        assert any(WORDS in repr((row.messages, row.answers, row.text)) for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "a", "input": WORDS},
        {"prompt": "p", "completion": "a", "label": True, "input": WORDS},
        {"prompt": "p", "response": "a", "rejected_response": "b", "input": WORDS},
        {"prompt": "p", "completion": "a", "score": 0.4, "input": WORDS},
    ],
)
def test_an_input_beside_a_prompt_is_not_lost(row):
    with pytest.raises(Reject, match="reads no column 'input'"):
        parse(row)


def test_a_second_system_message_is_not_lost():
    with pytest.raises(Reject, match="reads no column 'system_prompt'"):
        parse({"prompt": "p", "completion": "a", "system": "s", "system_prompt": WORDS})


ODD = (
    0.5,
    True,
    "x",
    ["x"],
    {"a": "x"},
    [{"a": 1}],
    [["a", "b"]],
    None,
    "",
    [None],
    10**30,
    "\ud800",
    "[1]",
    {"role": "user"},
)
"""Values of every kind that a cell of JSON may have."""


@pytest.mark.parametrize("name", FORMATS)
def test_no_value_in_any_column_ends_in_anything_but_a_row_or_a_reason(name):
    one = FORMATS[name]
    columns = {c for names in (*one.required, *one.optional) for c in ([names] if isinstance(names, str) else names)}
    for column in columns:
        for value in ODD:
            with contextlib.suppress(Reject):
                assert parse({**one.example, column: value})


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("UltraFeedback", "correct_answers", ["None"]),
        ("UltraFeedback", "incorrect_answers", ["The Seine."]),
        ("two responses", "individual_preference", [{"score": -2, "reasoning": "It is a river."}]),
        ("two responses", "preference_statement", "The first names a river."),
        ("arena battle", "toxic_chat_tag", {"roberta-large": {"flagged": False, "probability": 0.01}}),
    ],
)
def test_what_describes_a_judgement_stands_beside_it(name, column, value):
    found, [row] = parse({**FORMATS[name].example, column: value})
    assert found == name
    assert row.columns[column] == value
