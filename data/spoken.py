"""Turns as templates take them, and what of them a rendered text must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data.records import Message


def shown(turn: Message) -> dict[str, Any]:
    """What a template sees of a turn; the tools on offer are given to it by themselves."""
    out: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        out["tool_calls"] = json.loads(turn.tool_calls)
    if turn.tool_call_id:
        out["tool_call_id"] = turn.tool_call_id
    if turn.name:
        out["name"] = turn.name
    return out


def spoken(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages, or what ``Message.as_dict`` writes of them, as messages."""
    return tuple(m if isinstance(m, Message) else Message.from_dict(m) for m in messages)


def uncarried(turns: Sequence[Message], text: str) -> str:
    """What of tools and calls is not in the rendered text, in words; empty where all is."""
    for turn in turns:
        if turn.tools and (lost := _missing(json.loads(turn.tools), text)):
            return f"the tool {lost!r} that is on offer"
        if turn.tool_calls and (lost := _missing(json.loads(turn.tool_calls), text)):
            return f"the call of the tool {lost!r}"
        if turn.role == "tool" and turn.content.strip() and "".join(turn.content.split()) not in "".join(text.split()):
            return f"the tool's answer {turn.content[:40]!r}"
    return ""


def _missing(named: Sequence[Mapping[str, Any]], text: str) -> str:
    names = (str(one.get("function", one).get("name", "")) for one in named)
    return next((name for name in names if name not in text), "")
