"""Raw rows as their formats understand them, and the records that they give. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.derive import KINDS
from data.formats import Reject, Row, assembled, parse
from data.formats.exports import is_export, unwrapped
from data.formats.transcripts import spoken
from data.readers.cells import Blank
from data.readers.rows import BadLine
from data.records import Message
from data.source_settings import Source
from data.where import where


@dataclass(frozen=True, slots=True)
class Parsed:
    """A row with its format, or why it has none (``error``, where its format says so); ``columns`` are its keys."""

    place: str
    format: str = ""
    row: Row | None = None
    reason: str = ""
    columns: tuple[str, ...] = ()
    error: Reject | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How rows of all sources are read: as records of which kind ('': any), the column of their group, columns to leave
    out, and those of functions.
    """

    kind: str = ""
    group_by: str | None = None
    ignore: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


def flat(raws: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The rows; records of annotation tools as a row for each person's answers."""
    for place, raw in raws:
        if not is_export(raw):
            yield place, raw
            continue
        try:
            for row in unwrapped(raw):
                yield place, row
        except Reject as error:
            yield place, BadLine(str(error))


def parsed_rows(raws: Iterable[tuple[str, Any]], reading: Reading, source: Source | None = None) -> Iterator[Parsed]:
    """Yield every row, of which none is a record of an annotation tool any more (``flat``), as it was understood."""
    columns, ignore, form = (source.columns, source.ignore, source.format) if source else ({}, (), None)
    ignore, known = (*ignore, *reading.ignore), reading.known
    if source and source.where:
        known = (*known, *where(source.where).columns)
    for place, raw in assembled(raws):
        if isinstance(raw, BadLine):
            yield Parsed(place, reason=raw.reason)
            continue
        keys = tuple(map(str, raw)) if isinstance(raw, Mapping) else ()
        try:
            name, rows = parse(raw, place, reading.group_by, columns=columns, ignore=ignore, format=form, known=known)
        except Reject as error:
            yield Parsed(place, reason=str(error), columns=keys, error=error)
            continue
        blank = [str(key) for key, value in raw.items() if isinstance(value, Blank)] if keys else []
        for row in rows:
            if blank and _lacks_a_response(row, reading.kind):
                yield Parsed(place, reason=MISSING.format(", ".join(map(repr, blank))), columns=keys)
            else:
                yield Parsed(place, name, row, columns=keys)


MISSING = "nothing stands in its column {}, so a response is missing: a table cannot say that one is empty"


def _lacks_a_response(row: Row, kind: str) -> bool:
    """Whether one is empty of those that the records of a kind are made of; prompts need none."""
    if kind == "demonstrations":
        return row.answers[:1] == ("",)
    compared = len(row.answers) > 1 or bool(row.judged)
    return kind != "prompts" and compared and "" in row.answers


def records_of(row: Row, kind: str) -> list[Any]:
    """The records of a kind that a row gives.

    Raises:
        Reject: it gives none.
    """
    return KINDS[kind](_text_as_prompt(row) if kind == "prompts" else row)


def _text_as_prompt(row: Row) -> Row:
    """A line of a text file is a prompt where prompts are asked for; its group is the same either way."""
    if not row.text or spoken(row.text):
        return row
    return replace(row, messages=(Message(role="user", content=row.text),), text="")
