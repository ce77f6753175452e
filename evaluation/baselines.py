"""What a reward or a judge must beat: trivial answers, and a bag-of-n-grams model of the rankings.

A judge that prefers the longest or an empty answer measures something else than quality, and a reward model below a
linear model on character pairs has learnt little. This module knows nothing of tokenizers or neural models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from data.errors import UserError
from data.records import RankedAnswers
from data.statistics import Interval
from reward.accuracy import pair_accuracy

HASHED = 2**20  # features of the hashed n-grams; collisions are rare at the size of preference data
PENALTY = 0.1  # inverse strength of the L2 penalty on n-gram weights


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
    """Held-out pair accuracy of a linear Bradley-Terry model on hashed n-grams (n = 1, 2) of the answers.

    An n-gram is there or not, however often. ``analyzer`` "char" suits every script, "word" drops punctuation; both
    keep letter case. There is no intercept: it cancels in a pair. Every ranking weighs alike, as in the reward model.

    Raises:
        UserError: no ordered pair to learn from.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    hashing = HashingVectorizer(
        analyzer=analyzer, ngram_range=(1, 2), n_features=HASHED, alternate_sign=False, norm=None, lowercase=False,
        binary=True,
    )  # fmt: skip
    better, worse, weights = [], [], []
    offset = 0
    for ranking in train:
        for i, j in ranking.pairs:
            better.append(offset + i)
            worse.append(offset + j)
            weights.append(1 / len(ranking.pairs))
        offset += len(ranking.answers)
    if not weights:
        raise UserError("rankings: no two answers of the training rankings differ in rank, so nothing can be learnt")
    rows = hashing.transform(a for r in train for a in r.answers)
    sign = np.where(np.arange(len(weights)) % 2, -1.0, 1.0)  # both classes; the mirror image is the same example
    x = sparse.diags(sign) @ (rows[better] - rows[worse])
    model = LogisticRegression(C=PENALTY, fit_intercept=False, max_iter=1000)
    model.fit(x, sign > 0, sample_weight=np.array(weights) * len(weights) / sum(weights))
    scores = iter(hashing.transform(a for r in held_out for a in r.answers) @ model.coef_[0])
    found = [[float(next(scores)) for _ in r.answers] for r in held_out]
    return pair_accuracy(found, [r.ranks for r in held_out])
