"""Lines that a refusal prints, put into a recipe as they stand: every row is read, with the values that it holds."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from data.common.errors import UserError
from data.source_settings import DataConfig, Source
from data.sources import load_records

KINDS = ("demonstrations", "rankings", "prompts", "documents")
D, R, P, T = KINDS


def turn(role, text):
    return {"role": role, "content": text}


def said(i):
    return f"Question {i}, which is one?", f"Answer {i} is right.", f"Answer {i} is wrong."


def rows_of(make):
    """Five rows of a shape."""
    return [make(i, *said(i)) for i in range(5)]


SHAPES = {
    "other names": (D, rows_of(lambda i, q, a, b: {"frage": q, "antwort": a})),
    "other names in Chinese": (D, rows_of(lambda i, q, a, b: {"问题": q, "回答": a})),
    "other names in Spanish": (D, rows_of(lambda i, q, a, b: {"pregunta": q, "respuesta": a, "tema": f"theme {i}"})),
    "names with spaces": (D, rows_of(lambda i, q, a, b: {"The Question: in full": q, "A good answer": a})),
    "summaries": (D, rows_of(lambda i, q, a, b: {"document": q, "summary": a, "id": str(i)})),
    "by their order": (D, rows_of(lambda i, q, a, b: {"left hand": q, "right hand": a})),
    "slips": (D, rows_of(lambda i, q, a, b: {"prompt": q, "completoin": a})),
    "an extra text": (D, rows_of(lambda i, q, a, b: {"prompt": q, "completion": a, "persona": "a pirate"})),
    "an extra text in some rows": (
        D,
        rows_of(lambda i, q, a, b: {"prompt": q, "completion": a, ("persona", "hint", "mood")[i % 3]: "some text"}),
    ),
    "an extra text that is null at first": (
        D,
        rows_of(lambda i, q, a, b: {"frage": q, "antwort": a, "remarks": None if i < 3 else "some text"}),
    ),
    "nested": (D, rows_of(lambda i, q, a, b: {"inputs": {"question": q}, "outputs": {"answer": a}})),
    "the hub's viewer": (D, rows_of(lambda i, q, a, b: {"row_idx": i, "row": {"prompt": q, "completion": a}})),
    "a server's log": (
        D,
        rows_of(
            lambda i, q, a, b: {
                "request": {"model": "m", "messages": [turn("user", q)]},
                "response": {"choices": [{"message": turn("assistant", a), "finish_reason": "stop"}]},
            }
        ),
    ),
    "alternatives": (D, rows_of(lambda i, q, a, b: {"question": q, "answer": [a, b]})),
    "an object as the answer": (D, rows_of(lambda i, q, a, b: {"question": q, "answer": {"text": a, "at": i}})),
    "a log of turns": (D, rows_of(lambda i, q, a, b: {"log": [turn("user", q), turn("assistant", a)]})),
    "a score of another name": (D, rows_of(lambda i, q, a, b: {"prompt": q, "response": a, "stars": 5})),
    "a thumb of another name": (D, rows_of(lambda i, q, a, b: {"prompt": q, "response": a, "feedback": "👍"})),
    "references": (D, rows_of(lambda i, q, a, b: {"prompt": q, "reference": a})),
    "judges of another name": (
        R,
        rows_of(lambda i, q, a, b: {"prompt": q, "answer1": a, "answer2": b, "who": "left"}),
    ),
    "good and other": (R, rows_of(lambda i, q, a, b: {"problem": q, "good": a, "other": b})),
    "all responses": (R, rows_of(lambda i, q, a, b: {"prompt": q, "all_responses": [b, a], "scores": [1, 2]})),
    "ranks of another name": (R, rows_of(lambda i, q, a, b: {"prompt": q, "responses": [b, a], "order": [2, 1]})),
    "the best counted from 0": (R, rows_of(lambda i, q, a, b: {"prompt": q, "responses": [b, a], "best": 1})),
    "prompts of another name": (P, rows_of(lambda i, q, a, b: {"ask": q, "level": "3"})),
    "texts of another name": (T, rows_of(lambda i, q, a, b: {"article": q})),
}


def values_of(kind, records):
    """Prompts and responses, best first, or texts."""
    if kind == D:
        return [(r.prompt.text, r.answer) for r in records]
    if kind == R:
        return [(r.prompt.text, *r.answers) for r in records]
    return [r.text for r in records]


def expected(kind, i):
    q, a, b = said(i)
    return {D: (q, a), R: (q, a, b), P: q, T: q}[kind]


def load(folder, kind, **how):
    return load_records([Source(path="a.jsonl", **how)], kind, DataConfig(), seed=0, base_dir=folder)


@pytest.mark.parametrize("name", SHAPES)
def test_every_line_works_as_it_is_printed(tmp_path, name):
    kind, rows = SHAPES[name]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(tmp_path, kind)
    lines = re.findall(r"`((?:columns|ignore|where|format): .*?)`", str(caught.value))
    assert lines
    right = []
    for line in dict.fromkeys(lines):
        how = yaml.safe_load(f"{{{line}}}")
        whole = {}
        for other in KINDS:
            try:
                found = load(tmp_path, other, **how)
            except UserError:
                continue
            whole[other] = found.records if not found.rejected and found.read == len(rows) else []
        assert any(len(records) == len(rows) for records in whole.values()), line
        right.append(values_of(kind, whole.get(kind, ())) == [expected(kind, i) for i in range(len(rows))])
    assert any(right), lines
