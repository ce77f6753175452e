"""Several people's rankings of the same responses to the same prompt: each for itself, sharing one weight, or as one.

They are in one group, and so in one split, whatever is done with them. Knows nothing of files or models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.records import RankedAnswers, ranks_from_scores
from data.storage.collected import said
from data.storage.digests import digest

UNJUDGED = "responses without a rank left out"


def together(ranking: RankedAnswers) -> int:
    """A number that rankings of the same responses to the same prompt share."""
    answers = sorted(zip(ranking.answers, ranking.finished, strict=True))
    return digest(json.dumps([said(ranking.prompt.messages), answers]))


def as_one(rankings: Sequence[RankedAnswers]) -> RankedAnswers:
    """One of several rankings of the same answers: the mean rank of each, equal ones tie; scores are averaged too."""
    first = rankings[0]
    if len(rankings) == 1:
        return first
    places = [{pair: i for i, pair in enumerate(zip(r.answers, r.finished, strict=True))} for r in rankings]
    pairs = list(zip(first.answers, first.finished, strict=True))
    mean_rank = [sum(r.ranks[at[p]] for r, at in zip(rankings, places, strict=True)) / len(rankings) for p in pairs]
    scores = None
    if all(r.scores is not None for r in rankings):
        found = [[r.scores[at[p]] for r, at in zip(rankings, places, strict=True) if r.scores] for p in pairs]
        scores = tuple(sum(x) / len(x) for x in found)
    return replace(first, ranks=ranks_from_scores([-rank for rank in mean_rank]), scores=scores)


def judged(row: Mapping[str, Any], answers: list[str]) -> tuple[Mapping[str, Any], list[str], tuple[str, ...]]:
    """The row without the responses that nobody judged: those whose rank (or, without ranks, score) is null."""
    key = "ranks" if "ranks" in row else "scores"
    marks = row.get(key)
    if not isinstance(marks, list) or len(marks) != len(answers) or None not in marks:
        return row, answers, ()
    kept = [i for i, mark in enumerate(marks) if mark is not None]
    lists = {
        k: [row[k][i] for i in kept]
        for k in ("ranks", "scores")
        if isinstance(row.get(k), list) and len(row[k]) == len(answers)
    }
    return {**row, **lists}, [answers[i] for i in kept], (UNJUDGED,) * (len(answers) - len(kept))
