"""Rows as people have them to one neutral shape: one small function a format.

A format is recognised by a row's keys; ``FORMATS`` lists them in the order in which they are tried. A row that is
recognised but wrong raises ``Reject`` with the reason. Knows nothing of files, records or splits (see ``derive.py``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from data.annotators import judged
from data.records import Message, group_of, ranks_from_scores

CELLS = "(cells)"
"""The key under which a reader hands over a tab-separated line that has no header."""

ASKED = frozenset({CELLS, "prompt", "messages", "conversations", "text"})  # the others go to a user's functions
DUPLICATE = "repeated answers dropped"
MERGED = "neighbouring turns of one role joined"
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
LARGEST = 1e300  # of a number that stands where text is expected
MAX_ANSWERS = 1000
"""Answers of one ranking; pairs grow with their square."""


class Reject(Exception):
    """This row cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, whatever it was: a plain text, or turns with 0, 1 or more answers, best first where they are ranked."""

    messages: tuple[Message, ...] = ()
    answers: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    scores: tuple[float, ...] | None = None
    finished: bool = True
    text: str = ""
    notes: tuple[str, ...] = ()
    group: str = ""
    source: str = ""
    category: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """``columns`` is what messages show; ``fits`` looks at keys (and at most at the kind of a value)."""

    columns: str
    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any]], list[Row]]


# ---- pieces ----------------------------------------------------------------------------------------------------------

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    "system": "system",
}


def _string(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Reject(f"{name} is {_kind(value)}, not text")
    if isinstance(value, str):
        if "\x00" in value:
            raise Reject(f"{name} holds a NUL character")
        if not _encodable(value):
            raise Reject(f"{name} holds half of a surrogate pair, which no text file can hold")
        return value
    if not abs(value) <= LARGEST:
        raise Reject(f"{name} is not text, nor a number of a usual size")
    return str(value)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(value: Any, name: str) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)  # tables without types hold "0.5"
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not math.isfinite(number):
        shown = repr(value)[:60] if isinstance(value, str | float) else _kind(value)
        raise Reject(f"{name} is {shown}, not a finite number")
    return number


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "no text")


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Reject(f"{name} holds {_kind(turn)} where a turn with role and content was expected")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise Reject(f"{name} has a turn of role {repr(role)[:60]}; known are user, assistant and system")
    return Message(role=_ROLES[role], content=_string(content, f"a turn in {name}"))  # type: ignore[arg-type]


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    """A prompt: text, one turn, or a list of turns; blank text is no prompt."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        text = _string(value, name)
        return (Message(role="user", content=text),) if text.strip() else ()
    return tuple(_message(turn, name) for turn in value)


def _answer(value: Any, name: str) -> str:
    """An answer: text, the assistant's turn, or a list of just that."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return _string(value, name)
    if len(value) != 1:
        raise Reject(f"{name} has {len(value)} turns where one was expected")
    turn = _message(value[0], name)
    if turn.role != "assistant":
        raise Reject(f"{name} is a turn of {turn.role}, not of the assistant")
    return turn.content


def _conversation(turns: Sequence[Message], name: str) -> Row:
    """Turns whose last is the answer, or a prompt alone if the user spoke last."""
    joined: list[Message] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Message(role=turn.role, content=f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(turn)
    notes = (MERGED,) if len(joined) < len(turns) else ()
    if not joined:
        raise Reject(f"{name} is empty")
    if joined[-1].role != "assistant":
        return Row(messages=tuple(joined), notes=notes)
    return Row(messages=tuple(joined[:-1]), answers=(joined[-1].content,), ranks=(0,), notes=notes)


def _ranking(
    messages: tuple[Message, ...],
    answers: Sequence[str],
    ranks: Sequence[int],
    scores: Sequence[float] | None = None,
    notes: tuple[str, ...] = (),
) -> Row:
    """Best first, each text once (in its best place)."""
    if len(answers) > MAX_ANSWERS:
        raise Reject(f"it has {len(answers):,} answers; a ranking has at most {MAX_ANSWERS:,}")
    order = sorted(range(len(answers)), key=lambda i: ranks[i])
    first: dict[str, int] = {}
    for i in order:
        first.setdefault(answers[i], i)
    kept = list(first.values())
    if not kept:
        raise Reject("it has no answers")
    return Row(
        messages=messages,
        answers=tuple(answers[i] for i in kept),
        ranks=tuple(ranks[i] for i in kept),
        scores=tuple(scores[i] for i in kept) if scores is not None else None,
        notes=(DUPLICATE,) * (len(answers) - len(kept)) + notes,
    )


# ---- formats ---------------------------------------------------------------------------------------------------------


def _cells(row: Mapping[str, Any]) -> list[Row]:
    """A tab-separated line: answers best first, no prompt."""
    answers = [_string(cell, "a cell") for cell in row[CELLS] if cell.strip()]
    return [_ranking((), answers, range(len(answers)))]


def _ranked(row: Mapping[str, Any]) -> list[Row]:
    """Answers best first, or with ``ranks`` (0 is best, equal ranks tie) or ``scores`` (higher is better) beside."""
    answers = [_answer(a, "responses") for a in _list(row["responses"], "responses")]
    row, answers, notes = judged(row, answers)
    scores = [_number(s, "scores") for s in _list(row["scores"], "scores")] if "scores" in row else None
    ranks: Sequence[int] = range(len(answers))
    if "ranks" in row:
        given = [_number(r, "ranks") for r in _list(row["ranks"], "ranks")]
        if any(not r.is_integer() for r in given):
            raise Reject("ranks must be whole numbers, 0 is best; give `scores` if these are scores")
        ranks = [int(r) for r in given]
    elif scores is not None:
        ranks = ranks_from_scores(scores)
    if len(ranks) != len(answers) or (scores is not None and len(scores) != len(answers)):
        raise Reject("responses, ranks and scores differ in number")
    if any(r < 0 for r in ranks):
        raise Reject("ranks count from 0 (best)")
    return [_ranking(_turns(row.get("prompt", ""), "prompt"), answers, ranks, scores, notes)]


def _scored(row: Mapping[str, Any]) -> list[Row]:
    """Answers with a score each, the higher the better; those without one are left out."""
    answers, scores = [], []
    for answer in _list(row["answers"], "answers"):
        if not isinstance(answer, Mapping) or "text" not in answer:
            raise Reject("answers must be objects with text and score")
        if answer.get("score") is not None:
            answers.append(_string(answer["text"], "an answer's text"))
            scores.append(_number(answer["score"], "score"))
    if not answers:
        raise Reject("none of its answers has a score")
    return [_ranking(_turns(row.get("prompt", ""), "prompt"), answers, ranks_from_scores(scores), scores)]


def _preference(row: Mapping[str, Any]) -> list[Row]:
    """``chosen`` and ``rejected``, answers or whole conversations, with ``prompt``, ``conversations`` or neither."""
    asked = row.get("prompt", row.get("conversations", ""))
    messages = _turns(asked, "prompt") if not isinstance(asked, list) else _conversation_prompt(asked)
    both = []
    for name in ("chosen", "rejected"):
        value = row[name]
        if isinstance(value, list) and len(value) > 1:
            whole = _conversation(_turns(value, name), name)
            if not whole.answers:
                raise Reject(f"{name} does not end with the assistant's turn")
            given = whole.messages[: len(messages)] == messages
            both.append((whole.messages if given else messages + whole.messages, whole.answers[0], whole.notes))
        else:
            both.append((messages, _answer(value, name), ()))
    return [_pair(both, row)]


def _conversation_prompt(turns: list[Any]) -> tuple[Message, ...]:
    row = _conversation([_message(t, "prompt") for t in turns], "prompt")
    if row.answers:
        raise Reject("the prompt ends with a turn of the assistant")
    return row.messages


def _pair(both: Sequence[tuple[tuple[Message, ...], str, tuple[str, ...]]], row: Mapping[str, Any]) -> Row:
    (messages, chosen, notes), (others, rejected, _) = both
    if messages != others:
        raise Reject("chosen and rejected differ before their last turn")
    if chosen == rejected:
        raise Reject("chosen and rejected are the same")
    scores = None
    if "margin" in row:
        scores = (_number(row["margin"], "margin"), 0.0)
    elif "score_chosen" in row and "score_rejected" in row:
        scores = (_number(row["score_chosen"], "score_chosen"), _number(row["score_rejected"], "score_rejected"))
    return replace(_ranking(messages, (chosen, rejected), (0, 1), scores), notes=notes)


def _hh(row: Mapping[str, Any]) -> list[Row]:
    """Two transcripts with "\\n\\nHuman:" and "\\n\\nAssistant:" turns that differ in the last."""
    both = []
    for name in ("chosen", "rejected"):
        parts = re.split(r"(?:^|\n\n)(Human|Assistant):", _string(row[name], name))
        roles = ["user" if p == "Human" else "assistant" for p in parts[1::2]]
        turns = [Message(role=r, content=c.strip()) for r, c in zip(roles, parts[2::2], strict=True)]  # type: ignore[arg-type]
        whole = _conversation(turns, name)
        if parts[0].strip() or not whole.answers:
            raise Reject(f"{name} does not {'start' if parts[0].strip() else 'end'} with a turn")
        both.append((whole.messages, whole.answers[0], whole.notes))
    return [_pair(both, row)]


def _is_hh(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row.get(k), str) and re.search(r"(^|\n\n)Human:", row[k]) for k in ("chosen", "rejected"))


def _completion(row: Mapping[str, Any]) -> list[Row]:
    answer = row[next(k for k in ("completion", "response", "answer") if k in row)]
    if "label" in row and not row["label"]:
        raise Reject("its label says that the completion is not wanted")
    return [_single(_turns(row["prompt"], "prompt"), _answer(answer, "completion"), row)]


def _single(messages: tuple[Message, ...], answer: str, row: Mapping[str, Any]) -> Row:
    finished = row.get("finished", True)
    if not isinstance(finished, bool):
        raise Reject(f"finished is {finished!r}, not true or false")
    return Row(messages=messages, answers=(answer,), ranks=(0,), finished=finished)


def _messages(row: Mapping[str, Any]) -> list[Row]:
    name = "messages" if "messages" in row else "conversations"
    turns = [_message(turn, name) for turn in _list(row[name], name)]
    system = _turns(row.get("system", ""), "system")
    turns = [Message(role="system", content=m.content) for m in system] + turns
    return [replace(_conversation(turns, name), finished=_single((), "", row).finished)]


def _alpaca(row: Mapping[str, Any]) -> list[Row]:
    """``input`` follows the instruction behind an empty line; ``system`` and ``history`` pairs may come before."""
    before = [Message(role="system", content=m.content) for m in _turns(row.get("system", ""), "system")]
    for turn in _list(row.get("history", []), "history"):
        pair = _list(turn, "history")
        if len(pair) != 2:
            raise Reject(f"history holds a turn of {len(pair)} texts where question and answer were expected")
        question, answer = pair
        before.append(Message(role="user", content=_string(question, "history")))
        before.append(Message(role="assistant", content=_string(answer, "history")))
    messages = (*before, *_instruction(row["instruction"], row.get("input", "")))
    return [_single(messages, _string(row["output"], "output"), row) if "output" in row else Row(messages=messages)]


def _instruction(instruction: Any, given: Any) -> tuple[Message, ...]:
    parts = [_string(instruction, "instruction"), _string(given, "input")]
    return _turns("\n\n".join(p.strip() for p in parts if p.strip()), "instruction")


def _self_instruct(row: Mapping[str, Any]) -> list[Row]:
    rows = []
    for instance in _list(row["instances"], "instances"):
        if not isinstance(instance, Mapping) or "output" not in instance:
            raise Reject("instances must be objects with input and output")
        messages = _instruction(row["instruction"], instance.get("input", ""))
        rows.append(_single(messages, _string(instance["output"], "output"), row))
    if not rows:
        raise Reject("it has no instances")
    return rows


def _prompt(row: Mapping[str, Any]) -> list[Row]:
    value = row["prompt"]
    messages = _conversation_prompt(value) if isinstance(value, list) else _turns(value, "prompt")
    if not messages:
        raise Reject("the prompt is empty")
    return [Row(messages=messages)]


def _text(row: Mapping[str, Any]) -> list[Row]:
    text = _string(row["text"], "text")
    if not text.strip():
        raise Reject("the text is empty")
    return [Row(text=text)]


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise Reject(f"{name} is {_kind(value)}, not a list")
    return value


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: all(k in row for k in keys)


def _answered(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and any(k in row for k in ("completion", "response", "answer"))


FORMATS: dict[str, Format] = {
    "tab-separated ranking": Format(columns="answers best first, no header", fits=_has(CELLS), read=_cells),
    "ranked answers": Format(columns="prompt, responses (best first)", fits=_has("responses"), read=_ranked),
    "scored answers": Format(columns="prompt, answers: [{text, score}]", fits=_has("prompt", "answers"), read=_scored),
    "HH transcripts": Format(columns="chosen, rejected (Human:/Assistant:)", fits=_is_hh, read=_hh),
    "preference": Format(
        columns="[prompt or conversations,] chosen, rejected", fits=_has("chosen", "rejected"), read=_preference
    ),
    "prompt and completion": Format(columns="prompt, completion", fits=_answered, read=_completion),
    "messages": Format(columns="messages: [{role, content}]", fits=_has("messages"), read=_messages),
    "sharegpt": Format(columns="conversations: [{from, value}]", fits=_has("conversations"), read=_messages),
    "self-instruct": Format(
        columns="instruction, instances: [{input, output}]", fits=_has("instruction", "instances"), read=_self_instruct
    ),
    "alpaca": Format(columns="instruction, input, output", fits=_has("instruction"), read=_alpaca),
    "prompts": Format(columns="prompt", fits=_has("prompt"), read=_prompt),
    "text": Format(columns="text", fits=_has("text"), read=_text),
}


def parse(
    row: Any,
    source: str = "",
    group_by: str | None = None,
    *,
    columns: Mapping[str, str] = NO_COLUMNS,
    ignore: Sequence[str] = (),
    format: str | None = None,
) -> tuple[str, list[Row]]:
    """Return the format's name and the rows in it (self-instruct has several in one).

    ``columns`` maps the names of a format to those of the row, ``ignore`` are names or patterns of columns that are
    left out, and ``format`` is the one to read the row as.

    Raises:
        Reject: no format fits, or the row is wrong.
    """
    if not isinstance(row, Mapping):
        raise Reject(f"JSON, but {type(row).__name__} instead of an object")
    named = {theirs: ours for ours, theirs in columns.items()}
    row = {named.get(k, k): v for k, v in row.items() if not any(fnmatchcase(k, pattern) for pattern in ignore)}
    given = {k: v for k, v in row.items() if v is not None}  # tables fill what is missing with null
    name = format or next((n for n, f in FORMATS.items() if f.fits(given)), None)
    if format and not FORMATS[format].fits(given):
        raise Reject(f"it has not the columns of the format {format!r}: {FORMATS[format].columns}")
    if name is None:
        raise Reject(f"no known format has the columns {', '.join(map(str, given)) or '(none)'}")
    rows = FORMATS[name].read(given)
    group = ""
    if group_by is not None:
        if group_by not in given:
            raise Reject(f"it has no column '{group_by}' to group by")
        group = f"{group_by}={_string(given[group_by], group_by)}"
    category = c if isinstance(c := given.get("category"), str) and _encodable(c) else ""
    about = {"source": source, "category": category, "columns": {k: v for k, v in given.items() if k not in ASKED}}
    return name, [
        replace(r, **about, group=group or group_of(r.messages, r.answers or (r.text,)))  # type: ignore[arg-type]
        for r in rows
    ]
