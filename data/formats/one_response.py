"""What a row says of its one response: its label, its scores, what was thought before it, whether it is finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.formats.columns import is_flag
from data.formats.rows import REASONING, Reject, Row
from data.formats.turns import with_reasoning
from data.formats.values import first_of, liked, string
from data.records import Message

LABELS = ("label", "kto_tag", "liked", "thumbs_up", "desirable", "is_safe", "is_correct")
SCORES = ("helpfulness", "overall_score", "quality", "rating", "score", "reward")
"""Of one response, the higher the better, the first that is there."""
THOUGHTS = (
    *("reasoning", "reasoning_content", "reasoning_trace", "thinking", "thinking_content", "thinking_trajectory"),
    *("thought", "thoughts", "cot", "complex_cot", "chain_of_thought"),
)
"""Of one response: what was thought before it was written."""


def finished_of(row: Mapping[str, Any]) -> bool:
    finished = row.get("finished", True)
    if isinstance(finished, str) and finished.strip().lower() in ("true", "false"):  # a table holds texts alone
        return finished.strip().lower() == "true"
    if not isinstance(finished, bool):
        raise Reject(f"finished is {finished!r}, not true or false")
    return finished


def single(messages: tuple[Message, ...], text: str, row: Mapping[str, Any]) -> Row:
    """One response, what was thought before it in front."""
    name = first_of(row, THOUGHTS)
    thought = "" if name is None or is_flag(row[name]) else _thought(row[name], name)
    notes: tuple[str, ...] = ()
    if thought and text.strip() and thought not in text:  # behind which nothing stands, an empty response is one
        if "</think>" in text:
            raise Reject(f"its response holds reasoning of its own, and {name} other")
        text, notes = with_reasoning(thought, text), (REASONING,)
    return Row(messages=messages, answers=(text,), ranks=(0,), finished=finished_of(row), notes=notes)


def _thought(value: Any, name: str) -> str:
    """Reasoning as text, which may stand alone in a list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return string(value, name).strip().removeprefix("<think>").removesuffix("</think>").strip()


def judged_one(made: Row, row: Mapping[str, Any]) -> Row:
    """The row with the label that its one response has."""
    found = [(name, liked(row[name], name)) for name in LABELS if name in row]
    if not made.answers or not found:
        raise Reject("it has a label and no response that the label could be of")
    if len({wanted for _, wanted in found}) > 1:
        raise Reject(f"its labels contradict each other: {', '.join(name for name, _ in found)}")
    return replace(made, judged="label", scores=(float(found[0][1]),))
