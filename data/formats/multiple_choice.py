"""Questions with choices and the right one of them: a prompt that lists the choices, and the choice as its response."""

from __future__ import annotations

import re
import string as alphabet
from collections.abc import Mapping, Sequence
from typing import Any

from data.formats.rows import Doubtful, Format, Reject, Row
from data.formats.turns import SYSTEM, asked, turns
from data.formats.values import blank, first_of, string

COUNTED = "right choices that are named by a number: counted from 0"
LETTERS = alphabet.ascii_uppercase

_QUESTIONS = ("question", "question_stem", "query", "instruction")
_CHOICES = ("choices", "options", "answer_choices", "candidates")
_ANSWERS = (
    *("answerKey", "answer_key", "answer_idx", "answer_index", "answer_id", "correct_idx", "correct_index"),
    *("correct_option", "correct_choice", "correct_answer", "correct", "right_answer", "answer", "label", "target"),
)
_CONTEXTS = ("passage", "article", "context", "support", "input")
_SPOKEN = re.compile(r"\(?([A-Za-z])\)?\s*[.):]?(?:\s+(.+))?", re.DOTALL)

Choices = tuple[tuple[str, ...], tuple[str, ...]]
"""Labels and texts of the choices."""


def _choices(value: Any) -> Choices | None:
    """The choices of a list of texts or of objects with label and text, or of an object; None where it is none."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        labels = value.get("label") or LETTERS[: len(value["text"])]
        return _two_or_more(labels, value["text"])
    if isinstance(value, Mapping):
        return _two_or_more(list(value), list(value.values()))
    if not isinstance(value, list):
        return None
    if all(isinstance(one, Mapping) and {"label", "text"} <= one.keys() for one in value):
        return _two_or_more([one["label"] for one in value], [one["text"] for one in value])
    return _two_or_more(LETTERS, value)


def _two_or_more(labels: Sequence[Any], texts: Sequence[Any]) -> Choices | None:
    plain = [str(text).strip() if isinstance(text, str | int | float) else "" for text in texts]
    if not 2 <= len(texts) <= len(LETTERS) or len(labels) < len(texts) or not all(plain):
        return None
    named = [str(label).strip() for label in labels[: len(texts)]]
    spoken = [
        re.fullmatch(rf"\(?{re.escape(n)}[.):]\s*(\S.*)", t, re.DOTALL) for n, t in zip(named, plain, strict=True)
    ]
    if all(spoken):  # each text begins with its own label
        plain = [found[1] for found in spoken if found]
    return tuple(named), tuple(plain)


def _of_columns(row: Mapping[str, Any]) -> Choices | None:
    """The choices of columns A, B, C, ..."""
    names = [letter for letter in LETTERS if letter in row]
    if names != list(LETTERS[: len(names)]):
        return None
    return _two_or_more(names, [row[name] for name in names])


def _found(row: Mapping[str, Any]) -> Choices | None:
    name = first_of(row, _CHOICES)
    return _of_columns(row) if name is None else _choices(row[name])


def _chooses(value: Any) -> bool:
    """Whether a value could say which choice is right: a number, a text."""
    return (isinstance(value, str | int | float) and not isinstance(value, bool)) and not blank(value)


def _fits(row: Mapping[str, Any]) -> bool:
    found = _found(row)
    named = [row[name] for name in _ANSWERS if name in row]
    return found is not None and bool(named) and all(map(_chooses, named))


def _right(value: Any, name: str, choices: Choices) -> tuple[int, bool]:
    """The place of the choice that a value names, and whether it is its number.

    Raises:
        Reject: it names none, or may name two.
    """
    labels, texts = choices
    word = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    lowered = [label.lower() for label in labels]
    by_label = lowered.index(word.lower()) if word.lower() in lowered else None
    by_text = texts.index(word) if texts.count(word) == 1 else None
    if by_label is not None:
        if by_text not in (None, by_label):
            raise Reject(f"{name} is {word!r}, which is the label of one choice and the text of another")
        return by_label, False
    if re.fullmatch(r"-?\d+", word):
        return _numbered(value, word, name, texts, by_text)
    if by_text is not None:
        return by_text, False
    spoken = _SPOKEN.fullmatch(word)
    if spoken and spoken[1].lower() in lowered:
        at = lowered.index(spoken[1].lower())
        if spoken[2] is None or spoken[2].strip() == texts[at]:
            return at, False
    raise Reject(f"{name} is {word[:60]!r}, which is none of its {len(texts)} choices ({', '.join(labels)})")


def _numbered(value: Any, word: str, name: str, texts: Sequence[str], by_text: int | None) -> tuple[int, bool]:
    """The choice of a number, which counts from 0, or is the text of a choice."""
    inside = 0 <= int(word) < len(texts)
    if by_text is not None and (isinstance(value, str) or not inside or by_text == int(word)):
        return by_text, False
    if by_text is not None or isinstance(value, str):
        other = "the text of a choice or its number" if by_text is not None else "counted from 0 or from 1"
        raise Reject(f"{name} is {word}, which may be {other}; write the choice itself, or its letter")
    if not inside:
        why = (
            f"{name} is {word}, and its {len(texts)} choices are counted from 0; if the file counts from 1, write the "
            "choices' letters or texts"
        )
        raise Doubtful(why, COUNTED) if int(word) == len(texts) else Reject(why)
    return int(word), True


def _read(row: Mapping[str, Any]) -> list[Row]:
    question = first_of(row, _QUESTIONS)
    choices = _found(row)
    assert question is not None and choices is not None
    found = {name: _right(row[name], name, choices) for name in _ANSWERS if name in row}
    places = {at for at, _ in found.values()}
    if len(places) != 1:
        raise Reject(f"its right choices contradict each other: {', '.join(found)}")
    [right] = places
    given = [string(row[name], name).strip() for name in _CONTEXTS if not blank(row.get(name))]
    stem = string(row[question], question).strip()
    if not stem:
        raise Reject("its question is empty")
    listed = "\n".join(f"{label}. {text}" for label, text in zip(*choices, strict=True))
    messages = asked(row, None, turns("\n\n".join([*given, stem, listed]), question))
    notes = (COUNTED,) if any(number for _, number in found.values()) else ()
    return [Row(messages=messages, answers=(choices[1][right],), ranks=(0,), notes=notes)]


MULTIPLE_CHOICE: dict[str, Format] = {
    "multiple choice": Format(
        columns="question, choices, answer (a letter, a choice, or its number from 0)",
        required=(_QUESTIONS, _CHOICES, _ANSWERS),
        optional=(*SYSTEM, *_CONTEXTS, *_ANSWERS),
        fits=_fits,
        read=_read,
        example={"question": "Which one is a river?", "choices": ["Rain", "Ebro"], "answer": 1},
        note="MMLU's, ARC's, RACE's and MedQA's form: the choices follow the question, each on a line with its letter; "
        "the right one is the response",
    ),
    "choices in columns": Format(
        columns="question, A, B, C, D, answer",
        required=(_QUESTIONS, "A", "B", _ANSWERS),
        optional=(*SYSTEM, *_CONTEXTS, *_ANSWERS, *LETTERS[2:]),
        fits=_fits,
        read=_read,
        example={"question": "Which one is a river?", "A": "Rain", "B": "Ebro", "answer": "B"},
        note="as multiple choice, with a column for each choice",
    ),
}
