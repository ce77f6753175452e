"""The records of a run in two sides, and which side a group is on.

Knows nothing of files, tokenizers or models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from data.records import Demonstration, Document, Prompt, RankedAnswers
from data.source_counts import Rejected, SourceCount
from data.storage.codec import content_bytes, prompt_of
from data.storage.kept import Memo
from data.storage.views import Chain

T = TypeVar("T")
PARTS = ("documents", "demonstrations", "rankings", "prompts")
_SALT = "trivet/split/1"


@dataclass(frozen=True)
class Split(Generic[T]):
    """Records for training, and those that are kept from it."""

    train: Sequence[T] = ()
    held_out: Sequence[T] = ()

    def __len__(self) -> int:
        return len(self.train) + len(self.held_out)

    @property
    def all(self) -> Sequence[T]:
        """Both sides as one, training first."""
        return Chain(self.train, self.held_out)


class LateSplit(Split[T]):
    """A split that is made when it is first asked for."""

    _make: Callable[[], Split[T]]
    _made: Split[T] | None

    def __init__(self, make: Callable[[], Split[T]]) -> None:
        object.__setattr__(self, "_make", make)
        object.__setattr__(self, "_made", None)

    def _split(self) -> Split[T]:
        if self._made is None:
            object.__setattr__(self, "_made", self._make())
        assert self._made is not None
        return self._made

    @property
    def train(self) -> Sequence[T]:  # type: ignore[override]
        return self._split().train

    @property
    def held_out(self) -> Sequence[T]:  # type: ignore[override]
        return self._split().held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """All records of a run.

    ``notes`` counts what was changed or left out on the way, for the user to see; ``read`` the rows of the files of
    each part, and those of them that were rejected; ``counts`` are those of every source; ``remarks`` are what
    was found out about files, such as an encoding. Of documents that are made of other records, which happens when they
    are first asked for, the notes are counted then. ``memo`` remembers fingerprints.
    """

    documents: Split[Document] = Split()
    demonstrations: Split[Demonstration] = Split()
    rankings: Split[RankedAnswers] = Split()
    prompts: Split[Prompt] = Split()
    rejected: Sequence[Rejected] = ()
    notes: dict[str, int] = field(default_factory=dict)
    read: dict[str, tuple[int, Sequence[Rejected]]] = field(default_factory=dict)
    counts: tuple[SourceCount, ...] = ()
    remarks: tuple[str, ...] = ()
    memo: Memo = field(default_factory=lambda: Memo(None), repr=False, compare=False)

    def fingerprint(self, part: str) -> str:
        """sha256 over the records of a part, both sides, or of everything ``held_out``; where they lie is no matter.

        Raises:
            ValueError: no such part.
        """
        if part not in (*PARTS, "held_out"):
            raise ValueError(f"no part {part!r}: {', '.join(PARTS)} or held_out")
        return self.memo.get(part, lambda: self._hash(part))

    def _hash(self, part: str) -> str:
        digest = hashlib.sha256()
        for name in PARTS if part == "held_out" else (part,):
            split: Split[Any] = getattr(self, name)
            for side in ("train", "held_out"):
                if part in (name, side):
                    records = getattr(split, side)
                    digest.update(f"{name}/{side}/{len(records)}\n".encode())
                    content = getattr(records, "content", None) or (lambda i, own=records: content_bytes(own[i]))
                    for place in range(len(records)):
                        digest.update(content(place) + b"\n")
        return digest.hexdigest()

    def columns_fingerprint(self, part: str) -> str:
        """sha256 over the other columns of a part's prompts, in order: what a user's functions are given of them."""
        return self.memo.get(f"columns of {part}", lambda: self._hash_columns(part))

    def _hash_columns(self, part: str) -> str:
        digest = hashlib.sha256()
        split: Split[Any] = getattr(self, part)
        for side in (split.train, split.held_out):
            for record in side:
                prompt = prompt_of(record)
                text = json.dumps({} if prompt is None else prompt.columns, sort_keys=True, default=str)
                digest.update(text.encode() + b"\n")
        return digest.hexdigest()


def is_held_out(group: str, share: float) -> bool:
    """Whether a group is held out at this share: the same answer everywhere, and at a larger share never less."""
    digest = hashlib.sha256(f"{_SALT}/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def in_holdout(group: str, share: float) -> bool:
    """Whether a group's rankings are for the held-out reward model at this share; no prompt is on both sides."""
    return is_held_out(f"watcher/{group}", share)
