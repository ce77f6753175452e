"""The doctor's look at the records of a run: each part by itself, what parts share, and what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.doctor.duplicates import NEAR_SAMPLE, Duplicates, HeldOut
from data.doctor.entry import Check, Entry, Finding, of_record
from data.doctor.rankings import Judgements, Rankings
from data.doctor.sampling import Seats
from data.doctor.texts import Characters, Count, Languages, Lengths, Turns
from data.leaks import source_of
from data.splits import PARTS, Corpus, Split
from data.storage.number_rows import NumberRows, same
from data.storage.views import Chain

TOKEN_SAMPLE = 2000
"""Rows of a part whose tokens are counted."""


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


def part_checks(
    records: Sequence[Any], count_tokens: Count | None = None, near: int = NEAR_SAMPLE
) -> tuple[Check, ...]:
    """Every check of one part, new; it then gets these records one after the other."""
    lengths = Lengths(count_tokens, TOKEN_SAMPLE)
    duplicates = Duplicates(near, _seats(records))
    return (Rankings(_seats(records)), Judgements(), lengths, Turns(), Languages(), Characters(), duplicates)


def _seats(records: Sequence[Any]) -> Seats:
    return Seats(lambda number: source_of(records[number]))


def examine(corpus: Corpus, count_tokens: Count | None = None, near: int = NEAR_SAMPLE) -> Health:
    """Look at every record once.

    Args:
        corpus: the records of a run.
        count_tokens: counts the tokens of texts; without it lengths are told in characters.
        near: rows of each part, and prompts of each side, that are compared by MinHash.
    """
    given = _given(corpus)
    findings: list[Finding] = []
    facts: dict[str, dict[str, Any]] = {}
    asked = [part for part in given if part != "documents" or len(given) == 1]
    late = [] if "prompts" in given else [corpus.prompts.held_out]  # those of a file of held-out prompts
    held_out = HeldOut(near, _seats(Chain(*(getattr(corpus, part).all for part in asked), *late)))
    shared = Shared() if len(asked) > 1 else None
    for part in given:
        own = part_checks(getattr(corpus, part).all, count_tokens, near)
        for entry, held in _entries(getattr(corpus, part)):
            for check in own:
                check.add(entry)
            if part in asked:
                held_out.add(entry, held)
                if shared is not None:
                    shared.add(part, entry)
        findings += [_of_part(part, f) for check in own for f in check.findings()]
        facts[part] = {name: value for check in own for name, value in check.facts().items() if value}
    for records in late:
        for record in records:
            held_out.add(of_record(record), True)
    return Health(
        findings=(*findings, *held_out.findings(), *_sides(corpus, given)),
        facts=facts | ({"shared": found} if shared is not None and (found := shared.facts()) else {}),
    )


def _given(corpus: Corpus) -> list[str]:
    """Parts with sources of their own; those derived from others are looked at where they come from."""
    named = {count.part for count in corpus.counts}
    return [part for part in PARTS if part in named]


def _entries(split: Split[Any]) -> Iterator[tuple[Entry, bool]]:
    for held, records in ((False, split.train), (True, split.held_out)):
        for record in records:
            yield of_record(record), held


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
