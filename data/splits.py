"""The records of a run, split once for all stages into training and held out.

The unit is the group (a prompt's first user message; see ``records.group_of``): a stable hash of it, the same on every
machine and for every seed, decides against the share. What is held out is in no stage's training, pretraining
included:

- records without a prompt that share a response or a text with each other are one group, however long the chain;
- a plain document that contains a held-out prompt of eight words or more (or the whole of it, if it is all the
  document says) is held out with it;
- what still occurs on both sides, which takes groups named by the user, is an error.

Records lie on disk from some thousands on (``data.storage``); the split works on a few numbers of each. Knows nothing
of tokenizers or models.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.common.errors import UserError
from data.corpus import PARTS, Corpus, LateSplit, Split, in_holdout, is_held_out
from data.grouping import joined_groups, renamed
from data.kept_parts import is_large, keep, kept, part_key
from data.leaks import HeldPrompts, Keys, check_leaks, moved
from data.parts import Differing, Names, Part, annotated, documents_of, joined, prompts_of
from data.records import Document
from data.source_counts import Loaded, Rejected, SourceCount, rejected_rows
from data.source_settings import DataConfig, Source
from data.sources import check_ignored, load_records
from data.storage.collected import Collected, Index
from data.storage.digests import Digests, Places, among, as_digests, compact, digest, first_of_each, firsts
from data.storage.kept import Memo, joined_key
from data.storage.store import Store
from data.storage.views import Changes, View

__all__ = ["PARTS", "Corpus", "Split", "in_holdout", "is_held_out", "load_corpus"]

MOVED = "documents held out because they contain a held-out prompt"
REPEATED = "repeated prompts dropped"
DIFFERING = "repeated prompts whose rows differ in a column"


def load_corpus(config: DataConfig, *, seed: int, base_dir: Path, known: Collection[str] | None = None) -> Corpus:
    """Read every source, split by group and check for leaks.

    Args:
        config: sources and what to hold out.
        seed: of the demo task's text; the split does not depend on it.
        base_dir: what relative paths start from.
        known: columns that the run's functions read (see ``load_records``).

    Raises:
        UserError: a source is wrong, nothing is left for training, or a held-out prompt is in a training part.
    """
    reading = _Reading(config, seed, base_dir, known, is_large(config, base_dir))
    parts = {part: reading.part(part, getattr(config, part)) for part in PARTS}
    held_file = reading.held_file()
    check_ignored("data.ignore", config.ignore, reading.columns)
    splits = _split(config, parts, held_file, reading)
    return Corpus(
        **splits,
        rejected=_each_once(reading.rejected),
        notes=reading.notes,
        read=reading.read,
        counts=tuple(reading.counts),
        remarks=tuple(reading.remarks),
        memo=Memo(joined_key(reading.keys)),
    )


def _each_once(rejected: Store[Rejected]) -> Sequence[Rejected]:
    """Every row once, though several parts read it."""
    numbers = array("Q", (digest(f"{row.source}\x1f{row.reason}") for row in rejected))
    return rejected.some(compact(firsts(as_digests(numbers))))


@dataclass
class _Reading:
    """What is found out while the sources are read; ``keeps`` says that parts are kept in the cache."""

    config: DataConfig
    seed: int
    base_dir: Path
    known: Collection[str] | None
    keeps: bool
    rejected: Store[Rejected] = field(default_factory=rejected_rows)
    notes: Counter[str] = field(default_factory=Counter)
    read: dict[str, tuple[int, Sequence[Rejected]]] = field(default_factory=dict)
    counts: list[SourceCount] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    columns: Counter[str] = field(default_factory=Counter)
    keys: list[str | None] = field(default_factory=list)

    def part(self, name: str, sources: Sequence[Any]) -> Part:
        """The records of a part, with several people's rankings of the same answers treated as asked."""
        said = name == "prompts" or (not self.config.prompts and name != "documents")
        found, loaded = self._loaded(name, sources, said=said)
        self.read[name] = (loaded.read, loaded.rejected)
        self._take(loaded, loaded.counts)
        self.notes += loaded.notes
        return (
            annotated(found, self.config.annotators, partial(self._index, said=True)) if name == "rankings" else found
        )

    def held_file(self) -> Part | None:
        """The prompts of the file that names what is held out; None where a share decides."""
        if isinstance(self.config.held_out, float):
            return None
        found, loaded = self._loaded("prompts", [self.config.held_out], said=True)
        self.read["held_out"] = (loaded.read, loaded.rejected)
        self._take(loaded, [replace(count, part="held_out", held_out=count.used) for count in loaded.counts])
        return self.once(found)

    def _loaded(self, kind: str, sources: Sequence[Any], *, said: bool) -> tuple[Part, Loaded]:
        """Records with what was found out about their sources, from the cache where they were read before."""
        config, known = self.config, None if self.known is None else sorted(self.known)
        key = None
        if self.keeps:
            key = part_key(kind, sources, self.base_dir, config, seed=self.seed, known=known, said=said)
            self.keys.append(None if key is None else key.name)
        if key is not None and sources and (found := kept(key, kind)) is not None:
            return found
        index = self._index(said=said)
        collected = Collected(kind, index)
        loaded = load_records(
            sources, kind, config, seed=self.seed, base_dir=self.base_dir, known=known, into=collected
        )
        part = Part.of(collected, index)
        if key is not None:
            keep(key, part, loaded)
        return part, loaded

    def once(self, prompts: Part) -> Part:
        """Each prompt once; how many are dropped is noted."""
        unique, differing = prompts.once(self.known)
        if len(unique) < len(prompts):
            self.notes[REPEATED] += len(prompts) - len(unique)
        self.tell(differing)
        return unique

    def tell(self, found: Differing) -> None:
        """Note prompts whose rows differ in a column."""
        if found.count:
            self.notes[DIFFERING] += found.count
            self.remarks.append(
                f"{DIFFERING}, of which the first row's value is used: {found.count:,}, the first in {found.first}"
            )

    def _take(self, loaded: Any, counts: Sequence[SourceCount]) -> None:
        self.rejected.extend(loaded.rejected)
        self.counts += counts
        self.remarks += loaded.remarks
        self.columns += loaded.columns

    def _index(self, *, said: bool) -> Index:
        share = self.config.held_out
        held = partial(is_held_out, share=share if isinstance(share, float) else 0.0)
        return Index(held, named=self.config.group_by is not None, said=said)

    def count(self, part: str, name: str, records: Part, places: Places) -> None:
        """Set how many of these records came from each source of a part."""
        own = [count for count in self.counts if count.part == part]
        for count, number in zip(own, records.per_source(places, len(own)), strict=True) if own else ():
            setattr(count, name, number)


# ---- groups and sides ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """A part in two: places of the records on each side, and what differs of them from how they are stored."""

    part: Part
    train: Places
    held_out: Places
    changes: Changes

    def split(self) -> Split[Any]:
        return Split(self.part.view(self.train, self.changes), self.part.view(self.held_out, self.changes))


class _Decision:
    """Which groups are held out, and which give way to others because they share a text.

    Args:
        parts: all that are split together.
        held_file: prompts that are held out, instead of a share.
        share: that of the groups, or the name of the file.
    """

    def __init__(self, parts: Mapping[str, Part], held_file: Part | None, share: float | str | Source) -> None:
        self.share, self.names = share, Names(parts)
        loose = [part for part in parts.values() if len(part.keys.loose)]
        self.before, self.after = joined_groups(
            np.concatenate([np.empty(0, np.uint64), *(p.group[p.keys.loose] for p in loose)]),
            np.concatenate([np.empty(0, np.uint64), *(p.keys.texts for p in loose)]),
            None if self.names.all_hashes else self.names,
        )
        self.held = np.empty(0, np.uint64) if held_file is None else _held_groups(parts, held_file)

    def sides(self, part: Part) -> _Sides:
        """A part in two."""
        group, held = part.group, part.held
        changed = np.empty(0, np.int64)
        if len(self.before) and len(part.keys.loose):
            loose = np.unique(part.keys.loose).astype(np.int64)
            changed = loose[among(part.group[loose], self.before)]
            group = group.copy()
            group[changed] = renamed(part.group[changed], self.before, self.after)
        if not isinstance(self.share, float):
            held = among(group, self.held)
        elif len(changed):
            held = held.copy()
            held[changed] = among(group[changed], self._held_of(group[changed], self.share))
        new = group[changed]
        changes = Changes(regrouped=changed, groups=lambda at: self.names(int(new[at])))
        return _Sides(
            part=part, train=compact(np.flatnonzero(~held)), held_out=compact(np.flatnonzero(held)), changes=changes
        )

    def _held_of(self, groups: Digests, share: float) -> Digests:
        unique = np.unique(groups)
        return unique[[is_held_out(self.names(int(number)), share) for number in unique]]


def _held_groups(parts: Mapping[str, Part], held_file: Part) -> Digests:
    """The groups of the prompts of a file, and of every record with one of these prompts."""
    asked = np.unique(held_file.keys.asked)
    asked = asked[asked != 0]
    own = [part.group[among(part.keys.asked, asked)] for part in parts.values()]
    return np.unique(np.concatenate([asked, held_file.group, *own]))


def _split(config: DataConfig, parts: dict[str, Part], held_file: Part | None, reading: _Reading) -> dict[str, Any]:
    named = parts["prompts"]
    parts["prompts"] = reading.once(named)
    reading.count("prompts", "repeated", named, np.flatnonzero(~_in(parts["prompts"], named)))
    answered = joined(parts["demonstrations"], parts["rankings"])
    late = not len(parts["documents"]) and not any(len(p.keys.loose) for p in parts.values())
    if not len(parts["prompts"]):
        parts["prompts"], differing = prompts_of(answered, reading.known)
        reading.tell(differing)
    if not len(parts["documents"]) and not late:
        parts["documents"] = documents_of(answered)
    decision = _Decision(parts, held_file, config.held_out)
    sides = {name: decision.sides(part) for name, part in parts.items()}
    held = _held_views(sides, held_file)
    if not late:
        sides["documents"] = _without_held_prompts(sides["documents"], held, reading.notes)
    _check_left(config, sides, held_file)
    check_leaks({name: _keyed(one, held_file if name == "prompts" else None) for name, one in sides.items()})
    for name, one in sides.items():
        kept_out = np.ones(len(one.part), dtype=bool)
        kept_out[one.train] = False
        reading.count(name, "held_out", one.part, np.flatnonzero(kept_out))
    splits: dict[str, Any] = {name: one.split() for name, one in sides.items()}
    splits["prompts"] = _same_columns(sides["prompts"], held_file)
    if late:
        splits["documents"] = LateSplit(partial(_late_documents, answered, decision, held, reading.notes))
    return splits


def _in(unique: Part, named: Part) -> Any:
    """Which of the prompts named are among those that stay."""
    out = np.zeros(len(named), dtype=bool)
    places = np.arange(len(named)) if unique is named else unique.records.places  # type: ignore[attr-defined]
    out[places] = True
    return out


def _check_left(config: DataConfig, sides: Mapping[str, _Sides], held_file: Part | None) -> None:
    for part in PARTS:
        if getattr(config, part) and not len(sides[part].train):
            fix = "the prompts of the file data.held_out cover them all" if held_file else "lower data.held_out"
            count = len(held_file) if part == "prompts" and held_file else len(sides[part].held_out)
            raise UserError(f"data.{part}: all {count} records are held out, none is left to train on; {fix}")


def _keyed(one: _Sides, held_file: Part | None) -> tuple[Sequence[Any], Keys, Sequence[Any], Keys]:
    split = one.split()
    held = (split.held_out, one.part.keys.of(one.held_out))
    held = held if held_file is None else (held_file.records, held_file.keys)
    return split.train, one.part.keys.of(one.train), *held


def _same_columns(sides: _Sides, held_file: Part | None) -> Split[Any]:
    """Every prompt with the columns of all, None where it has no value: each batch then offers the same names."""
    part, held = sides.part, sides.held_out
    runs: list[tuple[Part, Places]] = [(part, sides.train)]
    runs += [(part, held) if held_file is None else (held_file, np.arange(len(held_file)))]
    shapes = []
    for own, places in runs:
        first = first_of_each(own.shape[places], len(own.shapes))
        order = sorted(range(len(first)), key=first.__getitem__)
        shapes += [own.shapes[code] for code in order if first[code] < len(places)]
    names = dict.fromkeys(name for shape in shapes for name in shape)
    alike = all(len(shape) == len(names) for shape in shapes)
    changes = sides.changes if alike else replace(sides.changes, columns=names)
    views = [own.view(places, changes) for own, places in runs]
    return Split(*views)


# ---- documents -------------------------------------------------------------------------------------------------------


def _held_views(sides: Mapping[str, _Sides], held_file: Part | None) -> list[Sequence[Any]]:
    """Held-out records in which prompts are looked for, in the order of the parts."""
    views: list[Sequence[Any]] = [one.split().held_out for name, one in sides.items() if name != "documents"]
    return views if held_file is None else [*views[:-1], held_file.records]


def _without_held_prompts(sides: _Sides, held: Sequence[Sequence[Any]], notes: Counter[str]) -> _Sides:
    """The documents with those that contain a held-out prompt on the held-out side."""
    if not len(sides.train):
        return sides
    out = moved(View(sides.part.records, sides.train), HeldPrompts(held))
    if not len(out):
        return sides
    notes[MOVED] += len(out)
    kept = np.delete(sides.train, out)
    return replace(sides, train=kept, held_out=np.concatenate([sides.held_out, sides.train[out]]))


def _late_documents(
    answered: Part, decision: _Decision, held: Sequence[Sequence[Any]], notes: Counter[str]
) -> Split[Document]:
    """Documents out of prompts with their answers: they share no group with any other record."""
    documents = documents_of(answered)
    own = _Decision({"documents": documents, "answered": answered}, None, decision.share)
    own.held = decision.held
    return _without_held_prompts(own.sides(documents), held, notes).split()
