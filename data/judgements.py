"""Responses judged one by one, put together under their prompt: thumbs and scores to rankings and best responses.

A liked and a not liked response to one prompt are a ranking, and so are responses of unlike scores; what is left alone
stays as it is, and is refused or taken as ``derive`` says. Knows nothing of files or formats' columns.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from data.formats import Row
from data.records import ranks_from_scores
from data.storage.codec import Codec, Encoded, tagged, untagged
from data.storage.collected import said
from data.storage.digests import as_digests, digest, together
from data.storage.store import Store

JOINED = "responses judged one by one, put together under their prompt"
LOWER = "responses of lower scores than another to the same prompt, left out"
CONTRADICTED = "responses that were judged twice, unlike: left out"


def gathered(parsed: Iterable[Any], kind: str) -> Iterator[Any]:
    """Parsed rows as they come, those that were judged alone behind them, put together as ``kind`` needs it.

    Args:
        parsed: dataclasses with a ``row`` (or None).
        kind: ``rankings``, ``demonstrations`` or another, for which nothing is put together.
    """
    waiting = waiting_rows()
    keys = array("Q")
    for one in parsed:
        row = one.row
        if row is not None and is_gathered(row, kind):
            waiting.append(one)
            keys.append(digest(f"{said(row.messages)} {row.judged}"))
        else:
            yield one
    for places in together(as_digests(keys)):
        same = [waiting[int(place)] for place in places]
        yield from _ranked(same) if kind == "rankings" else _best(same)


@dataclass(slots=True)
class JudgedBy:
    """By what rows of a file are judged: labels, and columns next to several responses."""

    labels: bool = False
    columns: set[str] = field(default_factory=set)

    def add(self, row: Row, columns: Iterable[str]) -> None:
        """A row that was read, and all its columns: where one of them ranks responses, it has a value there."""
        self.labels = self.labels or row.judged == "label"
        if len(row.answers) > 1:
            self.columns.update(columns)

    def update(self, other: JudgedBy) -> None:
        self.labels = self.labels or other.labels
        self.columns |= other.columns

    def has(self, column: str) -> bool:
        """Whether a row is judged by this column, or where it is empty by a label."""
        return column in self.columns if column else self.labels


def waiting_rows() -> Store[Any]:
    """Dataclasses with a row, on disk from some thousands on."""
    return Store(object, Codec(_encode, _decode))


def is_gathered(row: Row, kind: str) -> bool:
    """Whether a row waits for others to the same prompt."""
    if not row.judged or len(row.answers) != 1:
        return False
    return kind == "rankings" or (kind == "demonstrations" and row.judged == "score")


_CLASSES: dict[str, type[Any]] = {}
"""Classes of what waits, by name: of the rows, their turns, and whatever holds a row."""


def _encode(one: Any) -> Encoded:
    """A dataclass of plain values with a row.

    Raises:
        TypeError: it holds something else, and stays in memory.
    """
    return Encoded(json.dumps(_plain(one)).encode(), b"", b"")


def _plain(value: Any) -> Any:
    if not is_dataclass(value):
        return tagged(dict(value)) if isinstance(value, Mapping) else tagged(value)
    _CLASSES[type(value).__name__] = type(value)
    found = {f.name: getattr(value, f.name) for f in fields(value)}
    if "messages" in found:
        found["messages"] = [_plain(m) for m in found["messages"]]
        return [type(value).__name__, {k: v if k == "messages" else _plain(v) for k, v in found.items()}]
    return [type(value).__name__, {k: _plain(v) for k, v in found.items()}]


def _decode(stored: Encoded) -> Any:
    name, values = json.loads(stored.content)
    row_name, row = values.pop("row")
    turns = tuple(_CLASSES[kind](**own) for kind, own in row.pop("messages"))
    made = _CLASSES[row_name](messages=turns, **{k: untagged(v) for k, v in row.items()})
    return _CLASSES[name](row=made, **{k: untagged(v) for k, v in values.items()})


def _ranked(same: Sequence[Any]) -> Iterator[Any]:
    """One ranking of all responses; one by one where they are no two of unlike judgement."""
    marks: dict[str, set[float]] = {}
    for one in same:
        marks.setdefault(one.row.answers[0], set()).add(one.row.scores[0])
    kept = {answer: next(iter(found)) for answer, found in marks.items() if len(found) == 1}
    if len(set(kept.values())) < 2:
        yield from same
        return
    order = sorted(kept, key=lambda answer: -kept[answer])
    scores = tuple(kept[answer] for answer in order)
    ends = {one.row.answers[0]: one.row.finished for one in same}
    notes = (JOINED,) * len(kept) + (CONTRADICTED,) * (len(marks) - len(kept))
    first: Row = same[0].row
    row = replace(
        first,
        answers=tuple(order),
        ranks=ranks_from_scores(scores),
        scores=None if first.judged == "label" else scores,
        ended=tuple(ends[answer] for answer in order),
        judged="",
        notes=(*(n for one in same for n in one.row.notes), *notes),
    )
    yield replace(same[0], row=row)


def _best(same: Sequence[Any]) -> Iterator[Any]:
    """The response of the highest score, the first of those that share it."""
    best = max(same, key=lambda one: one.row.scores[0])
    yield replace(best, row=replace(best.row, notes=(*best.row.notes, *(LOWER,) * (len(same) - 1))))
