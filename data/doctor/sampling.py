"""Much in little: samples of bounded size, a histogram of lengths, what is frequent, and, on disk, what came twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heappush, heapreplace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from data.storage.codec import Codec, Encoded
from data.storage.number_rows import NumberRows, same
from data.storage.store import Store

T = TypeVar("T")


def sample_of(kept: Sequence[Any], count: int) -> str:
    """``412``, or ``a sample of 2,000 of 31,000``."""
    return f"a sample of {len(kept):,} of {count:,}" if count > len(kept) else f"{count:,}"


class Lowest(Generic[T]):
    """Values of the ``size`` smallest of all keys that came, each once: of 64-bit hashes a sample of what is unlike."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.below = 1 << 64  # keys from here on are not kept: whoever merges this has enough of smaller ones
        self.items: dict[int, T] = {}
        self._keys: list[int] = []  # negated, a heap: the largest key comes first

    @property
    def bound(self) -> int:
        """What a key must be smaller than to be kept from now on."""
        if not self.size:
            return 0
        return self.below if len(self._keys) < self.size else min(self.below, -self._keys[0])

    def offer(self, key: int, make: Callable[[], T]) -> None:
        """Look at one more, which is made where it is kept."""
        if key >= self.below or (len(self._keys) >= self.size and (not self.size or key >= -self._keys[0])):
            return
        if key in self.items:
            return
        self.items[key] = make()
        if len(self._keys) < self.size:
            heappush(self._keys, -key)
        else:
            del self.items[-heapreplace(self._keys, -key)]

    def merge(self, other: Lowest[T]) -> None:
        """Look at those that another one has kept, which came behind."""
        for key, value in other.items.items():
            self.offer(key, lambda value=value: value)  # type: ignore[misc]

    @property
    def kept(self) -> list[T]:
        """Values in the order in which they came."""
        return list(self.items.values())


class Sample(Lowest[T]):
    """``size`` of all entries, each as likely as any other, the same ones every time: their numbers decide."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.seen = 0

    def add(self, number: int, make: Callable[[], T]) -> None:
        """Look at the entry of a number, which is made where it is kept."""
        self.seen += 1
        self.offer(_mixed(number), make)

    def merge(self, other: Lowest[T]) -> None:
        """Look at what another one has seen."""
        assert isinstance(other, Sample)
        self.seen += other.seen
        super().merge(other)

    def of(self, what: str) -> str:
        """``412 prompts``, or ``a sample of 2,000 of 31,000 prompts``."""
        return f"{sample_of(self.kept, self.seen)} {what}"


def _mixed(number: int) -> int:
    """A hash of 64 bits (splitmix64), of which no two numbers share one."""
    z = (number + 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9 & _ALL
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _ALL
    return z ^ z >> 31


_ALL = (1 << 64) - 1


class Histogram:
    """Lengths: exact below 1,000, to three digits above; count, mean and longest are exact."""

    def __init__(self) -> None:
        self.count = self.total = self.longest = 0
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        """Count one length."""
        self.count += 1
        self.total += length
        self.longest = max(self.longest, length)
        step = 1 if length < 1000 else 10 ** (len(str(length)) - 3)
        self._counts[length // step * step] += 1

    def merge(self, other: Histogram) -> None:
        """Count the lengths of another one."""
        self.count, self.total = self.count + other.count, self.total + other.total
        self.longest = max(self.longest, other.longest)
        self._counts.update(other._counts)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def at(self, index: int) -> int:
        """The length at a place of the sorted lengths."""
        for length in sorted(self._counts):
            index -= self._counts[length]
            if index < 0:
                return length
        return self.longest

    def quantile(self, share: float) -> int:
        """The length that this share of the lengths does not pass."""
        return self.at(min(self.count - 1, int(share * self.count)))

    @property
    def median(self) -> float:
        """The middle, of an even count the mean of the middle two."""
        return (self.at((self.count - 1) // 2) + self.at(self.count // 2)) / 2

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "count": self.count,
            "mean": round(self.mean, 1),
            "median": self.median,
            "p95": self.quantile(0.95),
            "longest": self.longest,
        }


class Repeats:
    """How many came before, exactly, and the first places of those that did.

    Args:
        seats: knows the places.
    """

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._rows = NumberRows(2)
        self._found: tuple[int, Earliest] = (0, Earliest())
        self._looked_at = 0

    def add(self, key: int, number: int) -> None:
        """Note what a seat holds."""
        self._rows.add(key, number)

    def merge(self, other: Repeats) -> None:
        """Note what another one has noted, behind the own."""
        self._rows.extend(other._rows)

    def _find(self) -> tuple[int, Earliest]:
        if self._looked_at == len(self._rows):
            return self._found
        repeated, count = Earliest(), 0
        for rows in self._rows.grouped():
            starts, ends = same(rows)
            again = np.ones(len(rows), dtype=bool)
            again[starts] = False
            firsts = np.repeat(rows[starts, 1], ends - starts)
            count += int(np.count_nonzero(again))
            repeated.extend(np.stack([rows[again, 1], firsts[again]], axis=1))
        self._looked_at, self._found = len(self._rows), (count, repeated)
        return self._found

    @property
    def count(self) -> int:
        """Of all that came, those that came before."""
        return self._find()[0]

    @property
    def places(self) -> list[tuple[str, str]]:
        """Places of the first that came before, each beside that of the first of its kind."""
        return [(self._seats.place(own), self._seats.place(first)) for own, first in self._find()[1].kept]


class Earliest:
    """Of rows of numbers those that begin with the smallest, which are the first in the order of their seats."""

    def __init__(self, size: int = 1000) -> None:
        self.size, self.count = size, 0
        self._kept: list[tuple[int, ...]] = []

    def add(self, *row: int) -> None:
        """Count one row."""
        self.count += 1
        self._kept.append(row)
        if len(self._kept) > 4 * self.size:
            self._kept = self.kept

    def extend(self, rows: npt.NDArray[np.uint64]) -> None:
        """Count rows (n, width)."""
        self.count += len(rows)
        first = rows[np.argsort(rows[:, 0], kind="stable")[: self.size]]
        self._kept = sorted([*self._kept, *map(tuple, first.tolist())])[: self.size]

    @property
    def kept(self) -> list[tuple[int, ...]]:
        """The first of them, sorted."""
        return sorted(self._kept)[: self.size]


class Seats:
    """Numbers entries in the order in which they come, and knows the place of each.

    Args:
        where: the place of a number; without it places are kept, on disk where they are many.
        start: the first number.
    """

    def __init__(self, where: Callable[[int], str] | None = None, start: int = 0) -> None:
        self._where = where
        self._places = Store(str, Codec(_encode, _decode))
        self.count = start

    def __getstate__(self) -> int:
        """The count alone: another process has the numbers, and this one knows the places."""
        return self.count

    def __setstate__(self, state: int) -> None:
        self.__init__(elsewhere, state)  # type: ignore[misc]

    def take(self, place: str) -> int:
        """The number of one more entry."""
        if self._where is None:
            self._places.append(place)
        self.count += 1
        return self.count - 1

    def place(self, number: int) -> str:
        """Where the entry of a number lies."""
        return self._places[number] if self._where is None else self._where(number)


def elsewhere(number: int) -> str:
    """Refuse to say the place of an entry."""
    raise LookupError(f"the process that started this one knows the place of entry {number}")


def _encode(place: str) -> Encoded:
    return Encoded(b"", place.encode(errors="surrogatepass"), b"")


def _decode(stored: Encoded) -> str:
    return stored.source.decode(errors="surrogatepass")
