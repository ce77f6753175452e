"""Much in little: samples of bounded size, a histogram of lengths, what is frequent, and what came twice."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Reservoir(Generic[T]):
    """``size`` of all that came, each as likely as any other, the same ones every time."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.kept: list[T] = []
        self._random = random.Random(0)

    def add(self, one: T) -> None:
        """Look at one more."""
        self.offer(lambda: one)

    def offer(self, make: Callable[[], T]) -> None:
        """Look at one more, which is made where it is kept."""
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append(make())
        elif (place := int(self._random.random() * self.seen)) < self.size:  # ``randrange`` takes five times as long
            self.kept[place] = make()

    def of(self, what: str) -> str:
        """``412 prompts``, or ``a sample of 2,000 of 31,000 prompts``."""
        sample = f"a sample of {len(self.kept):,} of " if self.seen > len(self.kept) else ""
        return f"{sample}{self.seen:,} {what}"


class HashSample(Generic[T]):
    """Values by 64-bit key: all of them, or those of a share of the keys that halves whenever there are too many.

    A key's hash alone decides, so everything that shares a key is kept or left out together.
    """

    def __init__(self, size: int) -> None:
        self.size, self.halvings = size, 0
        self.items: dict[int, T] = {}

    def admits(self, key: int) -> bool:
        """Whether values of this key are kept so far."""
        return not key & ((1 << self.halvings) - 1)

    def put(self, key: int, value: T) -> None:
        """Keep a value whose key is admitted."""
        self.items[key] = value
        if len(self.items) > self.size:
            self.halvings += 1
            self.items = {k: v for k, v in self.items.items() if self.admits(k)}

    @property
    def sampled(self) -> str:
        """`` (of one prompt in 8)`` to stand behind "in a sample"; empty where everything is kept."""
        return f"in a sample of one in {1 << self.halvings:,}" if self.halvings else ""


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


class Frequent:
    """Counts of what is frequent: whatever is more than one in ``size`` is surely there (Misra and Gries 1982)."""

    def __init__(self, size: int = 500) -> None:
        self.size, self.seen = size, 0
        self.counts: Counter[int] = Counter()

    def add(self, key: int) -> None:
        """Count one; its count is then too small by at most ``seen / size``."""
        self.seen += 1
        self.counts[key] += 1
        if len(self.counts) > self.size:
            self.counts = Counter({k: n - 1 for k, n in self.counts.items() if n > 1})


class Repeats:
    """How many came before, exactly, in eight bytes each; the places of those that repeat, of a sample if need be."""

    def __init__(self, size: int = 100_000) -> None:
        self._digests = array("Q")
        self._first: HashSample[str] = HashSample(size)
        self.places: list[tuple[str, str]] = []

    def add(self, key: int, place: str, max_places: int = 1000) -> None:
        """Note one, and its place beside the first of its kind."""
        self._digests.append(key)
        if not self._first.admits(key):
            return
        if (first := self._first.items.get(key)) is None:
            self._first.put(key, place)
        elif len(self.places) < max_places:
            self.places.append((place, first))

    @property
    def count(self) -> int:
        """Of all that came, those that came before."""
        if not self._digests:
            return 0
        return len(self._digests) - len(np.unique(np.frombuffer(self._digests, dtype=np.uint64)))
