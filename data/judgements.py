"""Responses judged one by one, put together under their prompt: thumbs and scores to rankings and best responses.

A liked and a not liked response to one prompt are a ranking, and so are responses of unlike scores; what is left alone
stays as it is, and is refused or taken as ``derive`` says. Knows nothing of files or formats' columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from data.formats import Row
from data.records import Message, ranks_from_scores

JOINED = "responses judged one by one, put together under their prompt"
LOWER = "responses of lower scores than another to the same prompt, left out"
CONTRADICTED = "responses that were judged twice, unlike: left out"


def gathered(parsed: Iterable[Any], kind: str) -> Iterator[Any]:
    """Parsed rows as they come, those that were judged alone behind them, put together as ``kind`` needs it.

    Args:
        parsed: dataclasses with a ``row`` (or None).
        kind: ``rankings``, ``demonstrations`` or another, for which nothing is put together.
    """
    waiting: dict[tuple[tuple[Message, ...], str], list[Any]] = {}
    for one in parsed:
        row = one.row
        alone = row is not None and row.judged and len(row.answers) == 1
        if alone and (kind == "rankings" or (kind == "demonstrations" and row.judged == "score")):
            waiting.setdefault((row.messages, row.judged), []).append(one)
        else:
            yield one
    for same in waiting.values():
        yield from _ranked(same) if kind == "rankings" else _best(same)


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
