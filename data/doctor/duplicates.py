"""Rows that came before, exactly or nearly, and prompts of training that are nearly held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.doctor.entry import MAX_PLACES, Entry, Finding, Places
from data.doctor.sampling import HashSample, Repeats, Reservoir
from data.near_duplicates import near_duplicates, plain
from data.storage.digests import digest

NEAR_SAMPLE = 2000
"""Rows that are compared by MinHash: each takes a third of a millisecond."""
PROMPTS = 100_000
"""Prompts that are remembered; of more, those of a share of them."""


def content_of(entry: Entry) -> int:
    """64 bits that stand for all that a row says, to the letter."""
    turns = [f"{m.role}\x1f{m.content}\x1f{m.tool_calls}\x1f{m.tools}" for m in entry.messages]
    ranked = [f"{rank}\x1f{answer}" for rank, answer in zip(entry.ranks, entry.answers, strict=False)]
    return digest("\x1e".join([*turns, "\x1d", *(ranked or entry.answers), "\x1d", entry.text]))


class Duplicates:
    """Rows that are one before again, all of them, and rows that are nearly one before, of a sample."""

    def __init__(self, near: int = NEAR_SAMPLE) -> None:
        self.rows, self.prompts = Repeats(), Repeats()
        self._sample: Reservoir[tuple[int, str, str]] = Reservoir(near)

    def add(self, entry: Entry) -> None:
        """Remember one row in a few bytes."""
        key = content_of(entry)
        self.rows.add(key, entry.place)
        if entry.messages:
            self.prompts.add(entry.asked, entry.place)
        self._sample.offer(lambda: (key, entry.place, "\n".join(entry.texts)))

    def near(self) -> list[tuple[str, str]]:
        """Places of rows of the sample that are nearly, but not exactly, one before, and of that one."""
        once: dict[int, tuple[str, str]] = {}
        for key, place, text in self._sample.kept:
            once.setdefault(key, (place, text))
        return list(near_duplicates(once.values()))

    def findings(self) -> Iterator[Finding]:
        """Exact duplicates, then near ones."""
        if n := self.rows.count:
            where = "; the first is {} again at {}".format(*reversed(self.rows.places[0])) if self.rows.places else ""
            text = f"{n:,} rows are one before again{where}; data.clean.duplicates: exact drops them"
            yield Finding(kind="duplicates", count=n, text=text, places=tuple(a for a, _ in self.rows.places))
        if near := self.near():
            text = (
                f"{len(near):,} of {self._sample.of('rows')} are nearly one before; the first is {near[0][0]}, nearly "
                f"{near[0][1]}; data.clean.duplicates: near drops them"
            )
            places = tuple(place for place, _ in near[:MAX_PLACES])
            yield Finding(kind="near duplicates", count=len(near), text=text, places=places)

    def facts(self) -> dict[str, Any]:
        """How many rows and prompts came before."""
        return {"duplicate rows": self.rows.count, "repeated prompts": self.prompts.count}


class HeldOut:
    """Held-out prompts that are in training but for punctuation, or nearly."""

    def __init__(self, near: int = NEAR_SAMPLE, prompts: int = PROMPTS) -> None:
        self._seen: HashSample[dict[bool, str]] = HashSample(prompts)
        self._samples: dict[bool, Reservoir[tuple[str, str]]] = {side: Reservoir(near) for side in (False, True)}

    def add(self, entry: Entry, held_out: bool) -> None:
        """Note the prompt of a row of one side."""
        if not (words := plain(entry.question)):
            return
        key = digest(words)
        if not self._seen.admits(key):
            return
        sides = self._seen.items.get(key, {})
        if held_out not in sides:
            sides[held_out] = entry.place
            self._seen.put(key, sides)
            self._samples[held_out].add((entry.place, entry.question))

    def findings(self) -> Iterator[Finding]:
        """Prompts on both sides but for punctuation, then those of a sample that are nearly so."""
        both, held = Places(), 0
        other: list[str] = []
        for sides in self._seen.items.values():
            held += True in sides
            if len(sides) == 2:
                both.add(sides[True])
                other.append(sides[False])
        sampled = f" ({self._seen.sampled} of all prompts)" if self._seen.sampled else ""
        if n := both.count:
            text = (
                f"{n:,} of {held:,} held-out prompts{sampled} are in training but for case, width, punctuation or "
                f"white space; the first is {both.first[0]}, as {other[0]}"
            )
            yield Finding(kind="leak", count=n, text=text, places=tuple(both.first))
        yield from self._nearly(set(both.first))

    def _nearly(self, known: set[str]) -> Iterator[Finding]:
        train, held = self._samples[False], self._samples[True]
        if not (train.kept and held.kept):
            return
        near = [one for one in near_duplicates(held.kept, train.kept) if one[0] not in known]
        if near:
            text = (
                f"{len(near):,} of {held.of('held-out prompts')} are nearly one of {train.of('prompts of training')}; "
                f"the first is {near[0][0]}, nearly {near[0][1]}"
            )
            places = tuple(place for place, _ in near[:MAX_PLACES])
            yield Finding(kind="near leak", count=len(near), text=text, places=places)
