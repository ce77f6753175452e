"""What became of the rows of sources: those that are not used, and counts by source, format and note."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.cleaning.rows import Tally
from data.storage.codec import Codec, Encoded
from data.storage.store import Store


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is not used: ``source`` is ``file:line``."""

    source: str
    reason: str


def _encode(row: Rejected) -> Encoded:
    return Encoded(row.reason.encode(errors="surrogatepass"), row.source.encode(errors="surrogatepass"), b"")


def _decode(stored: Encoded) -> Rejected:
    return Rejected(stored.source.decode(errors="surrogatepass"), stored.content.decode(errors="surrogatepass"))


def rejected_rows(file: Path | None = None, count: int = 0) -> Store[Rejected]:
    """Rows that are not used, on disk from some thousands on.

    Args:
        file: where such rows lie already.
        count: how many they are.
    """
    codec = Codec(_encode, _decode)
    return Store(Rejected, codec) if file is None else Store.opened(Rejected, file, count, codec)


@dataclass(slots=True, kw_only=True)
class SourceCount:
    """What became of the rows of one source.

    ``read`` is the sum of ``rejected``, ``where`` (left out by it), ``dropped`` (by cleaning), ``not_sampled`` (by
    weight and limit) and ``used``; of those used, ``repeated`` prompts are dropped, and ``held_out`` records kept from
    training. ``changed`` rows are those that cleaning mended, ``cleaning`` says how.
    """

    part: str
    source: str
    read: int = 0
    rejected: int = 0
    where: int = 0
    not_sampled: int = 0
    used: int = 0
    repeated: int = 0
    held_out: int = 0
    changed: int = 0
    dropped: int = 0
    cleaning: Tally = field(default_factory=Tally, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain values."""
        names = ("part", "source", "read", "rejected", "where", "not_sampled", "used", "repeated", "held_out")
        out = {name: getattr(self, name) for name in names}
        if self.changed or self.dropped or self.cleaning.near_sample:
            out |= {"changed": self.changed, "dropped": self.dropped, "cleaning": self.cleaning.as_dict()}
        return out

    def __str__(self) -> str:
        shown = {
            "rejected": self.rejected,
            "left out by where": self.where,
            "changed by cleaning": self.changed,
            "dropped by cleaning": self.dropped,
            "not sampled": self.not_sampled,
            "repeated prompts dropped": self.repeated,
            "held out": self.held_out,
        }
        more = "".join(f", {n:,} {what}" for what, n in shown.items() if n)
        return f"{self.part}: {self.source}: {self.read:,} rows read{more}"


@dataclass(slots=True)
class Loaded:
    """What sources held: records of the kind asked for, rows left out, how often each format and note came, counts."""

    records: Sequence[Any] = ()
    rejected: Store[Rejected] = field(default_factory=rejected_rows)
    formats: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    counts: list[SourceCount] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    read: int = 0  # rows of the files, the rejected ones included

    def add(self, other: Loaded) -> None:
        """Take over what another source held, but for its records."""
        self.rejected.extend(other.rejected)
        self.formats += other.formats
        self.notes += other.notes
        self.columns += other.columns
        self.counts += other.counts
        self.remarks += other.remarks
        self.read += other.read
