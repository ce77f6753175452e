"""Raw rows as their formats understand them, and the records that they give. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.derive import KINDS
from data.formats import Reject, Row, assembled, parse
from data.formats.columns import is_metadata
from data.formats.exports import is_export, unwrapped
from data.formats.reading import ACTING
from data.formats.rows import Unlabelled
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
        except Unlabelled as error:
            if reading.kind != "prompts":
                yield Parsed(place, reason=str(error), columns=keys, error=error)
                continue
            name, rows = error.format, error.rows
        except Reject as error:
            yield Parsed(place, reason=str(error), columns=keys, error=error)
            continue
        for row in rows:
            if _lacks_a_response(row, reading.kind):
                yield Parsed(place, reason=MISSING.format(_blank_columns(raw)), columns=keys)
            else:
                yield Parsed(place, name, row, columns=keys)


MISSING = "nothing stands in its column {}, so a response is missing: a table cannot say that one is empty"


def _lacks_a_response(row: Row, kind: str) -> bool:
    """Whether a blank cell stands for one of those that the records of a kind are made of; prompts need none."""
    if not any(isinstance(answer, Blank) for answer in row.answers):
        return False
    if kind == "demonstrations":
        return isinstance(row.answers[0], Blank)
    return kind != "prompts" and (len(row.answers) > 1 or bool(row.judged))


def _blank_columns(raw: Any) -> str:
    """The blank columns of a row that may be a response's, or else all of them."""
    blank = [str(key) for key, value in raw.items() if isinstance(value, Blank)] if isinstance(raw, Mapping) else []
    likely = [name for name in blank if name not in ACTING and not is_metadata(name)]
    return ", ".join(map(repr, likely or blank))


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
