"""Several people's rankings of the same responses to the same prompt: each for itself, sharing one weight, or as one.

They are in one group, and so in one split, whatever is done with them. Knows nothing of files or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.records import RankedAnswers, ranks_from_scores

UNJUDGED = "responses without a rank left out"


def merged(rankings: Sequence[RankedAnswers], how: str) -> list[RankedAnswers]:
    """The rankings with those of the same prompt and responses treated as one says.

    Args:
        rankings: in any order; the order of those that stay is kept.
        how: ``keep`` leaves each a ranking of weight 1; ``share`` gives each of m the weight 1/m, so that a prompt with
            more annotators counts no more; ``mean`` makes one of them, by the mean rank of each response (Borda's
            count), where equal means tie. Scores are averaged where all have them.
    """
    if how == "keep":
        return list(rankings)
    together: dict[tuple[object, ...], list[int]] = {}
    for i, r in enumerate(rankings):
        together.setdefault((r.prompt.messages, tuple(sorted(zip(r.answers, r.finished, strict=True)))), []).append(i)
    if how == "share":
        weight = {i: 1.0 / len(same) for same in together.values() for i in same}
        return [replace(r, weight=weight[i]) for i, r in enumerate(rankings)]
    return [_one([rankings[i] for i in same]) for same in together.values()]


def _one(rankings: Sequence[RankedAnswers]) -> RankedAnswers:
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
