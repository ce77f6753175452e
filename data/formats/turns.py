"""Turns of a conversation as people write them: roles, content in parts, tools and their calls, reasoning.

All become ``Message``s: developer is system; function, observation and tool_response are tool; a call is kept in
OpenAI's form next to its turn's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.formats.rows import MERGED, REASONING, Reject, Row
from data.formats.transcripts import spoken
from data.formats.values import blank, kind, listed, parsed, string, words
from data.records import Message, Role

ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "customer", "question", "client"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "chatbot", "model", "ai", "answer"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "tool_result", "ipython"), "tool"),
}
ROLE_KEYS = ("role", "from", "speaker", "sender", "author")
CONTENT_KEYS = ("content", "value", "text", "parts", "utterance", "message")
CALLS = frozenset({"function_call", "tool_call"})
"""Roles of a turn whose content is a call, as JSON."""

PRETRAIN = "pretrain"
PICTURES = frozenset({"image", "image_url", "input_image", "video", "video_url", "audio", "input_audio", "audio_url"})
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_WEIGHTS = ("loss", "loss_weight", "weight", "train", "trainable")
_READ = frozenset(
    {
        *ROLE_KEYS,
        *CONTENT_KEYS,
        "tool_calls",
        "function_call",
        "tool_call_id",
        "name",
        "reasoning_content",
        "reasoning",
        "thinking",
        *_WEIGHTS,
    }
)
_METADATA = words(
    "id index idx model timestamp date lang language type refusal audio annotations function markdown eval_correct "
    "redacted toxic turn_identifier country state hashed_ip header image mimeType uuid created_at updated_at "
    "attachments files message_id create_time"
)


def message(turn: Any, name: str) -> Message:
    """One turn of a list of them."""
    if not isinstance(turn, Mapping):
        raise Reject(f"{name} holds {kind(turn)} where a turn with role and content was expected")
    said = next((turn[k] for k in ROLE_KEYS if turn.get(k) is not None), None)
    if isinstance(said, Mapping):
        said = said.get("role")
    lowered = said.strip().lower() if isinstance(said, str) else ""
    if lowered == "system" and "speaker" in turn:
        lowered = ""  # task-oriented dialogues call the assistant so
    if lowered not in ROLES and lowered not in CALLS:
        raise Reject(
            f"{name} has a turn of role {repr(said)[:60]}; known are user, assistant, system and tool, with their "
            "other names (human, gpt, developer, function, observation, ...)"
        )
    if over := [k for k, v in turn.items() if k not in _READ and k not in _METADATA and not blank(v)]:
        raise Reject(f"a turn in {name} has {', '.join(map(repr, over))}, which nothing reads")
    role = "assistant" if lowered in CALLS else ROLES[lowered]
    _check_says_one_thing(turn, name)
    given = next((turn[k] for k in CONTENT_KEYS if turn.get(k) is not None), None)
    if isinstance(given, Mapping):
        given = given.get("parts", given.get("text", given.get("content")))
    calls = [*_calls(turn.get("tool_calls"), name), *_calls(turn.get("function_call"), name)]
    if lowered in CALLS:
        calls, given = [*calls, *_calls(given, name)], ""
    if given is None and not calls:
        raise Reject(f"a turn in {name} is null, not text")
    text, more = _content(given, f"a turn in {name}")
    calls += more
    if calls and role != "assistant":
        raise Reject(f"{name} has a turn of {said} that calls a tool")
    thought = next((turn[k] for k in ("reasoning_content", "reasoning", "thinking") if not blank(turn.get(k))), None)
    if thought is not None and (text.strip() or calls):
        text = with_reasoning(string(thought, f"the reasoning of a turn in {name}"), text)
    return Message(
        role=role,
        content=text,
        tool_calls=json.dumps(calls, ensure_ascii=False) if calls else "",
        tool_call_id=string(turn.get("tool_call_id") or "", "tool_call_id"),
        name=string(turn.get("name") or "", "name") if role == "tool" else "",
        trained=_trained(turn, role, name),
    )


def _check_says_one_thing(turn: Mapping[str, Any], name: str) -> None:
    """Refuse a turn that has two roles, or two texts, of which only one would be read."""
    for keys in (ROLE_KEYS, CONTENT_KEYS):
        values = {key: turn[key] for key in keys if not blank(turn.get(key))}
        if keys is ROLE_KEYS:
            values = {k: ROLES[v.strip().lower()] for k, v in values.items() if _is_role(v)}
        if any(value != next(iter(values.values())) for value in values.values()):
            raise Reject(f"a turn in {name} has {' and '.join(values)}, which differ; keep one")


def _is_role(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in ROLES


def with_reasoning(thought: str, text: str) -> str:
    return f"<think>\n{thought.strip()}\n</think>\n\n{text.lstrip()}"


def _trained(turn: Mapping[str, Any], role: str, name: str) -> bool:
    """Whether a turn's own mark (``loss``, ``weight``, ...) lets it be trained on."""
    for key in _WEIGHTS:
        mark = turn.get(key)
        if mark is None:
            continue
        if mark not in (0, 1):
            raise Reject(f"a turn in {name} has {key} {repr(mark)[:30]}; only 0 and 1 can be kept")
        if mark and role != "assistant":
            raise Reject(f"a turn of {role} in {name} is to be trained on ({key}); only the assistant's are")
        return bool(mark) or role != "assistant"
    return True


def _content(value: Any, name: str) -> tuple[str, list[Any]]:
    """Text and calls of a content: text, or parts of which those of text are joined."""
    if value is None:
        return "", []
    if not isinstance(value, list):
        text = string(value, name)
        return text, []
    texts, calls, thought = [], [], ""
    for part in value:
        if isinstance(part, str):
            texts.append(string(part, name))
            continue
        if not isinstance(part, Mapping):
            raise Reject(f"{name} holds {kind(part)} where a part with type and text was expected")
        what = str(part.get("type", "text"))
        body = part.get("text", part.get("value", part.get("thinking", part.get("content"))))
        if what in PICTURES:
            raise Reject(f"{name} holds {_article(what)}, which a model of text cannot see")
        if what in ("tool_call", "function_call"):
            calls += _calls(part if body is None else body, name)
        elif what in ("reasoning", "thinking"):
            thought = f"{thought}\n{string(body, name)}".strip()
        elif what in ("text", "input_text", "output_text", "tool_result", "refusal") and body is not None:
            texts.append(string(body, name))
        else:
            raise Reject(f"{name} has a part of type {what[:40]!r}, which nothing reads")
    text = "".join(texts)
    return (with_reasoning(thought, text) if thought and (text.strip() or calls) else text), calls


def _article(what: str) -> str:
    plain = what.removeprefix("input_").removesuffix("_url")
    return {"image": "an image", "audio": "audio"}.get(plain, f"a {plain}")


def _calls(value: Any, name: str) -> list[Any]:
    """Calls in OpenAI's form, arguments as an object: ``{"type": "function", "function": {"name", "arguments"}}``."""
    if blank(value):
        return []
    if isinstance(value, str):
        value = parsed(value, f"a call in {name}")
    found = []
    for one in value if isinstance(value, list) else [value]:
        function = one.get("function", one) if isinstance(one, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Reject(f"a call in {name} names no function")
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = parsed(arguments or "{}", f"a call's arguments in {name}")
        call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        found.append({"id": one["id"], **call} if isinstance(one.get("id"), str) else call)
    return found


def tools_of(value: Any) -> str:
    """The tools on offer as JSON, or nothing where there are none."""
    if isinstance(value, str):
        value = parsed(value, "tools") if value.strip() else []
    if blank(value):
        return ""
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise Reject("tools is no list of objects")
    whole = [tool if "function" in tool else {"type": "function", "function": tool} for tool in value]
    return json.dumps(whole, ensure_ascii=False)


def turns(value: Any, name: str) -> tuple[Message, ...]:
    """A prompt: text, one turn, a list of turns, or a transcript that waits for an answer; blank text is no prompt."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        text = string(value, name)
        if _TRANSCRIPT.match(text):
            return tuple(transcript(text, name)[:-1])
        said = spoken(text) or []
        if len(said) > 1 and not (said[-1].role == "assistant" and said[-1].content):
            return tuple(said[:-1] if said[-1].role == "assistant" else said)
        return (Message(role="user", content=text),) if text.strip() else ()
    return tuple(message(turn, name) for turn in value)


_TRANSCRIPT = re.compile(r"\s*Human:.*\n\nAssistant:\s*\Z", re.DOTALL)
"""A prompt as Anthropic's data has it, that ends where the assistant is to speak."""


def transcript(text: str, name: str) -> list[Message]:
    """Turns of a text with "\\n\\nHuman:" and "\\n\\nAssistant:" before each; the last may be empty.

    Raises:
        Reject: it does not begin and end with a turn.
    """
    parts = re.split(r"(?:^\s*|\n\n)(Human|Assistant):", text)
    if parts[0].strip():
        raise Reject(f"{name} does not start with a turn")
    roles: list[Role] = ["user" if p == "Human" else "assistant" for p in parts[1::2]]
    found = [Message(role=r, content=c.strip()) for r, c in zip(roles, parts[2::2], strict=True)]
    if not found or found[-1].role != "assistant":
        raise Reject(f"{name} does not end with a turn of the assistant")
    return found


def answer(value: Any, name: str) -> str:
    """A response: text, the assistant's turn, or a list of just that."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return string(value, name)
    if len(value) == 1 and isinstance(value[0], str):
        return string(value[0], name)
    if len(value) != 1:
        what = "texts" if value and all(isinstance(one, str) for one in value) else "turns"
        raise Reject(f"{name} has {len(value)} {what} where one was expected")
    return _spoken(message(value[0], name), name)


def _spoken(turn: Message, name: str) -> str:
    if turn.role != "assistant":
        raise Reject(f"{name} is a turn of {turn.role}, not of the assistant")
    if turn.tool_calls:
        raise Reject(f"{name} ends with a call of a tool, not with a response in text")
    return turn.content


def joined(given: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Turns with neighbours of one role as one; results of tools stay separate."""
    out: list[Message] = []
    merged = False
    for turn in given:
        last = out[-1] if out else None
        if last is None or last.role != turn.role or turn.role == "tool" or last.trained != turn.trained:
            out.append(turn)
            continue
        calls = [*json.loads(last.tool_calls or "[]"), *json.loads(turn.tool_calls or "[]")]
        text = f"{last.content}\n\n{turn.content}" if last.content and turn.content else last.content + turn.content
        merged |= bool(last.content and turn.content)
        out[-1] = replace(last, content=text, tool_calls=json.dumps(calls, ensure_ascii=False) if calls else "")
    return tuple(out), (MERGED,) if merged else ()


def conversation(given: Sequence[Message], name: str) -> Row:
    """Turns whose last is the response, or a prompt alone if somebody else spoke last.

    Raises:
        Reject: there is none, an assistant's turn is empty, a picture is meant, or it ends with a call.
    """
    whole, notes = joined(given)
    if not whole:
        raise Reject(f"{name} is empty")
    check(whole, name)
    notes += (REASONING,) if any("</think>" in m.content for m in whole if m.role == "assistant") else ()
    if whole[-1].role != "assistant":
        return Row(messages=whole, notes=notes)
    if not whole[-1].trained:
        raise Reject(f"the last turn in {name} is marked as not to be trained on")
    return Row(messages=whole[:-1], answers=(_spoken(whole[-1], name),), ranks=(0,), notes=notes)


def check(whole: Sequence[Message], name: str) -> None:
    """Refuse turns that cannot be meant as they stand: an empty one of the assistant, a placeholder of a picture."""
    for number, turn in enumerate(whole, 1):
        if turn.role == "tool" and (number == 1 or whole[number - 2].role not in ("assistant", "tool")):
            raise Reject(f"turn {number} in {name}, of role 'tool', answers no turn of the assistant")
        if turn.role == "assistant" and not turn.content.strip() and not turn.tool_calls:
            raise Reject(f"turn {number} in {name}, of the assistant, is empty")
        if turn.role == "user" and (found := _PLACEHOLDER.search(turn.content)):
            raise Reject(
                f"turn {number} in {name} holds {found[0]}, which stands for {_article(found[1])} that a model of text "
                "cannot see"
            )


def conversation_prompt(given: Sequence[Any], name: str = "prompt") -> tuple[Message, ...]:
    """Turns of which the last is not the assistant's."""
    row = conversation([message(t, name) for t in given], name)
    if row.answers:
        raise Reject("the prompt ends with a turn of the assistant")
    return row.messages


def system_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The system message that a column of its own holds."""
    for name in SYSTEM:
        if not blank(row.get(name)):
            value = row[name]
            text = _content(value, name)[0] if isinstance(value, list) else string(value, name)
            return (Message(role="system", content=text),)
    return ()


def history_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Earlier turns: pairs of question and answer, or turns with roles."""
    out: list[Message] = []
    for turn in listed(row["history"], "history") if not blank(row.get("history")) else []:
        if isinstance(turn, Mapping):
            out.append(message(turn, "history"))
            continue
        pair = listed(turn, "history")
        if len(pair) != 2:
            raise Reject(f"history holds a turn of {len(pair)} texts where question and answer were expected")
        out.append(Message(role="user", content=string(pair[0], "history")))
        out.append(Message(role="assistant", content=string(pair[1], "history")))
    return tuple(out)


def asked(row: Mapping[str, Any], name: str | None, given: tuple[Message, ...] | None = None) -> tuple[Message, ...]:
    """Everything before the response: system, history and the column ``name`` (or turns ``given`` instead of one)."""
    if given is None and name is not None:
        value = row[name]
        given = conversation_prompt(value, name) if isinstance(value, list) and value else turns(value, name)
    own = given or ()
    system = system_of(row)
    if system and own[:1] and own[0].role == "system" and own[0].content.strip() == system[0].content.strip():
        system = ()
    whole, _ = joined([*system, *history_of(row), *own])
    check(whole, name or "prompt")
    return with_tools(whole, row)


def with_tools(whole: tuple[Message, ...], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The turns with the tools on offer, which the first of them carries."""
    offered = tools_of(row.get("tools", row.get("functions")))
    if not offered:
        return whole
    if not whole:
        raise Reject("it offers tools and has no prompt")
    return (replace(whole[0], tools=offered), *whole[1:])


SYSTEM = ("system", "system_prompt", "system_message")
BEFORE = (*SYSTEM, "history", "tools", "functions")
"""Optional columns that ``asked`` reads."""
