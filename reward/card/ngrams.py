"""A linear model of the words: what a reward model must beat, or it has learnt little else.

It knows nothing of tokenizers or neural models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from data.common.errors import UserError
from data.records import RankedAnswers

HASHED = 2**20  # features of the hashed n-grams; collisions are rare at the size of preference data
PENALTY = 0.1  # inverse strength of the L2 penalty on n-gram weights


def ngram_scores(
    train: Sequence[RankedAnswers],
    held_out: Sequence[RankedAnswers],
    analyzer: Literal["char", "word"] = "char",
) -> list[list[float]]:
    """Scores of held-out responses by a linear Bradley-Terry model on hashed n-grams (n = 1, 2), one list a ranking.

    An n-gram is there or not, however often. ``analyzer`` "char" suits every script, "word" drops punctuation; both
    keep letter case. There is no intercept: it cancels in a pair. Every ranking weighs alike, as in the reward model.

    Raises:
        UserError: no ordered pair to learn from.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    hashing = HashingVectorizer(
        analyzer=analyzer,
        ngram_range=(1, 2),
        n_features=HASHED,
        alternate_sign=False,
        norm=None,
        lowercase=False,
        binary=True,
    )
    better, worse, weights = [], [], []
    offset = 0
    for ranking in train:
        pairs = ranking.pairs
        better += [offset + i for i, _ in pairs]
        worse += [offset + j for _, j in pairs]
        weights += [1 / max(1, len(pairs))] * len(pairs)
        offset += len(ranking.answers)
    if not weights:
        raise UserError("rankings: no two responses of the training rankings differ in rank, so nothing can be learnt")
    if len(weights) == 1:  # the solver needs both classes
        better, worse, weights = better * 2, worse * 2, weights * 2
    rows = hashing.transform(a for r in train for a in r.answers)
    seen = np.unique(rows.indices)  # the others have no weight, and the solver would carry them along
    rows = rows[:, seen]
    sign = np.where(np.arange(len(weights)) % 2, -1.0, 1.0)  # both classes; the mirror image is the same example
    x = sparse.diags(sign) @ (rows[better] - rows[worse])
    model = LogisticRegression(C=PENALTY, fit_intercept=False, max_iter=1000)
    model.fit(x, sign > 0, sample_weight=np.array(weights) * len(weights) / sum(weights))
    scores = iter(hashing.transform(a for r in held_out for a in r.answers)[:, seen] @ model.coef_[0])
    return [[float(next(scores)) for _ in r.answers] for r in held_out]
