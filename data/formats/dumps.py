"""Conversations as two programs write them: MOSS's turns by name, and ChatGPT's tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.formats.rows import Format, Reject, Row
from data.formats.turns import conversation, message
from data.formats.values import kind, listed, string
from data.records import Message

BRANCHES = "other branches of a conversation left out"


def _moss(row: Mapping[str, Any]) -> list[Row]:
    """Turns of MOSS, which name its thoughts and commands as well."""
    out = list(_instructed(row))
    for turn in row["chat"].values():
        if not isinstance(turn, Mapping) or "Human" not in turn or "MOSS" not in turn:
            raise Reject("chat holds no turns with Human and MOSS")
        used = [
            name for name in ("Commands", "Tool Responses") if _said_by_moss(turn.get(name, "")) not in ("", "None")
        ]
        if used:
            raise Reject(f"a turn of MOSS has {' and '.join(used)} in a notation of its own, which nothing reads")
        out += [
            Message(role="user", content=_said_by_moss(turn["Human"])),
            Message(role="assistant", content=_said_by_moss(turn["MOSS"])),
        ]
    return [conversation(out, "chat")]


def _instructed(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """MOSS's instruction of itself."""
    text = string(row["meta_instruction"], "meta_instruction").strip()
    return (Message(role="system", content=text),) if text else ()


def _said_by_moss(value: Any) -> str:
    text = re.sub(r"\A\s*<\|[^|]+\|>:", "", string(value, "a turn of MOSS"))
    return re.sub(r"(?:\s|<eo[a-z]>)+\Z", "", text).strip()


def _export(row: Mapping[str, Any]) -> list[Row]:
    """ChatGPT's export of a conversation: a tree, read from its current end to its root."""
    nodes = row["mapping"]
    ends = [name for name, node in nodes.items() if not _part(node, "children")]
    at, path = row.get("current_node") or (ends[-1] if ends else ""), list[Message]()
    for _ in range(len(nodes)):
        node = nodes.get(str(at))
        if node is None:
            break
        said = _part(node, "message")
        parts = listed(_part(_part(said, "content"), "parts") or [], "parts")
        if any(isinstance(part, str) and part.strip() for part in parts):
            path.append(message({**said, "content": parts}, "mapping"))
        at = _part(node, "parent")
    made = conversation(path[::-1], "mapping")
    return [replace(made, notes=(*made.notes, *(BRANCHES,) * max(len(ends) - 1, 0)))]


def _part(value: Any, name: str) -> Any:
    """What an object has under a name; nothing of nothing.

    Raises:
        Reject: it is something else.
    """
    if value is not None and not isinstance(value, Mapping):
        raise Reject(f"mapping holds {kind(value)} where an object was expected")
    return None if value is None else value.get(name)


DUMPS: dict[str, Format] = {
    "MOSS": Format(
        columns="meta_instruction, chat: {turn_1: {Human, MOSS}}",
        required=("meta_instruction", "chat"),
        optional=("num_turns",),
        fits=lambda row: isinstance(row["chat"], Mapping),
        read=_moss,
        example={
            "meta_instruction": "Be brief.",
            "num_turns": 1,
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: Name a river.<eoh>\n",
                    "Commands": "<|Commands|>: None<eoc>\n",
                    "MOSS": "<|MOSS|>: The Ebro.<eom>\n",
                }
            },
        },
        note="turns with commands or their results are refused",
    ),
    "ChatGPT export": Format(
        columns="title, mapping: {id: {message, parent, children}}",
        required=("mapping",),
        optional=("current_node", "conversation_template_id", "moderation_results", "is_archived", "safe_urls"),
        kept=("safe_urls",),
        fits=lambda row: isinstance(row["mapping"], Mapping),
        read=_export,
        example={
            "title": "A river",
            "mapping": {
                "a": {"message": None, "parent": None, "children": ["b"]},
                "b": {
                    "message": {"author": {"role": "user"}, "content": {"parts": ["Name a river."]}},
                    "parent": "a",
                    "children": ["c"],
                },
                "c": {
                    "message": {"author": {"role": "assistant"}, "content": {"parts": ["The Ebro."]}},
                    "parent": "b",
                    "children": [],
                },
            },
        },
        note="a conversation of conversations.json, from its current end to its root; other branches are counted",
    ),
}
