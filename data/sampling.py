"""``weight`` and ``limit``: which rows of a source are used, drawn by the seed and each row's content.

A row that comes several times has a lot each time. Kept of a row are a few numbers, whatever it holds.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data.storage.digests import Digests, Places, as_digests, digest, first_of_each

Mask = npt.NDArray[np.bool_]


def content(record: Any) -> str:
    """What a row or record says, without where it lies."""
    prompt = getattr(record, "prompt", record)
    turns = [(m.role, m.content) for m in getattr(prompt, "messages", ())]
    answers = getattr(record, "answers", None) or [getattr(record, "answer", "")]
    return json.dumps([turns, list(answers), list(getattr(record, "ranks", ())), getattr(record, "text", "")])


class Lots:
    """The lot of each row, in order: the rows with the smallest are taken."""

    def __init__(self, seed: int) -> None:
        self._seed, self._seen, self._lots = seed, Seen(), array("Q")

    def add(self, record: Any) -> None:
        said = content(record)
        named = f"{self._seed}/{self._seen.add(digest(said))}/{said}"
        self._lots.append(int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big"))

    def smallest(self, count: int) -> Mask:
        """Which rows have the ``count`` smallest."""
        out = np.zeros(len(self._lots), dtype=bool)
        out[np.argsort(as_digests(self._lots), kind="stable")[:count]] = True
        return out


class Seen:
    """How often each number came: a few in a dict, the others in sorted arrays."""

    FEW = 1 << 16

    def __init__(self) -> None:
        self._few: dict[int, int] = {}
        self._numbers: Digests = np.empty(0, np.uint64)
        self._counts: npt.NDArray[np.uint32] = np.empty(0, np.uint32)

    def add(self, number: int) -> int:
        """Count a number, and say how often it came, this time included."""
        self._few[number] = self._few.get(number, 0) + 1
        at = int(np.searchsorted(self._numbers, np.uint64(number))) if len(self._numbers) else 0
        before = int(self._counts[at]) if at < len(self._numbers) and int(self._numbers[at]) == number else 0
        out = self._few[number] + before
        if len(self._few) > self.FEW:
            self._merge()
        return out

    def _merge(self) -> None:
        few = np.fromiter(self._few, np.uint64, len(self._few))
        counts = np.fromiter(self._few.values(), np.uint32, len(self._few))
        numbers, places = np.unique(np.concatenate([self._numbers, few]), return_inverse=True)
        summed = np.zeros(len(numbers), np.uint32)
        np.add.at(summed, places, np.concatenate([self._counts, counts]))
        self._numbers, self._counts, self._few = numbers, summed, {}


class Sample:
    """The rows of a source that can be used: which of them are taken, and how many are of which kind.

    Args:
        weight: the share that is taken; None for all.
        limit: at most so many are taken; None for all.
        seed: of the lots.
    """

    def __init__(self, weight: float | None, limit: int | None, seed: int) -> None:
        self._weight, self._limit = weight, limit
        self._lots = None if weight is None and limit is None else Lots(seed)
        self._places, self._kinds, self._records = array("q"), array("I"), array("I")
        self._known: dict[Any, int] = {}

    @property
    def is_partial(self) -> bool:
        """Whether rows are drawn, which their content decides."""
        return self._lots is not None

    def add(self, place: str, row: Any, kind: Any, records: int) -> None:
        """Note a row of this place, of a hashable kind, that gives so many records."""
        self._places.append(hash(place))
        self._kinds.append(self._known.setdefault(kind, len(self._known)))
        self._records.append(records)
        if self._lots is not None:
            self._lots.add(row)

    def taken(self) -> Mask:
        """Whether each row is used."""
        rows = len(self._places)
        count = rows if self._weight is None else max(1, round(self._weight * rows))
        count = count if self._limit is None else min(count, self._limit)
        return np.ones(rows, dtype=bool) if self._lots is None or count >= rows else self._lots.smallest(count)

    def records_of(self, taken: Mask) -> Places | None:
        """Places of the records of these rows; None where they are all."""
        return None if taken.all() else np.flatnonzero(np.repeat(taken, _numbers(self._records)))

    def count(self, rows: Mask) -> int:
        """Records of these rows."""
        return int(_numbers(self._records)[rows].sum())

    def places(self, rows: Mask, but: Mask | None = None) -> int:
        """How many places these rows have that ``but`` has not; a place may have several rows."""
        own = _sorted(_numbers(self._places)[rows])
        if but is not None and len(own):
            own = own[~np.isin(own, _numbers(self._places)[but])]
        return len(own) - int(np.count_nonzero(own[1:] == own[:-1]))

    def others(self, places: Iterable[str]) -> int:
        """How many of these places have no row here."""
        numbers = np.fromiter((hash(place) for place in places), np.int64)
        if not len(numbers):
            return 0
        numbers, own = np.unique(numbers), _sorted(_numbers(self._places).copy())
        at = np.minimum(np.searchsorted(own, numbers), max(0, len(own) - 1))
        return int(np.count_nonzero(own[at] != numbers)) if len(own) else len(numbers)

    def kinds(self, rows: Mask) -> Iterator[tuple[Any, int]]:
        """Every kind, in the order in which they come among these rows, and how many are of it."""
        codes, kinds = _numbers(self._kinds)[rows], list(self._known)
        counts, first = np.bincount(codes, minlength=len(kinds)), first_of_each(codes, len(kinds))
        for code in sorted(range(len(kinds)), key=first.__getitem__):
            if counts[code]:
                yield kinds[code], int(counts[code])


def _sorted(numbers: Any) -> Any:
    """The same array, sorted in place: a copy of so many numbers would be the most that reading takes."""
    numbers.sort()
    return numbers


def _numbers(values: array[int]) -> Any:
    return np.frombuffer(values, dtype=values.typecode) if len(values) else np.empty(0, values.typecode)


def sampled(records: Sequence[Any], weight: float | None, limit: int | None, seed: int) -> list[Any]:
    """As many records as weight and limit leave, in their order."""
    sample = Sample(weight, limit, seed)
    for record in records:
        sample.add("", record, None, 1)
    return [record for record, taken in zip(records, sample.taken(), strict=True) if taken]
