"""One part of the data before it is split: its records with the numbers of each, and how it is cut down or derived."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotators import as_one
from data.annotators import together as number_of
from data.common.user_functions import RESERVED
from data.derive import as_documents
from data.formats import Row
from data.leaks import Keys
from data.records import Demonstration, Document, RankedAnswers, normalise
from data.storage.codec import prompt_of
from data.storage.collected import Collected, Index
from data.storage.digests import Digests, Places, among, as_digests, compact, digest, firsts, repeated, together
from data.storage.views import Chain, Changes, Fills, Flattened, PromptsOf, View, origin_of

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

    def once(self, read: Collection[str] | None = None) -> tuple[Part, Differing]:
        """Each prompt once, the first of its kind; see ``merged``."""
        places = firsts(self.said)
        if len(places) == len(self):
            return self, Differing()
        return merged(self, places, self.records, read, read)

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
    numbers = array("Q", (number_of(r) for r in part.records))
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


def prompts_of(answered: Part, read: Collection[str] | None = None) -> tuple[Part, Differing]:
    """The prompts of demonstrations and rankings, each once; see ``merged``. Such rows differ in their responses, so
    that only columns that somebody names are said to differ."""
    if answered.said.all():
        places = firsts(answered.said)
    else:
        prompted = np.flatnonzero(answered.said)
        places = prompted[firsts(answered.said[prompted])]
    compared = [] if read is None else [name for name in read if name != "*"]
    made, differing = merged(answered, compact(places), PromptsOf(answered.records), read, compared)
    return replace(made, said=np.empty(0, np.uint64)), differing


@dataclass(frozen=True, slots=True)
class Differing:
    """Prompts whose rows have different values in a column: how many, and where the first is, in words."""

    count: int = 0
    first: str = ""


def merged(
    part: Part, places: Places, prompts: Sequence[Any], read: Collection[str] | None, compared: Collection[str] | None
) -> tuple[Part, Differing]:
    """The first rows of each prompt, with the columns that they lack and later rows of that prompt have.

    Args:
        part: all rows.
        places: those of the first rows, sorted.
        prompts: of all rows.
        read: columns that functions read; None, or ``*`` among them: all.
        compared: likewise those of which it is counted where rows of one prompt differ; the first value is used.
    """
    kept = part.some(places, prompts)
    named = {name for shape in part.shapes for name in shape} - RESERVED
    used, counted = (named if own is None or "*" in own else named & {*own} for own in (read, compared))
    if not used or not len(part.shape):
        return kept, Differing()
    carries = np.array([not used.isdisjoint(shape) for shape in part.shapes])[part.shape]
    rows = np.flatnonzero(among(part.said, repeated(part.said)) & (part.said != 0))
    at, names, sources, differing = array("q"), list[str](), array("q"), Differing()
    for same in together(part.said[rows]):
        own = rows[same]
        found, differs = _columns_of_all(prompts, own[carries[own]].tolist(), used, counted)
        for name, row in found.items():
            if row != own[0]:
                at.append(int(own[0]))
                names.append(name)
                sources.append(row)
        if differs:
            differing = Differing(differing.count + 1, differing.first or differs)
    if not names:
        return kept, differing
    fills = Fills(prompts, np.array(at, np.int64), names, np.array(sources, np.int64))
    shape, shapes = _filled_shapes(kept, np.searchsorted(places, fills.at).tolist(), names)
    return replace(kept, records=View(prompts, places, Changes(fills=fills)), shape=shape, shapes=shapes), differing


def _columns_of_all(
    prompts: Sequence[Any], rows: Sequence[int], used: Collection[str], counted: Collection[str]
) -> tuple[dict[str, int], str]:
    """Of the rows of one prompt the first that has each column, and where two of them first differ, in words."""
    found: dict[str, int] = {}
    values: dict[str, Any] = {}
    differs = ""
    for row in rows:
        for name, value in prompts[row].columns.items():
            if name not in used or value is None or value == "":
                continue
            if name not in found:
                found[name], values[name] = row, value
            elif not differs and name in counted and not _equal(values[name], value):
                differs = f"'{name}' of {prompts[found[name]].source} and of {prompts[row].source}"
    return found, differs


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) or repr(one) == repr(other)  # what is no number is not equal to itself


def _filled_shapes(part: Part, places: Sequence[int], names: Sequence[str]) -> tuple[Any, list[tuple[str, ...]]]:
    """``shape`` and ``shapes`` of a part whose records at these places get one column each."""
    codes, shape = {own: code for code, own in enumerate(part.shapes)}, part.shape.copy()
    shapes = list(part.shapes)
    for place, name in zip(places, names, strict=True):
        own = shapes[shape[place]]
        if name not in own:
            wider = (*own, name)
            if wider not in codes:
                codes[wider] = len(shapes)
                shapes.append(wider)
            shape[place] = codes[wider]
    return shape, shapes


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
