"""The doctor's look at the records of a run: each part by itself, what parts share, and what is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.common.patience import patience
from data.common.workers import helpers, mapped
from data.doctor.duplicates import NEAR_SAMPLE, Duplicates, HeldOut
from data.doctor.entry import Check, Entry, Finding, of_record
from data.doctor.meant import Meant, Specials
from data.doctor.rankings import Judgements, Rankings
from data.doctor.sampling import Lowest, Seats, elsewhere
from data.doctor.texts import Characters, Count, Languages, Lengths, Turns
from data.languages import load_model
from data.leaks import source_of
from data.splits import PARTS, Corpus, Split
from data.storage.number_rows import NumberRows, same
from data.storage.store import IN_MEMORY, as_stored
from data.storage.views import Chain

TOKEN_SAMPLE = 2000
"""Rows of a part whose tokens are counted."""

MANY, BLOCK = 100_000, 4096
"""Records of a part from which on helper processes look at them, and so many of them at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What was found: sentences about what is doubtful, and by part what there is."""

    findings: tuple[Finding, ...]
    facts: dict[str, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"findings": [f.as_dict() for f in self.findings], "facts": self.facts}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Health:
        """The health whose plain values these are."""
        findings = tuple(Finding(**{**one, "places": tuple(one["places"])}) for one in found["findings"])
        return cls(findings=findings, facts=found["facts"])


Where = Callable[[int], str]
"""The place of the record of a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is looked at of a part.

    ``near`` rows of it, and prompts of each side, are compared by MinHash; ``counted`` says that somebody counts
    tokens, ``compared`` that its prompts are compared with those of other parts and sides; ``special`` tokens are
    looked for in its texts.
    """

    part: str
    near: int
    counted: bool
    compared: bool
    special: tuple[str, ...] = ()


class _Part:
    """Every check of the records of one part, which come one after the other, training first.

    Args:
        asked: what is looked at.
        start: the number of the first record among those of its part, and among those of all parts.
        where: the places of both.
        count_tokens: counts the tokens of texts; without it lengths are told in characters.
    """

    def __init__(
        self,
        asked: _Asked,
        start: tuple[int, int],
        where: tuple[Where, Where] = (elsewhere, elsewhere),
        count_tokens: Count | None = None,
    ) -> None:
        def seats() -> Seats:
            return Seats(where[0], start[0])

        self.asked = asked
        lengths = Lengths(count_tokens, TOKEN_SAMPLE if asked.counted else None, start[0])
        languages, duplicates = Languages(start=start[0]), Duplicates(asked.near, seats())
        self.checks: tuple[Check, ...] = (
            *(Rankings(seats()), Judgements(), lengths, Turns(), languages, Characters(), Meant()),
            *(Specials(asked.special), duplicates),
        )
        self.held_out, self.shared = HeldOut(asked.near, Seats(where[1], start[1])), Shared()
        own = (lengths.sample, languages.sample, duplicates.sample, *self.held_out.samples.values())
        self.samples: tuple[Lowest[Any], ...] = tuple(sample for sample in own if sample is not None)

    def add(self, record: Any, held: bool) -> None:
        """Look at one record."""
        entry = of_record(record)
        for check in self.checks:
            check.add(entry)
        if self.asked.compared:
            self.held_out.add(entry, held)
            self.shared.add(self.asked.part, entry)

    def merge(self, other: _Part) -> None:
        """Take over what was seen of the records that follow."""
        for check, more in zip(self.checks, other.checks, strict=True):
            check.merge(more)
        self.held_out.merge(other.held_out)
        self.shared.merge(other.shared)


def examine(
    corpus: Corpus, count_tokens: Count | None = None, near: int = NEAR_SAMPLE, special: Sequence[str] = ()
) -> Health:
    """Look at every record once; at many with helper processes, which find the same.

    Args:
        corpus: the records of a run.
        count_tokens: counts the tokens of texts; without it lengths are told in characters.
        near: rows of each part, and prompts of each side, that are compared by MinHash.
        special: the tokenizer's special tokens, as they are written.
    """
    given = _given(corpus)
    if sum(len(getattr(corpus, part)) for part in given) > IN_MEMORY:
        load_model()  # what unpacking it takes is gone when the checks hold the most
    findings: list[Finding] = []
    facts: dict[str, dict[str, Any]] = {}
    compared = [part for part in given if part != "documents" or len(given) == 1]
    late = [] if "prompts" in given else [corpus.prompts.held_out]  # those of a file of held-out prompts
    everywhere = _places(Chain(*(getattr(corpus, part).all for part in compared), *late))
    held_out, shared = HeldOut(near, Seats(everywhere)), Shared()
    for part in given:
        split: Split[Any] = getattr(corpus, part)
        asked = _Asked(
            part=part,
            near=near,
            counted=count_tokens is not None,
            compared=part in compared,
            special=tuple(special),
        )
        start = 0, held_out.seats.count
        part_checks = _Part(asked, start, (_places(split.all), everywhere), count_tokens)
        _add_all(part_checks, start, split)
        held_out.merge(part_checks.held_out)
        shared.merge(part_checks.shared)
        findings += [_of_part(part, f) for check in part_checks.checks for f in check.findings()]
        facts[part] = {name: value for check in part_checks.checks for name, value in check.facts().items() if value}
    for records in late:
        for record in records:
            held_out.add(of_record(record), True)
    return Health(
        findings=(*findings, *held_out.findings(), *_sides(corpus, given)),
        facts=facts | ({"shared": found} if (found := shared.facts()) else {}),
    )


def _places(records: Sequence[Any]) -> Where:
    return lambda number: source_of(records[number])


def _add_all(part_checks: _Part, start: tuple[int, int], split: Split[Any]) -> None:
    """Look at all records of a part."""
    sides = split.train, split.held_out
    stored = [found for records in sides if (found := as_stored(records)) is not None]
    count = helpers() if len(split) > MANY and len(stored) == len(sides) else 0
    if not count:
        for held, records in zip((False, True), sides, strict=True):
            for record in records:
                part_checks.add(record, held)
        return
    with patience("checking"):
        for _, seen in mapped(_seen, _blocks(part_checks, start, stored), count):
            part_checks.merge(seen)


_Block = tuple[_Asked, tuple[int, int], list[int], bool, Sequence[Any]]


def _blocks(part_checks: _Part, start: tuple[int, int], sides: Sequence[Sequence[Any]]) -> Iterator[_Block]:
    """What helpers look at; they leave out of their samples what the samples have no place for any more."""
    for held, records in zip((False, True), sides, strict=True):
        for begin in range(0, len(records), BLOCK):
            own = records[begin : begin + BLOCK]
            yield part_checks.asked, start, [sample.bound for sample in part_checks.samples], held, own
            start = start[0] + len(own), start[1] + len(own) * part_checks.asked.compared


def _seen(block: _Block) -> _Part:
    """What a helper process sees of some records."""
    asked, start, bounds, held, records = block
    part_checks = _Part(asked, start)
    for sample, bound in zip(part_checks.samples, bounds, strict=True):
        sample.below = bound
    for record in records:
        part_checks.add(record, held)
    return part_checks


def _given(corpus: Corpus) -> list[str]:
    """Parts with sources of their own; those derived from others are looked at where they come from."""
    named = {count.part for count in corpus.counts}
    return [part for part in PARTS if part in named]


def _of_part(part: str, finding: Finding) -> Finding:
    return Finding(kind=finding.kind, count=finding.count, text=f"data.{part}: {finding.text}", places=finding.places)


class Shared:
    """How many prompts parts have in common: what SFT and the reward model both see."""

    def __init__(self) -> None:
        self._asked = NumberRows(2)  # prompt, part

    def add(self, part: str, entry: Entry) -> None:
        """Note a part's prompt."""
        if entry.messages:
            self._asked.add(entry.asked, PARTS.index(part))

    def merge(self, other: Shared) -> None:
        """Take over what follows."""
        self._asked.extend(other._asked)

    def facts(self) -> dict[str, Any]:
        """Prompts by the two parts or more that have them."""
        counts = np.zeros(1 << len(PARTS), np.int64)
        for rows in self._asked.grouped():
            if len(rows):
                having = np.bitwise_or.reduceat(np.uint64(1) << rows[:, 1], same(rows)[0])
                counts += np.bincount(having.astype(np.int64), minlength=len(counts))
        names = {bits: [part for i, part in enumerate(PARTS) if bits >> i & 1] for bits in range(len(counts))}
        return {" and ".join(of): int(counts[bits]) for bits, of in names.items() if len(of) > 1 and counts[bits]}


def _sides(corpus: Corpus, given: Iterable[str]) -> Iterator[Finding]:
    """Sides of the split without a row, or whose rows are all of one group."""
    for part in (*given, *(["prompts"] if "prompts" not in given else [])):
        split: Split[Any] = getattr(corpus, part)
        if split.train and not split.held_out:
            more = ", or evaluation has nothing to ask" if part == "prompts" else ", or nothing tells when it overfits"
            what = "no prompt is held out" if part == "prompts" else f"data.{part}: no row is held out"
            yield Finding(kind="nothing held out", count=0, text=f"{what}: raise data.held_out{more}")
        for records, what in ((split.held_out, "held-out"), (split.train, "training")):
            if len(records) > 1 and _one_group(records):
                text = f"data.{part}: all {len(records):,} {what} rows are of one group, so that they count as one"
                yield Finding(kind="one group", count=len(records), text=text)


def _one_group(records: Iterable[Any]) -> bool:
    groups: set[str] = set()
    for record in records:
        groups.add(getattr(record, "prompt", record).group)
        if len(groups) > 1:
            return False
    return True
