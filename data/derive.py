"""Parsed rows to the records that a stage asks for: every kind where it makes sense.

Rankings serve as demonstrations (their best response), anything with a prompt as prompts, and any text as documents.
Knows nothing of files, formats' columns or splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from data.formats import BOTH_BAD, UNRANKED, Reject, Row
from data.formats.transcripts import spoken
from data.records import Demonstration, Document, Prompt, RankedAnswers, group_of


def _asked(row: Row) -> Prompt:
    return Prompt(messages=row.messages, group=row.group, source=row.source, category=row.category, columns=row.columns)


def _as_said(row: Row) -> Row:
    """A plain text that is a transcript as its turns, under the group of its first question; any other row as it is."""
    turns = spoken(row.text) if row.text and not row.messages else None
    if not turns:
        return row
    own = row.group == group_of((), (row.text,))
    last = turns.pop() if turns[-1].role == "assistant" else None
    answers = (last.content,) if last and last.content else ()
    group = group_of(tuple(turns), answers) if own else row.group
    return replace(row, messages=tuple(turns), answers=answers, ranks=(0,) * len(answers), text="", group=group)


def as_prompt(row: Row) -> list[Prompt]:
    row = _as_said(row)
    if not row.messages:
        raise Reject("it has no prompt")
    return [_asked(row)]


def as_demonstration(row: Row) -> list[Demonstration]:
    """The response, or the best of several (the first of those that tie)."""
    row = _as_said(row)
    if not row.answers:
        raise Reject("it has no response")
    if not row.answers[0].strip():
        raise Reject("its response is empty")
    _check_wanted(row)
    if UNRANKED in row.notes and len(row.answers) > 1:
        raise Reject("it has several responses, and nothing says which is best")
    return [Demonstration(prompt=_asked(row), answer=row.answers[0], finished=row.finished)]


def _check_wanted(row: Row) -> None:
    """Refuse a response that its label or verdict says is not wanted: it must not be learnt."""
    if BOTH_BAD in row.notes:
        raise Reject("its verdict says that both responses are bad")
    if row.judged == "label" and row.scores == (0.0,):
        raise Reject("its label says that the response is not wanted")


def as_ranking(row: Row) -> list[RankedAnswers]:
    if row.judged and len(row.answers) == 1:
        what = "one liked and one not" if row.judged == "label" else "of unlike scores"
        raise Reject(f"its response is judged alone; a ranking needs two to the same prompt, {what}")
    if len(row.answers) < 2:
        raise Reject(
            f"it has {len(row.answers) or 'no'} different response{'s' * (not row.answers)}; a ranking needs two"
        )
    if len(set(row.ranks)) < 2:
        raise Reject("all its responses tie: nothing can be learnt from it")
    return [
        RankedAnswers(
            prompt=_asked(row),
            answers=row.answers,
            ranks=row.ranks,
            scores=row.scores,
            finished=row.ended or _whole(row),
        )
    ]


def _whole(row: Row) -> tuple[bool, ...]:
    return (row.finished,) * len(row.answers)


def as_documents(row: Row) -> list[Document]:
    """Plain text; with a prompt, one transcript for each response (what the dialogue template writes).

    A response that begins with white space continues the text of its prompt and is joined to it as it stands.
    """
    _check_wanted(row)
    texts: Iterable[str] = [row.text] if row.text else row.answers
    if row.messages:
        before = "\n".join(f"{m.role} : {m.content.strip()}{m.tool_calls}" for m in row.messages)
        joined = "".join(m.content for m in row.messages)
        texts = [joined + a if a[:1].isspace() else f"{before}\nassistant : {a}" for a in row.answers] or [before]
    group = _as_said(row).group
    return [Document(text=t, group=group, source=row.source) for t in texts if t.strip()]


KINDS: dict[str, Callable[[Row], list[Any]]] = {
    "demonstrations": as_demonstration,
    "rankings": as_ranking,
    "prompts": as_prompt,
    "documents": as_documents,
}
