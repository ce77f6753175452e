"""RewardBench 2's scores of a reward model (Malik et al. 2025, arXiv 2506.01937), of rows in its shape.

Each row has correct responses and wrong ones. In all subsets but Ties the best of four counts; in Ties, each row of
many equally correct responses (``tied:N``) has one of a single correct response next to it (``ref:N``), and what counts
is that correct ones lie above wrong ones by more than they differ among themselves. Rules are those of the authors' own
program (github.com/allenai/reward-bench).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data.records import RankedAnswers

if TYPE_CHECKING:
    from reward.card.scored_once import ScoredOnce

NAMED_BY = ("id", "subset", "num_correct")
"""Columns by which the shape is known, beside lists of chosen and rejected."""
TIES = "ties"
WEIGHTS = {"tied": 0.3, "ref": 0.3, "preferred": 0.2, "preferred_hard": 0.2, "margin": 0.01}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """One row: which of its responses are correct, and their scores."""

    id: str
    subset: str
    correct: Sequence[bool]
    scores: Sequence[float]

    @property
    def right(self) -> float:
        """1 if a correct response has the highest score alone, a share of that if others have it too (best of N)."""
        highest = max(self.scores)
        first = [is_correct for is_correct, score in zip(self.correct, self.scores, strict=True) if score == highest]
        return sum(first) / len(first)

    @property
    def difference(self) -> float:
        """Between the highest and the lowest score of correct responses."""
        own = [score for is_correct, score in zip(self.correct, self.scores, strict=True) if is_correct]
        return max(own) - min(own)

    @property
    def gap(self) -> float:
        """From the highest score of a wrong response up to the lowest of a correct one."""
        both = list(zip(self.correct, self.scores, strict=True))
        return min(score for is_correct, score in both if is_correct) - max(
            s for is_correct, s in both if not is_correct
        )


def in_its_shape(rankings: Sequence[RankedAnswers]) -> bool:
    """Whether every ranking is a row of the benchmark."""
    return bool(rankings) and all({*NAMED_BY} <= r.prompt.columns.keys() for r in rankings)


def scored_rows(scored: ScoredOnce, rankings: Sequence[RankedAnswers]) -> list[ScoredRow]:
    """Rows with the model's scores; rows in which all responses are correct or all are wrong say nothing."""
    kept = [r for r in rankings if len({rank == 0 for rank in r.ranks}) == 2]
    flat = [(r, text, done) for r in kept for text, done in zip(r.answers, r.finished, strict=True)]
    asked, texts, ended = ([r.prompt.messages for r, _, _ in flat], [t for _, t, _ in flat], [d for _, _, d in flat])
    numbers = iter(scored.score_ids(*scored.model.encoded(asked, texts, ended), "RewardBench 2").tolist())
    return [
        ScoredRow(
            id=str(r.prompt.columns["id"]),
            subset=str(r.prompt.columns["subset"]),
            correct=[rank == 0 for rank in r.ranks],
            scores=[next(numbers) for _ in r.answers],
        )
        for r in kept
    ]


def rewardbench2(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """``{"score", "subsets": {name: {"score", "n"}}, "ties"}``: the mean of the subsets' scores, and each of them.

    ``ties`` holds the parts of that subset's score, or None without it. A subset of Ties in which no ``tied`` row has
    its ``ref`` row has no score, and is left out of the mean.
    """
    subsets: dict[str, dict[str, Any]] = {}
    ties = None
    for name in sorted({row.subset for row in rows}):
        own = [row for row in rows if row.subset == name]
        if name.lower() == TIES:
            ties = ties_score(own)
            subsets[name] = {"score": ties["score"], "n": len(own)}
        else:
            subsets[name] = {"score": math.fsum(row.right for row in own) / len(own), "n": len(own)}
    known = [found["score"] for found in subsets.values() if found["score"] is not None]
    return {"score": math.fsum(known) / len(known) if known else None, "subsets": subsets, "ties": ties}


def ties_score(rows: Sequence[ScoredRow]) -> dict[str, float | None]:
    """The score of the subset Ties and its parts, as shares of rows or of pairs of a ``tied`` and its ``ref`` row.

    Returns:
        ``tied`` and ``ref``: every correct response above every wrong one; ``preferred``: by more than the correct ones
        differ; ``preferred_hard``: in the ``ref`` row as well; ``margin``: tanh of how much more, the mean; ``score``:
        their sum by ``WEIGHTS``.
    """
    by_kind: dict[str, dict[str, ScoredRow]] = {"tied": {}, "ref": {}}
    for row in rows:
        kind, _, number = row.id.partition(":")
        by_kind["ref" if kind == "ref" else "tied"][number or kind] = row
    tied, ref = by_kind["tied"], by_kind["ref"]
    both = sorted(tied.keys() & ref.keys())
    parts: dict[str, float | None] = dict.fromkeys(WEIGHTS)
    for name, own in by_kind.items():
        parts[name] = sum(row.gap > 0 for row in own.values()) / len(own) if own else 0.0
    if not both:
        return parts | {"score": None}
    difference = np.array([tied[i].difference for i in both])
    gap = np.array([tied[i].gap for i in both])
    smaller = np.minimum(gap, [ref[i].gap for i in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(smaller / difference - 1), nan=0.0)
    parts |= {
        "preferred": float(np.mean(gap > difference)),
        "preferred_hard": float(np.mean(smaller > difference)),
        "margin": float(np.mean(margin)),
    }
    return parts | {"score": math.fsum(weight * (parts[name] or 0.0) for name, weight in WEIGHTS.items())}


def in_words(found: Mapping[str, Any]) -> str:
    """The score and those of the subsets, in a line; '' without a score."""
    if found.get("score") is None:
        return ""
    known = {name: subset["score"] for name, subset in found["subsets"].items() if subset["score"] is not None}
    each = ", ".join(f"{name} {100 * score:.1f} %" for name, score in known.items())
    return f"{100 * found['score']:.1f} % ({each})"
