"""What a reward or a judge must beat: trivial answers, and a bag-of-n-grams model of the rankings.

A judge that prefers the longest or an empty answer measures something else than quality, and a reward model below a
linear model on character pairs has learnt little. This module knows nothing of tokenizers or neural models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from data.common.paired_tests import Interval
from data.records import RankedAnswers
from reward.card.accuracy import pair_accuracy
from reward.card.ngrams import ngram_scores


def empty_answer(candidates: Sequence[Sequence[str]]) -> list[str]:
    """Nothing, for every prompt. ``candidates`` holds the answers that are there for each prompt."""
    return [""] * len(candidates)


def longest_answer(candidates: Sequence[Sequence[str]]) -> list[str]:
    """The longest candidate (in characters; the first of equals) for every prompt."""
    return [max(answers, key=len) for answers in candidates]


def random_answer(candidates: Sequence[Sequence[str]], seed: int = 0) -> list[str]:
    """A candidate drawn at random for every prompt."""
    rng = np.random.default_rng(seed)
    return [answers[int(rng.integers(len(answers)))] for answers in candidates]


def length_scores(rankings: Sequence[RankedAnswers]) -> list[list[float]]:
    """Score of every answer: its number of characters."""
    return [[float(len(a)) for a in r.answers] for r in rankings]


def random_scores(rankings: Sequence[RankedAnswers], seed: int = 0) -> list[list[float]]:
    """Score of every answer: a random number."""
    rng = np.random.default_rng(seed)
    return [[float(s) for s in rng.random(len(r.answers))] for r in rankings]


def ngram_pair_accuracy(
    train: Sequence[RankedAnswers],
    held_out: Sequence[RankedAnswers],
    analyzer: Literal["char", "word"] = "char",
) -> Interval:
    """Held-out pair accuracy of ``reward.card.ngrams``.

    Raises:
        UserError: no ordered pair to learn from.
    """
    return pair_accuracy(ngram_scores(train, held_out, analyzer), [r.ranks for r in held_out])
