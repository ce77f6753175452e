"""One part of the data before it is split: its records with the numbers of each, and how it is cut down or derived."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotators import as_one, together
from data.derive import as_documents
from data.formats import Row
from data.leaks import Keys
from data.records import Demonstration, Document, RankedAnswers, normalise
from data.storage.codec import prompt_of
from data.storage.collected import Collected, Index
from data.storage.digests import Digests, Places, as_digests, compact, digest, firsts
from data.storage.views import Chain, Changes, Flattened, PromptsOf, View, origin_of

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Records and, in their order, numbers of each (see ``storage.collected.Index``).

    ``origin`` is the number of its source, ``keys`` what must not be on both sides, ``weights`` those of rankings where
    several people share one.
    """

    records: Sequence[Any]
    group: Digests
    held: Mask
    keys: Keys
    origin: npt.NDArray[np.uint32]
    said: Digests
    shape: npt.NDArray[np.uint32]
    shapes: Sequence[tuple[str, ...]]
    all_hashes: bool = True
    weights: Sequence[float] | None = None

    def __len__(self) -> int:
        return len(self.group)

    @classmethod
    def of(cls, collected: Collected, index: Index) -> Part:
        """What was collected, without what was not sampled."""
        group = index.group
        whole = cls(
            records=collected.store,
            group=group,
            held=index.held,
            keys=Keys(index.asked if index.asked_differs else group, index.loose, index.texts),
            origin=collected.origins(),
            said=index.said,
            shape=index.shape,
            shapes=index.shapes,
            all_hashes=index.all_hashes,
        )
        places = collected.places()
        return whole if len(places) == len(whole) else whole.some(places)

    def some(self, places: Places, records: Sequence[Any] | None = None) -> Part:
        """The records at these places; ``records`` is what they are, where they become something else."""
        group, keys = self.group[places], self.keys.of(places)
        if self.keys.asked is self.group:
            keys = Keys(group, keys.loose, keys.texts)  # one array for both
        return replace(
            self,
            records=View(self.records, places) if records is None else View(records, places),
            group=group,
            held=self.held[places],
            keys=keys,
            origin=self.origin[places],
            said=self.said[places] if len(self.said) else self.said,
            shape=self.shape[places] if len(self.shape) else self.shape,
        )

    def once(self) -> Part:
        """Each prompt once, the first of its kind."""
        places = firsts(self.said)
        return self if len(places) == len(self) else self.some(places)

    def per_source(self, places: Places, sources: int) -> list[int]:
        """How many of these records are from each source."""
        return list(map(int, np.bincount(self.origin[places], minlength=sources)))

    def view(self, places: Places, changes: Changes) -> View[Any]:
        """Some of the records, as they are after the split."""
        return View(self.records, places, replace(changes, weights=self.weights))


def annotated(part: Part, how: str, new: Callable[[], Index]) -> Part:
    """Several people's rankings of the same answers, treated as ``data.annotators`` says."""
    if how == "keep" or not len(part):
        return part
    numbers = array("Q", (together(r) for r in part.records))
    order = np.argsort(as_digests(numbers), kind="stable")
    starts = np.flatnonzero(np.diff(as_digests(numbers)[order], prepend=np.uint64(0)))
    starts = starts if len(starts) and starts[0] == 0 else np.array([0, *starts])
    sizes = np.diff([*starts, len(order)])
    if how == "share":
        weights = np.empty(len(order))
        weights[order] = np.repeat(1.0 / sizes, sizes)
        return replace(part, weights=weights)  # type: ignore[arg-type]
    index = new()
    collected = Collected("rankings", index)
    ranked = np.argsort(order[starts], kind="stable")  # in the order of the first of each
    for at in ranked:
        same = order[starts[at] : starts[at] + sizes[at]]
        collected.add([as_one([part.records[int(i)] for i in same])])
    collected.end_source()
    firsts_of = order[starts[ranked]]
    origin = part.origin[firsts_of]  # in order, as the firsts are
    ends = np.flatnonzero(np.diff(origin, append=origin[-1] + 1)) + 1
    collected.store.sources = [(int(end), origin_of(part.records, int(firsts_of[end - 1]))) for end in ends]
    return replace(Part.of(collected, index), origin=origin)


def joined(first: Part, second: Part) -> Part:
    """Two parts as one, the second behind the first; their numbers alone, without texts."""
    empty = np.empty(0, np.uint64)
    if not len(first) or not len(second):
        one = second if len(second) else first
        return replace(one, keys=Keys(one.keys.asked, empty, empty), weights=None)
    names = [*first.shapes, *(s for s in second.shapes if s not in first.shapes)]
    codes = np.array([names.index(s) for s in second.shapes] or [0], np.uint32)
    return Part(
        records=Chain(first.records, second.records),
        group=np.concatenate([first.group, second.group]),
        held=np.concatenate([first.held, second.held]),
        keys=Keys(np.concatenate([first.keys.asked, second.keys.asked]), empty, empty),
        origin=np.zeros(len(first) + len(second), np.uint32),
        said=np.concatenate([first.said, second.said]),
        shape=np.concatenate([first.shape, codes[second.shape]]),
        shapes=names,
        all_hashes=first.all_hashes and second.all_hashes,
    )


def prompts_of(answered: Part) -> Part:
    """The prompts of demonstrations and rankings, each once."""
    if answered.said.all():
        places = firsts(answered.said)
    else:
        prompted = np.flatnonzero(answered.said)
        places = prompted[firsts(answered.said[prompted])]
    made = answered.some(compact(places), PromptsOf(answered.records))
    return replace(made, said=np.empty(0, np.uint64))


def documents_of(answered: Part) -> Part:
    """The texts of demonstrations and rankings, each once, in their order."""
    records, which = array("Q"), array("Q")
    exact, texts = array("Q"), array("Q")
    for place, record in enumerate(answered.records):
        for number, document in enumerate(transcripts(record)):
            records.append(place)
            which.append(number)
            exact.append(digest(document.text))
            texts.append(digest(normalise(document.text)))
    first = firsts(as_digests(exact))
    of = as_digests(records)[first]
    places = np.arange(len(first), dtype=np.uint64)
    none = np.empty(0, np.uint32)
    return Part(
        records=Flattened(transcripts, answered.records, of, as_digests(which)[first]),
        group=answered.group[of],
        held=answered.held[of],
        keys=Keys(np.zeros(len(first), np.uint64), places, as_digests(texts)[first]),
        origin=np.zeros(len(first), np.uint32),
        said=np.empty(0, np.uint64),
        shape=none,
        shapes=(),
        all_hashes=answered.all_hashes,
    )


def transcripts(record: Demonstration | RankedAnswers) -> list[Document]:
    """The texts of a record with answers."""
    answers = (record.answer,) if isinstance(record, Demonstration) else record.answers
    prompt = record.prompt
    return as_documents(Row(messages=prompt.messages, answers=answers, group=prompt.group, source=prompt.source))


class Names:
    """The names of groups by their numbers, read from the first record of each."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.all_hashes = all(part.all_hashes for part in parts.values())
        self._parts = list(parts.values())
        self._firsts: list[tuple[Digests, Places]] = []

    def __call__(self, number: int) -> str:
        if self.all_hashes:
            return f"{number:016x}"
        if not self._firsts:
            self._firsts = [np.unique(part.group, return_index=True) for part in self._parts]
        for part, (numbers, places) in zip(self._parts, self._firsts, strict=True):
            at = int(np.searchsorted(numbers, np.uint64(number)))
            if at < len(numbers) and int(numbers[at]) == number:
                record = part.records[int(places[at])]
                prompt = prompt_of(record)
                return record.group if prompt is None else prompt.group  # type: ignore[no-any-return]
        raise KeyError(number)
