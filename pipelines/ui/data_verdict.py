"""What the doctor says of data files, in a few lines for each: from the JSON of ``trivet data check --json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PARTS = {
    "rankings": "the reward model",
    "demonstrations": "SFT",
    "prompts": "PPO and evaluation",
    "documents": "pretraining a base",
}
KINDS = {"answer": "response"}
SHOWN = 3
"""Bad rows and doubtful places of each kind that are shown; the command line has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Of one file.

    Attributes:
        file: its path, as it was given.
        headline: rows and format.
        facts: what it can be used for, and lengths.
        doubts: what is lost, repeated, shared or odd.
        good: whether there is no doubt.
    """

    file: str
    headline: str
    facts: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def good(self) -> bool:
        return not self.doubts


def verdicts(check: Mapping[str, Any]) -> list[Verdict]:
    """One for each file, in their order."""
    overlaps = check.get("overlaps", [])
    return [_verdict(one, overlaps) for one in check.get("files", [])]


def _verdict(one: Mapping[str, Any], overlaps: Sequence[Mapping[str, Any]]) -> Verdict:
    file, rows = one["file"], one["rows"]
    formats = ", ".join(sorted(one["formats"], key=lambda name: -one["formats"][name])) or "no format that is known"
    usable = [f"{one['usable'][part]:,} as {part} ({use})" for part, use in PARTS.items() if one["usable"].get(part)]
    lengths = [
        f"{KINDS.get(kind, kind)}: median {n['median']:,.0f} characters, 95 % up to {n['p95']:,.0f}, "
        f"longest {n['longest']:,}"
        for kind, n in one["characters"].items()
    ]
    doubts = [f"{len(one['bad']):,} of {rows:,} rows cannot be used"] if one["bad"] else []
    doubts += [f"{bad['source']}: {bad['reason']}" for bad in one["bad"][:SHOWN]]
    doubts += [f"{one['duplicate_rows']:,} of {rows:,} rows repeat one before"] if one["duplicate_rows"] else []
    doubts += [found["text"] for found in one["findings"] if found["kind"] != "duplicates"]
    for overlap in overlaps:
        if file == overlap["second"]:
            doubts += _shared(overlap)
    facts = [f"usable: {'; '.join(usable)}" if usable else "no row is usable", *lengths]
    facts += [f"{note} ({count:,} rows)" for note, count in one["notes"].items()] + list(one["remarks"])
    return Verdict(
        file=file, headline=f"{rows:,} row{'s' * (rows != 1)}, {formats}", facts=tuple(facts), doubts=tuple(doubts)
    )


def _shared(overlap: Mapping[str, Any]) -> list[str]:
    of = f" ({overlap['sampled']})" if overlap.get("sampled") else ""
    found = []
    if overlap["shared"]:
        found.append(f"{overlap['shared']:,} prompts are in {overlap['first']} as well{of}")
    if overlap.get("nearly"):
        found.append(f"{overlap['nearly']:,} prompts are one of {overlap['first']} but for a few characters{of}")
    return found
