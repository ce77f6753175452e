"""Plain texts, and answers that stand without their questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats.rows import Format, Reject, Row
from data.formats.values import listed, string


def _text(row: Mapping[str, Any]) -> list[Row]:
    text = string(row["text"], "text")
    if not text.strip():
        raise Reject("the text is empty")
    return [Row(text=text)]


def _choices(row: Mapping[str, Any]) -> list[Row]:
    """MT-Bench's answers of a model: each turn is a text, since its question stands in another file."""
    rows = []
    for choice in listed(row["choices"], "choices"):
        for text in listed(choice.get("turns") if isinstance(choice, Mapping) else None, "turns"):
            rows.append(Row(text=string(text, "turns")))
    if not rows:
        raise Reject("it has no responses")
    return rows


TEXTS: dict[str, Format] = {
    "text": Format(
        columns="text",
        required=("text",),
        read=_text,
        example={"text": "The Ebro flows through Spain."},
        note="for pretraining",
    ),
    "labelled text": Format(
        columns="text, label",
        required=("text", ("label", "labels")),
        kept=("label", "labels"),
        read=_text,
        example={"text": "The Ebro flows through Spain.", "label": "geography"},
        note="the label becomes the category; to learn it, write columns: {prompt: text, completion: label}",
    ),
    "benchmark answers": Format(
        columns="question_id, choices: [{turns}]",
        required=("question_id", "choices"),
        optional=("answer_id", "model_id", "tstamp"),
        read=_choices,
        example={
            "question_id": 101,
            "answer_id": "x",
            "model_id": "m",
            "choices": [{"index": 0, "turns": ["Second."]}],
        },
        note="MT-Bench's answers without their questions: texts",
    ),
}
