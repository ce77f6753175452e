"""Conversations: OpenAI's messages, ShareGPT and its variants, pairs of turns, and a thumb on the last response."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.formats.one_response import LABELS, THOUGHTS, finished_of, judged_one, single
from data.formats.ranking import pair, side
from data.formats.rows import Format, Reject, Row
from data.formats.transcripts import spoken
from data.formats.turns import (
    CONTENT_KEYS,
    PRETRAIN,
    ROLE_KEYS,
    ROLES,
    SYSTEM,
    asked,
    conversation,
    joined,
    message,
    system_of,
    with_tools,
)
from data.formats.values import first_of, listed, string
from data.records import Message

WHOLE = ("messages", "conversations", "conversation", "dialogue", "dialog")


def _messages(row: Mapping[str, Any]) -> list[Row]:
    name = first_of(row, WHOLE)
    assert name is not None
    raw = listed(row[name], name)
    if texts := _pretraining(raw, name):
        return texts
    given = [message(turn, name) for turn in raw]
    _check_mask(row)
    if row.get("prompt") and not any(string(row["prompt"], "prompt").strip() in m.content for m in given):
        raise Reject(f"prompt is none of the turns in {name}")
    system = system_of(row)
    if system and given[:1] and given[0].role == "system" and given[0].content.strip() == system[0].content.strip():
        system = ()
    whole = with_tools(joined([*system, *given])[0], row) if given else ()
    notes = conversation([*system, *given], name).notes
    made = replace(conversation(whole, name), notes=notes, finished=finished_of(row))
    return [judged_one(made, row)] if any(label in row for label in LABELS) else [made]


def _pretraining(raw: list[Any], name: str) -> list[Row]:
    """Plain texts that stand in turns of the role ``pretrain``."""
    plain = [isinstance(turn, Mapping) and turn.get("role") == PRETRAIN for turn in raw]
    if not any(plain):
        return []
    if not all(plain):
        raise Reject(f"{name} mixes turns of role 'pretrain' with others")
    texts = [string(turn.get("content"), f"a turn in {name}") for turn in raw]
    if any(not text.strip() for text in texts):
        raise Reject("the text is empty")
    return [Row(text=text) for text in texts]


def _check_mask(row: Mapping[str, Any]) -> None:
    """``mask`` names the speaker who is not trained on: that can only be somebody else than the assistant."""
    mask = row.get("mask")
    if isinstance(mask, str) and mask.strip() and ROLES.get(mask.strip().lower()) != "user":
        raise Reject(f"mask is {mask[:40]!r}: only the user's turns can be left out of training")


_SIDES = {**ROLES, "input": ROLES["user"], "output": ROLES["assistant"]}


def _paired_turns(row: Mapping[str, Any]) -> list[Row]:
    """``conversation: [{human, assistant}, ...]``, as Firefly has it, or texts in turn."""
    name = first_of(row, WHOLE)
    assert name is not None
    out = list(system_of(row))
    for turn in listed(_in_turn(row[name]), name):
        if isinstance(turn, str):
            last = out[-1].role if out else "assistant"
            out.append(Message(role="assistant" if last == "user" else "user", content=string(turn, name)))
            continue
        if not isinstance(turn, Mapping):
            raise Reject(f"{name} holds a turn that is no object")
        for speaker, text in turn.items():
            role = _SIDES.get(str(speaker).lower())
            if role is None:
                raise Reject(f"{name} has a turn of {str(speaker)[:40]!r}; known are human and assistant")
            out.append(Message(role=role, content=string(text, f"a turn in {name}")))
    return [replace(conversation(out, name), finished=finished_of(row))]


def _in_turn(value: Any) -> Any:
    """Turns as a list, where an object has them by number (``{"turn_1": {human, assistant}, ...}``)."""
    if not isinstance(value, Mapping) or not value or not all(_NUMBERED.fullmatch(str(key)) for key in value):
        return value
    return [value[key] for key in sorted(value, key=lambda key: int(re.sub(r"\D", "", str(key))))]


_NUMBERED = re.compile(r"(turn|round)?[ _-]?\d{1,6}", re.IGNORECASE)


def _is_paired(row: Mapping[str, Any]) -> bool:
    turns = _in_turn(next((row[name] for name in WHOLE if name in row), None))
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, str):
        return True
    return isinstance(first, Mapping) and not {"role", "from"} & set(first) and set(first) <= set(_SIDES)


def _with_rejected(row: Mapping[str, Any]) -> list[Row]:
    """A conversation whose last turn is chosen, and another last turn that is rejected."""
    name = first_of(row, WHOLE)
    other = first_of(row, ("rejected_response", "rejected", "rejected_messages"))
    assert name is not None and other is not None
    [made] = _messages({k: v for k, v in row.items() if k not in LABELS})
    if not made.answers:
        raise Reject(f"{name} does not end with the assistant's turn, which {other} would be compared with")
    return [
        pair(
            [(made.messages, made.answers[0], made.notes), side(row[other], other, made.messages)],
            row,
            ("the last turn", other),
        )
    ]


def _ends_with_assistant(row: Mapping[str, Any]) -> bool:
    value = next((row[name] for name in WHOLE if name in row), None)
    last = value[-1] if isinstance(value, list) and value else None
    said = last.get("role", last.get("from")) if isinstance(last, Mapping) else None
    return isinstance(said, str) and ROLES.get(said.lower()) == "assistant"


WRITTEN = ("chat", "conversation", "conversations", "dialogue", "dialog", "transcript", "plain_text", "input")
"""Columns that may hold a whole conversation as one text."""


def _transcript(row: Mapping[str, Any]) -> list[Row]:
    name = first_of(row, WRITTEN)
    assert name is not None
    given = system_of(row)
    if given:
        given = (replace(given[0], content=given[0].content.removeprefix("SYSTEM:").strip()),)
    made = conversation([*given, *(spoken(string(row[name], name)) or ())], name)
    return [replace(made, finished=finished_of(row))]


def _is_transcript(row: Mapping[str, Any]) -> bool:
    name = first_of(row, WRITTEN)
    value = None if name is None else row[name]
    said = spoken(value) if isinstance(value, str) else None
    return said is not None and said[-1].role == "assistant" and bool(said[-1].content)


def _user_and_assistant(row: Mapping[str, Any]) -> list[Row]:
    question = first_of(row, ("user", "human"))
    reply = first_of(row, ("assistant", "gpt", "bot"))
    assert reply is not None
    return [single(asked(row, question), string(row[reply], reply), row)]


def _is_list(row: Mapping[str, Any]) -> bool:
    name = first_of(row, WHOLE[1:])
    value = None if name is None else row[name]
    return not isinstance(value, str) or value.lstrip()[:1] == "["


TURNS = ("chat", "turns", "contents", "chat_messages", "utterances", "thread", "chats", "items")
"""Less usual names of a list of turns."""


def _are_turns(row: Mapping[str, Any]) -> bool:
    name = first_of(row, TURNS)
    value = None if name is None else row[name]
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(set(value) & set(ROLE_KEYS)) and bool(set(value) & set(CONTENT_KEYS))


def _turns(row: Mapping[str, Any]) -> list[Row]:
    name = first_of(row, TURNS)
    assert name is not None
    given = {k: v for k, v in row.items() if k not in (name, "systemInstruction")}
    if (system := row.get("systemInstruction")) is not None:
        if other := first_of(given, SYSTEM):
            raise Reject(f"it has systemInstruction and {other}, which say what the system says")
        given["system"] = system.get("parts") if isinstance(system, Mapping) else system
    return _messages({**given, "messages": row[name]})


_EXTRAS = (*SYSTEM, "tools", "functions", "finished", "mask", "parallel_tool_calls")
_Q, _A = {"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Ebro."}

CHAT: dict[str, Format] = {
    "transcript": Format(
        columns="chat (one text with USER: and ASSISTANT:, or other marks)",
        required=(WRITTEN,),
        optional=(*SYSTEM, "finished"),
        fits=_is_transcript,
        read=_transcript,
        example={"system": "SYSTEM: Be brief.", "chat": "USER: Name a river.\n\n\nASSISTANT: The Ebro. <|endoftext|>"},
        note="turns by their marks: Human:/Assistant:, User:/Assistant:, USER:/ASSISTANT:/FUNCTION RESPONSE:, "
        "### Human:/### Assistant:, [|Human|]/[|AI|], ChatML, [INST]; a prompt or a text may be one as well",
    ),
    "messages": Format(
        columns="messages: [{role, content}]",
        required=("messages",),
        optional=("prompt", *_EXTRAS),
        read=_messages,
        example={"messages": [{"role": "developer", "content": "Be brief."}, _Q, _A]},
        note="content may be text, parts of text, or null next to tool_calls; OpenAI's roles and their other names",
    ),
    "texts in turn": Format(
        columns="id, data: [text, text, ...]",
        required=("data",),
        optional=(*SYSTEM, "finished"),
        fits=lambda row: isinstance(row["data"], list) and all(isinstance(turn, str) for turn in row["data"]),
        read=lambda row: _paired_turns({**row, "conversation": row["data"]}),
        example={"id": "1", "data": ["Name a river.", "The Ebro."]},
        note="UltraChat's form: the user and the assistant take turns",
    ),
    "paired turns": Format(
        columns="conversation: [{human, assistant}]",
        required=(WHOLE[1:],),
        optional=(*SYSTEM, "finished"),
        fits=_is_paired,
        read=_paired_turns,
        example={"conversation": [{"human": "Name a river.", "assistant": "The Ebro."}], "category": "geography"},
        note="Firefly's form; input and output, texts that take turns, and turns by number (turn_1) are read as well",
    ),
    "sharegpt": Format(
        columns="conversations: [{from, value}]",
        required=(WHOLE[1:],),
        optional=_EXTRAS,
        fits=_is_list,
        read=_messages,
        example={
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "Name a river."}, {"from": "gpt", "value": "The Ebro."}],
        },
        note="function_call and observation turns are a call of the assistant and the tool's answer",
    ),
    "turns": Format(
        columns="chat, turns, contents, chat_messages or utterances: [{role, content}]",
        required=(TURNS,),
        optional=(*_EXTRAS, "systemInstruction"),
        fits=_are_turns,
        read=_turns,
        example={
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Name a river."}]},
                {"role": "model", "parts": [{"text": "The Ebro."}]},
            ],
        },
        note="Gemini's form and others; a turn's role may stand under role, from, speaker, sender or author, its text "
        "under content, value, text, parts, utterance or message",
    ),
    "messages with a thumb": Format(
        columns="messages: [{role, content}], label",
        required=(WHOLE, LABELS),
        optional=(*_EXTRAS, *LABELS),
        read=_messages,
        example={"messages": [_Q, {"role": "assistant", "content": "Rain."}], "label": False},
        note="a thumb on the last response: see thumbs below",
    ),
    "messages with a rejected answer": Format(
        columns="messages: [..., the chosen answer], rejected_response",
        required=(WHOLE, ("rejected_response", "rejected", "rejected_messages")),
        optional=_EXTRAS,
        fits=_ends_with_assistant,
        read=_with_rejected,
        example={"messages": [_Q, _A], "rejected_response": "Rain."},
    ),
    "user and assistant": Format(
        columns="user, assistant",
        required=(("user", "human"), ("assistant", "gpt", "bot")),
        optional=(*SYSTEM, "history", "finished", *THOUGHTS),
        read=_user_and_assistant,
        example={"user": "Name a river.", "assistant": "The Ebro."},
    ),
}
