"""The doctor's look at the records of a run: each part by itself, what parts share, and what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from data.doctor.duplicates import NEAR_SAMPLE, PROMPTS, Duplicates, HeldOut
from data.doctor.entry import Check, Entry, Finding, of_record
from data.doctor.rankings import Judgements, Rankings
from data.doctor.sampling import HashSample
from data.doctor.texts import Characters, Count, Languages, Lengths, Turns
from data.splits import PARTS, Corpus, Split

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


def part_checks(count_tokens: Count | None = None, near: int = NEAR_SAMPLE) -> tuple[Check, ...]:
    """Every check of one part, new."""
    lengths = Lengths(count_tokens, TOKEN_SAMPLE)
    return (Rankings(), Judgements(), lengths, Turns(), Languages(), Characters(), Duplicates(near))


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
    held_out, shared = HeldOut(near), Shared()
    for part in given:
        own = part_checks(count_tokens, near)
        for entry, held in _entries(getattr(corpus, part)):
            for check in own:
                check.add(entry)
            if part != "documents" or len(given) == 1:
                held_out.add(entry, held)
                shared.add(part, entry)
        findings += [_of_part(part, f) for check in own for f in check.findings()]
        facts[part] = {name: value for check in own for name, value in check.facts().items() if value}
    if "prompts" not in given:  # those of a file of held-out prompts
        for record in corpus.prompts.held_out:
            held_out.add(of_record(record), True)
    return Health(
        findings=(*findings, *held_out.findings(), *_sides(corpus, given)),
        facts=facts | ({"shared": found} if (found := shared.facts()) else {}),
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

    def __init__(self, prompts: int = PROMPTS) -> None:
        self._parts: HashSample[frozenset[str]] = HashSample(prompts)
        self._sets: dict[frozenset[str], frozenset[str]] = {}

    def add(self, part: str, entry: Entry) -> None:
        """Note a part's prompt."""
        if not entry.messages:
            return
        key = entry.asked
        if self._parts.admits(key):
            parts = self._parts.items.get(key, frozenset()) | {part}
            self._parts.put(key, self._sets.setdefault(parts, parts))  # one set for all prompts of the same parts

    def facts(self) -> dict[str, Any]:
        """Prompts by the two parts or more that have them."""
        counts: dict[str, int] = {}
        for parts in self._parts.items.values():
            if len(parts) > 1:
                names = " and ".join(part for part in PARTS if part in parts)
                counts[names] = counts.get(names, 0) + 1
        return counts | ({"counted": self._parts.sampled} if counts and self._parts.sampled else {})


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
