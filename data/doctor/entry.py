"""What the checks look at, a row or a record alike, and what they say of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from data.formats import Row
from data.records import Demonstration, Document, Message, Prompt, RankedAnswers, normalise
from data.storage.digests import digest

MAX_PLACES = 1000
"""Places that a finding keeps; it counts all."""
LAST_NUMBER = re.compile(r"(.*?)(\d+)\D*$", re.DOTALL)
"""Of a place: its file, and its row there."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row: turns with 0, 1 or more answers, or a text. ``liked`` is a judgement of its answer alone."""

    place: str
    messages: tuple[Message, ...] = ()
    answers: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    text: str = ""
    liked: bool | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that it says."""
        return (*(m.content for m in self.messages), *self.answers, *([self.text] if self.text else []))

    @property
    def question(self) -> str:
        """Its whole prompt in one text; of a plain text that text."""
        return "\n".join(m.content for m in self.messages) or self.text

    @cached_property
    def asked(self) -> int:
        """64 bits that stand for roles and texts of its prompt, to the letter; 0 without one."""
        return digest("\x1e".join([f"{m.role}\x1f{m.content}" for m in self.messages])) if self.messages else 0

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Indices (better, worse) of every strictly ordered pair."""
        if self.ranks == (0, 1):  # nearly all
            return [(0, 1)]
        k = range(len(self.ranks))
        return [(i, j) for i in k for j in k if self.ranks[i] < self.ranks[j]]


def of_row(row: Row, place: str) -> Entry:
    """A parsed row."""
    liked = bool(row.scores[0]) if row.judged == "label" and row.scores else None
    return Entry(place=place, messages=row.messages, answers=row.answers, ranks=row.ranks, text=row.text, liked=liked)


def of_record(record: Prompt | Demonstration | RankedAnswers | Document | Any) -> Entry:
    """A record of any kind."""
    if isinstance(record, Document):
        return Entry(place=record.source, text=record.text)
    if isinstance(record, Prompt):
        return Entry(place=record.source, messages=record.messages)
    asked = record.prompt
    if isinstance(record, Demonstration):
        return Entry(place=asked.source, messages=asked.messages, answers=(record.answer,), ranks=(0,))
    return Entry(place=asked.source, messages=asked.messages, answers=record.answers, ranks=record.ranks)


def asked_of(entry: Entry) -> int:
    """64 bits that stand for the whole prompt, white space, case and width aside; without one, for the answers."""
    turns = [f"{m.role}\x1f{normalise(m.content)}\x1f{m.tool_calls}" for m in entry.messages]
    return digest("\x1e".join(turns or sorted({normalise(a) for a in entry.answers})))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something doubtful: its kind, how often, in a sentence, and where (at most ``MAX_PLACES`` of them)."""

    kind: str
    count: int
    text: str
    places: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "count": self.count, "text": self.text, "places": list(self.places)}


class Check(Protocol):
    """A look at entries one by one, in one pass and bounded memory.

    ``merge`` takes over what the same check has seen of the entries that follow: that gives what one check of all
    entries finds.
    """

    def add(self, entry: Entry) -> None: ...

    def merge(self, other: Any) -> None: ...

    def findings(self) -> Iterable[Finding]: ...

    def facts(self) -> dict[str, Any]:
        """Counts that are no fault."""
        ...


class Places:
    """How often something was found, and the first places of it."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, place: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.first) < MAX_PLACES:
            self.first.append(place)

    def merge(self, other: Places) -> None:
        """Count what was found behind."""
        self.count += other.count
        self.first += other.first[: MAX_PLACES - len(self.first)]

    def finding(self, kind: str, text: str) -> Finding:
        """The finding, ``text`` followed by where it was first."""
        places = by_number(self.first)
        where = f"; the first is {places[0]}" if places and places[0] else ""
        return Finding(kind=kind, count=self.count, text=text + where, places=tuple(places))


def by_number(places: Sequence[str]) -> list[str]:
    """Places, those of each file in the order of its rows: a split has taken some of them out to stand behind."""
    files: dict[str, int] = {}

    def order(place: str) -> tuple[int, int]:
        found = LAST_NUMBER.match(place)
        file, number = (found[1], int(found[2])) if found else (place, 0)
        return files.setdefault(file, len(files)), number

    return sorted(places, key=order)
