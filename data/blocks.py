"""Raw rows to records on disk by helper processes, block by block; what comes out is what one process makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from data.common.workers import helpers, mapped
from data.formats import FORMATS, Reject
from data.formats.trees import is_dump
from data.judgements import JudgedBy, is_gathered
from data.storage.codec import Encoded, encode
from data.storage.collected import Index

MANY, BLOCK = 100_000, 250
"""Rows of a source from which on helpers make records of them, and so many of them at a time."""

Raw = tuple[str, Any]


@dataclass(frozen=True, kw_only=True)
class Making:
    """What a helper does with rows.

    ``parsed`` reads raw rows, ``records`` makes records of a kind of one that was read; both are called in the helper.
    ``index`` is an empty one of the kind that is filled, ``formats`` are those that the caller knows.
    """

    kind: str
    parsed: Callable[[Iterable[Raw]], Iterable[Any]]
    records: Callable[[Any], Sequence[Any]]
    index: Index | None
    formats: tuple[str, ...] = ()


class Made(NamedTuple):
    """What became of a block.

    ``numbers`` are those of the records. ``rows`` has of each row that was read its place, its kind and how many
    records it gave; ``left`` are raw rows that give no record in their place, for the caller to look at, and ``judged``
    says by what the others are judged.
    """

    records: list[Encoded]
    numbers: Index | None
    rows: list[tuple[str, tuple[str, tuple[str, ...]], int]]
    left: list[Raw]
    judged: JudgedBy


def made_by_helpers(rows: Iterator[Raw], making: Making, take: Callable[[Made], None]) -> Iterator[Raw]:
    """Yield the rows that the caller must read; what helpers made of the others goes to ``take``, in its order.

    The first rows are the caller's, so that few rows start no process.
    """
    yield from islice(rows, MANY)
    if not (count := helpers()):
        yield from rows
        return
    blocks = ((making, some) for some in iter(lambda: list(islice(rows, BLOCK)), []))
    for (_, block), made in mapped(_make, blocks, count):
        if made is None:
            yield from block
        else:
            take(made)
            yield from made.left


def _make(block: tuple[Making, list[Raw]]) -> Made | None:
    """The records of a block; None where some of its rows cannot be told from the others in order."""
    making, raws = block
    if making.formats != tuple(FORMATS):
        return None
    made = Made([], None if making.index is None else making.index.empty(), [], [], JudgedBy())
    kinds: dict[Any, Any] = {}  # one object for all rows of a kind, which is sent once
    for raw in raws:
        before = len(made.rows)
        left = is_dump(raw[1])
        for parsed in () if left else making.parsed([raw]):
            row = parsed.row
            if row is None or is_gathered(row, making.kind):
                left = True
                continue
            try:
                records = making.records(row)
                made.records.extend(map(encode, records))
            except Reject:
                left = True
                continue
            except (TypeError, ValueError):  # a column that cannot be written
                return None
            if made.numbers is not None:
                for record in records:
                    made.numbers.add(record)
            made.judged.add(row, parsed.columns)
            kind = (parsed.format, row.notes)
            made.rows.append((parsed.place, kinds.setdefault(kind, kind), len(records)))
        if left and len(made.rows) > before:
            return None
        if left:
            made.left.append(raw)
    return made
