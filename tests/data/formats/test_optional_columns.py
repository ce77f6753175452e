"""What a format may have besides its own columns is read or named as lost, whatever else is there."""

from __future__ import annotations

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
