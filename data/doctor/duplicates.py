"""Rows that came before, exactly or nearly, and prompts of training that are nearly held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data.doctor.entry import MAX_PLACES, Entry, Finding
from data.doctor.sampling import Earliest, Lowest, Repeats, Sample, Seats, sample_of
from data.near_duplicates import near_duplicates, plain
from data.storage.digests import digest
from data.storage.number_rows import NumberRows, same

NEAR_SAMPLE = 2000
"""Rows that are compared by MinHash: each takes a third of a millisecond."""


def content_of(entry: Entry) -> int:
    """64 bits that stand for all that a row says, to the letter."""
    turns = [f"{m.role}\x1f{m.content}\x1f{m.tool_calls}\x1f{m.tools}" for m in entry.messages]
    ranked = [f"{rank}\x1f{answer}" for rank, answer in zip(entry.ranks, entry.answers, strict=False)]
    return digest("\x1e".join([*turns, "\x1d", *(ranked or entry.answers), "\x1d", entry.text]))


class Duplicates:
    """Rows that are one before again, all of them, and rows that are nearly one before, of a sample."""

    def __init__(self, near: int = NEAR_SAMPLE, seats: Seats | None = None) -> None:
        self._seats = Seats() if seats is None else seats
        self.rows, self.prompts = Repeats(self._seats), Repeats(self._seats)
        self.sample: Sample[tuple[int, str, str]] = Sample(near)

    def add(self, entry: Entry) -> None:
        """Remember one row in a few bytes."""
        key, number = content_of(entry), self._seats.take(entry.place)
        self.rows.add(key, number)
        if entry.messages:
            self.prompts.add(entry.asked, number)
        self.sample.add(number, lambda: (key, entry.place, "\n".join(entry.texts)))

    def merge(self, other: Duplicates) -> None:
        """Take over what follows."""
        self.rows.merge(other.rows)
        self.prompts.merge(other.prompts)
        self.sample.merge(other.sample)

    def near(self) -> list[tuple[str, str]]:
        """Places of rows of the sample that are nearly, but not exactly, one before, and of that one."""
        once: dict[int, tuple[str, str]] = {}
        for key, place, text in self.sample.kept:
            once.setdefault(key, (place, text))
        return list(near_duplicates(once.values()))

    def findings(self) -> Iterator[Finding]:
        """Exact duplicates, then near ones."""
        if n := self.rows.count:
            places = self.rows.places
            again, first = places[0]
            text = f"{n:,} rows are one before again; the first is {first} again at {again}; "
            text += "data.clean.duplicates: exact drops them"
            yield Finding(kind="duplicates", count=n, text=text, places=tuple(a for a, _ in places))
        if near := self.near():
            text = (
                f"{len(near):,} of {self.sample.of('rows')} are nearly one before; the first is {near[0][0]}, nearly "
                f"{near[0][1]}; data.clean.duplicates: near drops them"
            )
            said = tuple(place for place, _ in near[:MAX_PLACES])
            yield Finding(kind="near duplicates", count=len(near), text=text, places=said)

    def facts(self) -> dict[str, Any]:
        """How many rows and prompts came before."""
        return {"duplicate rows": self.rows.count, "repeated prompts": self.prompts.count}


class HeldOut:
    """Held-out prompts that are in training but for punctuation, or nearly.

    Args:
        near: prompts of each side that are compared by MinHash.
        seats: numbers the entries, and knows their places.
    """

    def __init__(self, near: int = NEAR_SAMPLE, seats: Seats | None = None) -> None:
        self.seats = Seats() if seats is None else seats
        self._asked = NumberRows(2)  # prompt; seat, twice, and 1 more where it is held out
        self.samples = {side: Lowest[tuple[str, str]](near) for side in (False, True)}

    def add(self, entry: Entry, held_out: bool) -> None:
        """Note the prompt of a row of one side."""
        number = self.seats.take(entry.place)
        if not (words := plain(entry.question)):
            return
        key = digest(words)
        self._asked.add(key, 2 * number + held_out)
        self.samples[held_out].offer(key, lambda: (entry.place, entry.question))

    def merge(self, other: HeldOut) -> None:
        """Take over what follows."""
        self.seats.count = other.seats.count
        self._asked.extend(other._asked)
        for side, sample in self.samples.items():
            sample.merge(other.samples[side])

    def findings(self) -> Iterator[Finding]:
        """Prompts on both sides but for punctuation, then those of a sample that are nearly so."""
        both, unlike = self._sides()
        held = unlike[True]
        places = [tuple(map(self.seats.place, row[1:])) for row in both.kept]
        if n := both.count:
            text = (
                f"{n:,} of {held:,} held-out prompts are in training but for case, width, punctuation or white space; "
                f"the first is {places[0][0]}, as {places[0][1]}"
            )
            yield Finding(kind="leak", count=n, text=text, places=tuple(own for own, _ in places))
        yield from self._nearly({own for own, _ in places}, unlike)

    def _sides(self) -> tuple[Earliest, dict[bool, int]]:
        """Of prompts on both sides the seats of the first, the first held out, and the first in training; all by side.

        Prompts count once on each side.
        """
        both, unlike = Earliest(MAX_PLACES), {False: 0, True: 0}
        for rows in self._asked.grouped():
            sides = rows[:, 1] & np.uint64(1)
            firsts = {}
            for side in (False, True):
                own = rows[sides == side]
                firsts[side] = own[same(own)[0]]
                unlike[side] += len(firsts[side])
            _, train, held = np.intersect1d(firsts[False][:, 0], firsts[True][:, 0], True, return_indices=True)
            pair = [firsts[True][held, 1] >> np.uint64(1), firsts[False][train, 1] >> np.uint64(1)]
            both.extend(np.stack([np.minimum(*pair), *pair], axis=1))
        return both, unlike

    def _nearly(self, known: set[str], unlike: dict[bool, int]) -> Iterator[Finding]:
        train, held = self.samples[False].kept, self.samples[True].kept
        if not (train and held):
            return
        near = [one for one in near_duplicates(held, train) if one[0] not in known]
        if near:
            text = (
                f"{len(near):,} of {sample_of(held, unlike[True])} held-out prompts are nearly one of "
                f"{sample_of(train, unlike[False])} prompts of training; the first is {near[0][0]}, nearly {near[0][1]}"
            )
            places = tuple(place for place, _ in near[:MAX_PLACES])
            yield Finding(kind="near leak", count=len(near), text=text, places=places)
