"""Systems compared by metrics: paired by prompt, whole prompts at once, corrected over the systems as judgements are.

A metric is no judge, so the words are "higher" and "lower". Knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.common.intervals import UNBOUNDED, checked
from data.common.paired_tests import holm, mean_comparison, mean_verdict
from evaluation.answers import SystemResponses
from evaluation.metrics.registry import BOUNDS, References
from evaluation.metrics.text import bleu_of, bleu_statistics, bleu_tokenizer

LEVEL = 0.05
BLOCK = 2_000_000  # coins that exist at one time


def compare_metrics(
    systems: Sequence[SystemResponses],
    against: str,
    references: References | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Every system against the one named ``against``, by every metric that is one number a response, and by BLEU.

    Means are compared on the rows that both have (``data.common.paired_tests.mean_comparison``); BLEU, which is of the
    whole set, by approximate randomisation (Riezler & Maxwell 2005), without an interval. Holm's correction is over the
    systems of one metric and decoding.

    Returns:
        ``{"a", "b", "metric", "decoding", "n", "difference": {"mean", "ci95"}, "p_value", "p_value_holm", "verdict",
        "verdict_text"}`` each; ``n`` counts prompts.
    """
    out: list[dict[str, Any]] = []
    for decoding in ("sampled", "greedy"):
        group = {s.name: s for s in systems if s.decoding == decoding}
        reference = group.pop(against, None)
        if reference is None:
            continue
        for metric in reference.response_scores:
            family = [s for s in group.values() if metric in s.response_scores]
            out += _by_scores(family, reference, metric, resamples, seed)
        own = "bleu" in reference.response_scores  # a function of the user's that is called so
        if references is not None and "bleu" in reference.metrics and not own:
            family = [s for s in group.values() if "bleu" in s.metrics]
            out += _by_bleu(family, reference, references, resamples, seed)
    return out


def _by_scores(
    family: Sequence[SystemResponses], b: SystemResponses, metric: str, resamples: int, seed: int
) -> list[dict[str, Any]]:
    made, of_b = [], b.response_scores[metric]
    for a in family:
        of_a = a.response_scores[metric]
        rows = [i for i, pair in enumerate(zip(of_a, of_b, strict=True)) if None not in pair]
        if rows:
            x, y = ([float(v[i]) for i in rows] for v in (of_a, of_b))  # type: ignore[arg-type]
            units = [a.units[i] for i in rows]
            bounds = BOUNDS.get(metric, UNBOUNDED)
            bounds = bounds if bounds[0] <= min(*x, *y) and max(*x, *y) <= bounds[1] else UNBOUNDED  # one's own metric
            made.append((a, mean_comparison(x, y, clusters=units, resamples=resamples, seed=seed, bounds=bounds)))
    out = []
    for (a, found), p in zip(made, holm([found.p_value for _, found in made]), strict=True):
        said = mean_verdict(found, LEVEL, p)
        gain = found.difference
        about = {"n": gain.n, "difference": {"mean": gain.estimate, "ci95": gain.ci}, "p_value": found.p_value}
        out.append(_head(a, b, metric) | about | _words(p, said.word, said.text))
    return out


def _by_bleu(
    family: Sequence[SystemResponses], b: SystemResponses, references: References, resamples: int, seed: int
) -> list[dict[str, Any]]:
    rows = [i for i, r in enumerate(references) if r]
    given = [list(references[i]) for i in rows]
    tokenizer = bleu_tokenizer([r for group in given for r in group])
    _, labels = checked(np.zeros(len(rows)), [b.units[i] for i in rows])
    counts = {s.name: bleu_statistics([s.responses[i] for i in rows], given, tokenizer) for s in (*family, b)}
    found = [_randomised(counts[a.name], counts[b.name], labels, resamples, seed) for a in family]
    out, n = [], int(labels.max()) + 1
    for a, (gain, p_value), p in zip(family, found, holm([p for _, p in found]), strict=True):
        word = "not shown" if p >= LEVEL else "higher" if gain > 0 else "lower"
        text = f"not shown with {n} prompts" if p >= LEVEL else f"{word} by {abs(gain):.3g} over {n} prompts"
        about = {"n": n, "difference": {"mean": gain, "ci95": None}, "p_value": p_value}
        out.append(_head(a, b, "bleu") | about | _words(p, word, text))
    return out


def _randomised(
    a: NDArray[np.float64], b: NDArray[np.float64], labels: NDArray[np.int64], resamples: int, seed: int
) -> tuple[float, float]:
    """Difference of corpus BLEU, and how often exchanging whole prompts at random makes one as large.

    ``a`` and ``b`` hold each response's counts, (n, 10): corpus BLEU is a function of their sums.
    """
    clusters = int(labels.max()) + 1
    half = np.zeros((clusters, a.shape[1]))
    np.add.at(half, labels, (a - b) / 2)
    middle, rng = (a + b).sum(0) / 2, np.random.default_rng(seed)
    gain = bleu_of(a.sum(0)) - bleu_of(b.sum(0))
    beyond, batch = 0, max(1, BLOCK // clusters)
    for start in range(0, resamples, batch):
        moved = (rng.integers(0, 2, size=(min(batch, resamples - start), clusters)) * 2 - 1) @ half
        beyond += sum(abs(bleu_of(middle + m) - bleu_of(middle - m)) >= abs(gain) - 1e-9 for m in moved)
    return gain, (beyond + 1) / (resamples + 1)


def _head(a: SystemResponses, b: SystemResponses, metric: str) -> dict[str, Any]:
    return {"a": a.name, "b": b.name, "metric": metric, "decoding": a.decoding}


def _words(p_holm: float, word: str, text: str) -> dict[str, Any]:
    return {"p_value_holm": p_holm, "verdict": word, "verdict_text": text}
