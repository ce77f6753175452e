"""Turns as templates take them, and what of them a rendered text must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.records import Message


class Turn(NamedTuple):
    """One turn; ``calls`` and ``tools`` are JSON, empty where there are none."""

    role: str
    content: str
    calls: str = ""
    call_id: str = ""
    name: str = ""
    tools: str = ""
    trained: bool = True

    def as_dict(self) -> dict[str, Any]:
        """What a template sees of it."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            out["tool_calls"] = json.loads(self.calls)
        if self.call_id:
            out["tool_call_id"] = self.call_id
        if self.name:
            out["name"] = self.name
        return out


def spoken(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Messages, or what ``Message.as_dict`` writes of them, as turns."""
    whole = [m if isinstance(m, Message) else Message.from_dict(m) for m in messages]
    return tuple(Turn(m.role, m.content, m.tool_calls, m.tool_call_id, m.name, m.tools, m.trained) for m in whole)


def uncarried(turns: Sequence[Turn], text: str) -> str:
    """What of tools and calls is not in the rendered text, in words; empty where all is."""
    for turn in turns:
        if turn.tools and (lost := _missing(json.loads(turn.tools), text)):
            return f"the tool {lost!r} that is on offer"
        if turn.calls and (lost := _missing(json.loads(turn.calls), text)):
            return f"the call of the tool {lost!r}"
        if turn.role == "tool" and turn.content.strip() and "".join(turn.content.split()) not in "".join(text.split()):
            return f"the tool's answer {turn.content[:40]!r}"
    return ""


def _missing(named: Sequence[Mapping[str, Any]], text: str) -> str:
    names = (str(one.get("function", one).get("name", "")) for one in named)
    return next((name for name in names if name not in text), "")
