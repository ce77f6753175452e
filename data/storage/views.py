"""Sequences over records that lie elsewhere: some of them, in an order, with what the split changed of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import attrgetter
from typing import Any, Generic, TypeVar, overload

import numpy as np

from data.records import Document, Prompt
from data.storage.codec import content_bytes, prompt_content
from data.storage.digests import Digests, Places

T = TypeVar("T")
U = TypeVar("U")


class Lazy(Sequence[T], Generic[T]):
    """A sequence that makes each item when it is asked for, and compares as a tuple of them does."""

    def at(self, place: int) -> T:
        """The item at a place from 0."""
        raise NotImplementedError

    def content(self, place: int) -> bytes:
        """What fingerprints hash of an item."""
        return content_bytes(self.at(place))

    def origin(self, place: int) -> str:
        """The source that an item was read from; empty where nobody knows."""
        return ""

    def some(self, places: Places) -> Sequence[T]:
        """The items at these places, in this order."""
        return View(self, places)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return self.some(np.arange(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return self.at(int(place))

    def __iter__(self) -> Iterator[T]:
        for place in range(len(self)):
            yield self.at(place)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} records>"


@dataclass(frozen=True, slots=True)
class Fills:
    """Columns of prompts that another row of the same prompt has: of the prompt at ``at``, sorted places, the column
    ``names`` is that of ``records`` at ``rows``; all three (n,)."""

    records: Sequence[Any]
    at: Places
    names: Sequence[str]
    rows: Places

    def made(self, prompt: Prompt, place: int) -> Prompt:
        """The prompt with the columns that it gets."""
        start, end = np.searchsorted(self.at, [place, place + 1])
        if start == end:
            return prompt
        names, rows = self.names[start:end], self.rows[start:end].tolist()
        given = {n: self.records[row].columns[n] for n, row in zip(names, rows, strict=True)}
        return replace(prompt, columns={**prompt.columns, **given})


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs of some records from how they are stored.

    ``groups`` are new names at ``regrouped``, sorted places; ``weights`` are those of all; ``columns`` are the names
    that every prompt has, None where it has no value; ``fills`` are columns that a prompt gets of other rows.
    """

    regrouped: Places = field(default_factory=lambda: np.empty(0, np.int64))
    groups: Callable[[int], str] = str
    weights: Sequence[float] | None = None
    columns: Mapping[str, None] | None = None
    fills: Fills | None = None

    def of(self, place: int) -> bool:
        """Whether a record has another content than the stored one."""
        return self.weights is not None or self._at(place) >= 0

    def _at(self, place: int) -> int:
        if not len(self.regrouped):
            return -1
        at = int(np.searchsorted(self.regrouped, place))
        return at if at < len(self.regrouped) and self.regrouped[at] == place else -1

    def made(self, record: Any, place: int) -> Any:
        """The record with what is changed of it."""
        if (at := self._at(place)) >= 0:
            record = regrouped(record, self.groups(at))
        if self.weights is not None and self.weights[place] != record.weight:
            record = replace(record, weight=float(self.weights[place]))
        if self.fills is not None:
            record = self.fills.made(record, place)
        if self.columns is not None and len(record.columns) != len(self.columns):
            record = replace(record, columns={**self.columns, **record.columns})
        return record


def regrouped(record: Any, group: str) -> Any:
    """A record of another group."""
    if isinstance(record, (Document, Prompt)):
        return replace(record, group=group)
    return replace(record, prompt=replace(record.prompt, group=group))


class View(Lazy[T]):
    """Items of a sequence, by their places in it, with changes."""

    def __init__(self, base: Sequence[T], places: Places, changes: Changes | None = None) -> None:
        self.base, self.places, self.changes = base, places, changes

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> T:
        inner = int(self.places[place])
        found = self.base[inner]
        return found if self.changes is None else self.changes.made(found, inner)  # type: ignore[no-any-return]

    def content(self, place: int) -> bytes:
        inner = int(self.places[place])
        changed = self.changes is not None and self.changes.of(inner)
        stored = None if changed else getattr(self.base, "content", None)
        return content_bytes(self.at(place)) if stored is None else stored(inner)  # type: ignore[no-any-return]

    def origin(self, place: int) -> str:
        return origin_of(self.base, int(self.places[place]))

    def some(self, places: Places) -> Sequence[T]:
        return View(self.base, self.places[places], self.changes)


class Chain(Lazy[T]):
    """Several sequences one after the other, as one."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self.parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def at(self, place: int) -> T:
        inner, at = self._found(place)
        return inner[at]

    def content(self, place: int) -> bytes:
        inner, at = self._found(place)
        return inner.content(at) if isinstance(inner, Lazy) else content_bytes(inner[at])

    def origin(self, place: int) -> str:
        return origin_of(*self._found(place))

    def _found(self, place: int) -> tuple[Sequence[T], int]:
        part = bisect_right(self._ends, place)
        return self.parts[part], place - (self._ends[part - 1] if part else 0)

    def __iter__(self) -> Iterator[T]:
        for part in self.parts:
            yield from part


class Mapped(Lazy[U]):
    """What a function makes of each item of another sequence."""

    def __init__(self, function: Callable[[Any], U], base: Sequence[Any]) -> None:
        self.function, self.base = function, base

    def __len__(self) -> int:
        return len(self.base)

    def at(self, place: int) -> U:
        return self.function(self.base[place])

    def origin(self, place: int) -> str:
        return origin_of(self.base, place)


class PromptsOf(Mapped[Prompt]):
    """The prompts of records that have one."""

    def __init__(self, base: Sequence[Any]) -> None:
        super().__init__(attrgetter("prompt"), base)

    def content(self, place: int) -> bytes:
        if isinstance(self.base, Lazy):
            return prompt_content(self.base.content(place))
        return super().content(place)


class Flattened(Lazy[U]):
    """Of each item of a sequence several others: ``records`` are the items' places, ``which`` counts within them."""

    def __init__(
        self, function: Callable[[Any], Sequence[U]], base: Sequence[Any], records: Digests, which: Digests
    ) -> None:
        self.function, self.base, self.records, self.which = function, base, records, which

    def __len__(self) -> int:
        return len(self.records)

    def at(self, place: int) -> U:
        return self.function(self.base[int(self.records[place])])[int(self.which[place])]

    def origin(self, place: int) -> str:
        return origin_of(self.base, int(self.records[place]))


def origin_of(records: Sequence[Any], place: int) -> str:
    """The source that the record at a place was read from; empty where nobody knows."""
    return records.origin(place) if isinstance(records, Lazy) else ""
