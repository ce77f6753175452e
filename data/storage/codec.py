"""Records to bytes and back: what a record says in the form that fingerprints hash, and beside it what they do not.

Knows nothing of files.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from data.records import Demonstration, Document, Message, Prompt, RankedAnswers

_TAG = "\x00type"
"""The key of an object that stands for a value that JSON does not know."""


# made once: the functions of ``json`` make an encoder for every call that asks for more than the defaults
_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
_as_it_stands = json.JSONEncoder(ensure_ascii=False).encode
_parsed = json.JSONDecoder().decode


class Encoded(NamedTuple):
    """A record as bytes: its content, its place, and the rest as JSON (empty where there is none)."""

    content: bytes
    source: bytes
    rest: bytes


class Codec(NamedTuple):
    """How the items of a store become bytes, and what these become."""

    encode: Callable[[Any], Encoded]
    decode: Callable[[Encoded], Any]


def content_of(record: Any) -> dict[str, Any]:
    """What a record says, without its place and the columns of others: plain values, to be hashed."""
    if isinstance(record, Document):
        return {"text": record.text, "group": record.group}
    if isinstance(record, Prompt):
        return _asked(record)
    if isinstance(record, Demonstration):
        return {"prompt": _asked(record.prompt), "answer": record.answer, "finished": record.finished}
    content = {
        "prompt": _asked(record.prompt),
        "answers": record.answers,
        "ranks": record.ranks,
        "scores": record.scores,
        "finished": record.finished,
    }
    return content if record.weight == 1.0 else content | {"weight": record.weight}


def _asked(prompt: Prompt) -> dict[str, Any]:
    return {
        "messages": [m.as_dict() for m in prompt.messages],
        "group": prompt.group,
        "category": prompt.category,
    }


def content_bytes(record: Any) -> bytes:
    """``content_of`` as canonical JSON."""
    return _canonical(content_of(record)).encode()


def prompt_content(content: bytes) -> bytes:
    """Of the content of a record with a prompt that of the prompt alone."""
    return _canonical(_parsed(content.decode())["prompt"]).encode()


def prompt_of(record: Any) -> Prompt | None:
    """The prompt that a record is or has; None for a document."""
    return record if isinstance(record, Prompt) else getattr(record, "prompt", None)


def encode(record: Any) -> Encoded:
    """The bytes of a record.

    Raises:
        TypeError, ValueError: a column of it holds a value that cannot be written.
    """
    prompt = prompt_of(record)
    place = record.source if prompt is None else prompt.source
    rest: dict[str, Any] = {}
    if prompt is not None and prompt.columns:
        rest["columns"] = {_key(k): tagged(v) for k, v in prompt.columns.items()}
    if prompt is not None and any(m.tools or m.tool_calls for m in prompt.messages):
        # the content has the keys of calls in order of their names; a template may print them as they were
        rest["calls"] = [[m.tool_calls, m.tools] for m in prompt.messages]
    return Encoded(
        content_bytes(record),
        place.encode(errors="surrogatepass"),
        _as_it_stands(rest).encode(errors="surrogatepass") if rest else b"",
    )


def decode(kind: type[Any], encoded: Encoded) -> Any:
    """The record of which ``encode`` made the bytes."""
    content = _parsed(encoded.content.decode())
    place = encoded.source.decode(errors="surrogatepass")
    if kind is Document:
        return Document(text=content["text"], group=content["group"], source=place)
    rest = _parsed(encoded.rest.decode(errors="surrogatepass")) if encoded.rest else {}
    asked = content if kind is Prompt else content.pop("prompt")
    turns = [Message.from_dict(turn) for turn in asked["messages"]]
    if "calls" in rest:
        turns = [_with_calls(turn, *calls) for turn, calls in zip(turns, rest["calls"], strict=True)]
    prompt = Prompt(
        messages=tuple(turns),
        group=asked["group"],
        source=place,
        category=asked["category"],
        columns={k: untagged(v) for k, v in rest.get("columns", {}).items()},
    )
    if kind is Prompt:
        return prompt
    if kind is Demonstration:
        return Demonstration(prompt=prompt, answer=content["answer"], finished=content["finished"])
    return RankedAnswers(
        prompt=prompt,
        answers=tuple(content["answers"]),
        ranks=tuple(content["ranks"]),
        scores=None if content["scores"] is None else tuple(content["scores"]),
        finished=tuple(content["finished"]),
        weight=content.get("weight", 1.0),
    )


def _with_calls(turn: Message, calls: str, tools: str) -> Message:
    return Message(
        role=turn.role,
        content=turn.content,
        tool_calls=calls,
        tool_call_id=turn.tool_call_id,
        name=turn.name,
        tools=tools,
        trained=turn.trained,
    )


# ---- values of columns: tables have more types than JSON -------------------------------------------------------------

_WRITE: dict[type[Any], Callable[[Any], Any]] = {
    datetime.datetime: lambda v: v.isoformat(),
    datetime.date: lambda v: v.isoformat(),
    datetime.time: lambda v: v.isoformat(),
    datetime.timedelta: lambda v: [v.days, v.seconds, v.microseconds],
    Decimal: str,
    bytes: lambda v: v.hex(),
    tuple: lambda v: [tagged(x) for x in v],
}
_READ: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda v: datetime.timedelta(*v),
    "Decimal": Decimal,
    "bytes": bytes.fromhex,
    "tuple": lambda v: tuple(untagged(x) for x in v),
}


def tagged(value: Any) -> Any:
    """A value as JSON has it, what JSON does not know as ``{_TAG: type, value: ...}``."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if type(value) is list:
        return [tagged(x) for x in value]
    if type(value) is dict:
        return {_key(k): tagged(v) for k, v in value.items()}
    write = _WRITE.get(type(value))
    if write is None or getattr(value, "fold", None):
        raise TypeError(f"a value of type {type(value).__name__} cannot be written")
    return {_TAG: type(value).__name__, "value": write(value)}


def _key(key: Any) -> str:
    if type(key) is not str or key == _TAG:
        raise TypeError(f"the key {key!r} cannot be written")
    return key


def untagged(value: Any) -> Any:
    if isinstance(value, list):
        return [untagged(x) for x in value]
    if not isinstance(value, Mapping):
        return value
    if _TAG in value:
        return _READ[value[_TAG]](value["value"])
    return {k: untagged(v) for k, v in value.items()}
