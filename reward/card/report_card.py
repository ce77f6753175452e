"""What a reward model is worth before PPO spends a step on it: numbers from scores, ranks and lengths.

Pure numpy and scipy: it knows nothing of models, tokens or files. Every interval takes a prompt as the unit, since
pairs of one ranking (and rankings of one prompt) are not independent.

Sources: calibration and temperature scaling as in Guo et al. 2017 (arXiv 1706.04599), over the probability
``sigmoid(s_i - s_j)`` that Bradley and Terry's model gives to a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from data.common.paired_tests import proportion_interval

Floats = NDArray[np.float64]
BINS = 10  # of the reliability diagram, equally wide, from 0.5 to 1
ABOUT_EQUAL = 0.1  # lengths that differ by less than this share of the longer one
SMALLEST_SLICE = 10  # pairs; below that a slice says nothing
MAX_SLICES = 20  # categories or sources, the largest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One held-out ranking of K responses with the reward model's scores.

    ``ranks``: 0 is best, equal ranks tie. ``lengths``: tokens of each response. ``labels``: the annotator's own scores
    where there are any. ``prompt`` is what rankings of one prompt have in common.
    """

    prompt: str
    ranks: Sequence[int]
    scores: Sequence[float]
    lengths: Sequence[int]
    labels: Sequence[float] | None = None
    category: str = ""
    source: str = ""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of every strictly ordered pair."""
        k = range(len(self.ranks))
        return [(i, j) for i in k for j in k if self.ranks[i] < self.ranks[j]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """All ordered pairs of all rankings, one entry each; differences are the better minus the worse response's."""

    cluster: NDArray[np.int64]  # number of the prompt
    margin: Floats  # of the reward model's scores
    rank_gap: NDArray[np.int64]  # difference of their ranks
    label_gap: Floats  # of the annotator's scores; not a number where there are none
    longer: Floats  # tokens by which the better response is longer
    longest: Floats  # tokens of the longer one
    category: NDArray[np.str_]
    source: NDArray[np.str_]


def pairs_of(rankings: Sequence[Judged]) -> Pairs:
    """The table of pairs."""
    numbers: dict[str, int] = {}
    rows: list[tuple[Any, ...]] = []
    for r in rankings:
        cluster = numbers.setdefault(r.prompt, len(numbers))
        for i, j in r.pairs:
            gap = float("nan") if r.labels is None else r.labels[i] - r.labels[j]
            rank_difference = r.ranks[j] - r.ranks[i]
            longer, longest = r.lengths[i] - r.lengths[j], max(r.lengths[i], r.lengths[j])
            rows.append(
                (cluster, r.scores[i] - r.scores[j], rank_difference, gap, longer, longest, r.category, r.source)
            )
    columns: list[Any] = [list(c) for c in zip(*rows, strict=True)] if rows else [[]] * 8
    kinds = (np.int64, np.float64, np.int64, np.float64, np.float64, np.float64, np.str_, np.str_)
    return Pairs(**{n: np.array(c, dtype=k) for n, c, k in zip(Pairs.__slots__, columns, kinds, strict=True)})


def right(margin: Floats) -> Floats:
    """1 for a pair in the right order, 0 for the wrong one, one half for equal scores."""
    return 0.5 + 0.5 * np.sign(margin)


def share(values: Floats, cluster: NDArray[np.int64]) -> dict[str, Any]:
    """``{"share", "ci95", "n", "prompts"}`` of outcomes in [0, 1]; no interval below 20 prompts."""
    if not len(values):
        return {"share": None, "ci95": None, "n": 0, "prompts": 0}
    found = proportion_interval(values, cluster)
    return {"share": found.estimate, "ci95": found.ci, "n": len(values), "prompts": found.n}


def make_card(
    rankings: Sequence[Judged],
    *,
    baselines: Mapping[str, Sequence[Sequence[float]]],
    probes: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[str]]],
    samples: Sequence[float] = (),
    sampled_from: str = "",
) -> dict[str, Any]:
    """The report card as plain JSON values.

    Args:
        rankings: held-out rankings with scores.
        baselines: other scores of the same responses by name, one list a ranking.
        probes: by name ``(scores of whole responses, scores of damaged ones, their prompts)``.
        samples: scores of what PPO will see: samples of the SFT model.
        sampled_from: what they are, in words.
    """
    pairs = pairs_of(rankings)
    hits = right(pairs.margin)
    card = {
        "rankings": len(rankings),
        "accuracy": share(hits, pairs.cluster),
        "ceiling": ceiling(rankings, pairs, hits),
        "slices": slices(pairs, hits),
        "top1": top1(rankings),
        "calibration": calibration(pairs),
        "length": length(rankings, pairs),
        "baselines": {n: share(right(_margins(rankings, s)), pairs.cluster) for n, s in baselines.items()},
        "probes": {name: _probe(*given) for name, given in probes.items()},
        "samples": sample_moments(samples, sampled_from),
    }
    return card | {"warnings": warnings(card)}


def _margins(rankings: Sequence[Judged], scores: Sequence[Sequence[float]]) -> Floats:
    """Score differences by another scorer, in the order of ``pairs_of``."""
    both = zip(rankings, scores, strict=True)
    return np.array([s[i] - s[j] for r, s in both for i, j in r.pairs], dtype=np.float64)


def _probe(whole: Sequence[float], damaged: Sequence[float], prompts: Sequence[str]) -> dict[str, Any]:
    numbers: dict[str, int] = {}
    cluster = np.array([numbers.setdefault(p, len(numbers)) for p in prompts], dtype=np.int64)
    return share(right(np.subtract(whole, damaged, dtype=np.float64)), cluster)


def ceiling(rankings: Sequence[Judged], pairs: Pairs, hits: Floats) -> dict[str, Any] | None:
    """How often the annotator's scores agree with the labels made from them, where noise lies between the two; and the
    accuracy as a share of that, over the pairs whose scores differ. No model can be expected above it."""
    known = np.nan_to_num(pairs.label_gap) != 0
    if not known.any() or (pairs.label_gap[known] > 0).all():
        return None
    top = float(np.mean(pairs.label_gap[known] > 0))
    return {"share": top, "n": int(known.sum()), "reached": float(hits[known].mean()) / top}


def slices(pairs: Pairs, hits: Floats) -> dict[str, dict[str, Any]]:
    """Accuracy over parts of the pairs: by rank gap, score gap, length difference, category and source."""
    relative = pairs.longer / np.maximum(pairs.longest, 1)
    by_length = np.select(
        [relative > ABOUT_EQUAL, relative < -ABOUT_EQUAL], ["better is longer", "better is shorter"], "about equal"
    )
    gap = np.where(pairs.rank_gap >= 4, "4 or more", pairs.rank_gap.astype(np.str_))
    out = {"rank gap": gap, "length": by_length, "category": pairs.category, "source": pairs.source}
    labelled = np.isfinite(pairs.label_gap)
    if labelled.any() and len(np.unique(pairs.label_gap[labelled])) >= 3:
        edges = np.quantile(np.abs(pairs.label_gap[labelled]), [1 / 3, 2 / 3])
        names = [f"under {edges[0]:.3g}", f"{edges[0]:.3g} to {edges[1]:.3g}", f"over {edges[1]:.3g}"]
        third = np.array(names)[np.searchsorted(edges, np.abs(np.nan_to_num(pairs.label_gap)), side="left")]
        out["score gap"] = np.where(labelled, third, "")
    return {name: found for name, values in out.items() if (found := _slice(values, pairs, hits))}


def _slice(values: NDArray[np.str_], pairs: Pairs, hits: Floats) -> dict[str, Any]:
    names, counts = np.unique(values, return_counts=True)
    kept = [(str(n), int(c)) for n, c in zip(names, counts, strict=True) if n and c >= SMALLEST_SLICE]
    if len(kept) < 2:  # one slice is the whole
        return {}
    kept = sorted(sorted(kept, key=lambda x: -x[1])[:MAX_SLICES])
    return {n: share(hits[values == n], pairs.cluster[values == n]) for n, _ in kept}


def top1(rankings: Sequence[Judged]) -> dict[str, Any]:
    """How often the highest score is a best response's (ties share), and chance."""
    numbers: dict[str, int] = {}
    values, chance, cluster = [], [], []
    for r in rankings:
        best, highest = min(r.ranks), max(r.scores)
        first = [rank == best for rank, s in zip(r.ranks, r.scores, strict=True) if s == highest]
        values.append(sum(first) / len(first))
        chance.append(sum(rank == best for rank in r.ranks) / len(r.ranks))
        cluster.append(numbers.setdefault(r.prompt, len(numbers)))
    found = share(np.array(values, dtype=np.float64), np.array(cluster, dtype=np.int64))
    return found | {"chance": float(np.mean(chance)) if chance else None}


# -- calibration -------------------------------------------------------------------------------------------------


def temperature(margin: Floats) -> float:
    """The T that maximises the likelihood of the pairs under ``sigmoid(margin / T)``, within [0.01, 100]."""

    def nll(log_t: float) -> float:
        return float(np.logaddexp(0.0, -margin / np.exp(log_t)).mean())

    return float(np.exp(minimize_scalar(nll, bounds=(np.log(0.01), np.log(100.0)), method="bounded").x))


def reliability(margin: Floats) -> dict[str, Any]:
    """Expected calibration error, negative log-likelihood and the bins of the reliability diagram.

    The confidence of a pair is the probability given to the response that scores higher, in [0.5, 1].
    """
    confidence, hits = expit(np.abs(margin)), right(margin)
    number = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for b in range(BINS):
        inside = number == b
        if inside.any():
            said, was = float(confidence[inside].mean()), float(hits[inside].mean())
            error += abs(said - was) * float(inside.mean())
            low = 0.5 + b / (2 * BINS)
            bins.append(
                {
                    "from": round(low, 3),
                    "to": round(low + 0.5 / BINS, 3),
                    "n": int(inside.sum()),
                    "confidence": said,
                    "right": was,
                }
            )
    return {"error": error, "nll": float(np.logaddexp(0.0, -margin).mean()), "bins": bins}


def calibration(pairs: Pairs) -> dict[str, Any] | None:
    """Before and after temperature scaling; "after" uses for each half of the prompts the other half's temperature."""
    half = pairs.cluster % 2 == 0
    if not half.any() or half.all():
        return None
    scaled = np.empty_like(pairs.margin)
    for part in (half, ~half):
        scaled[part] = pairs.margin[part] / temperature(pairs.margin[~part])
    return {
        "temperature": temperature(pairs.margin),
        "before": reliability(pairs.margin),
        "after": reliability(scaled),
    }


# -- length and std ---------------------------------------------------------------------------------------------


def length(rankings: Sequence[Judged], pairs: Pairs) -> dict[str, Any]:
    """Does the model reward length? Slope and correlation within rankings, and how often the longer response wins.

    ``score_per_token`` is the least-squares slope of score on tokens after each ranking's means are taken out.
    """

    def centred(values: Sequence[float]) -> Floats:
        x = np.asarray(values, dtype=np.float64)
        return x - x.mean()

    tokens = np.concatenate([centred(r.lengths) for r in rankings]) if rankings else np.zeros(0)
    scores = np.concatenate([centred(r.scores) for r in rankings]) if rankings else np.zeros(0)
    xx, yy, xy = float(tokens @ tokens), float(scores @ scores), float(tokens @ scores)
    differ = pairs.longer != 0
    by_model = right(pairs.margin * np.sign(pairs.longer))[differ]
    return {
        "score_per_token": xy / xx if xx else None,
        "correlation": xy / (xx * yy) ** 0.5 if xx and yy else None,
        "longer_wins": share(by_model, pairs.cluster[differ]),
        "longer_is_better": share(right(pairs.longer)[differ], pairs.cluster[differ]),
    }


def sample_moments(samples: Sequence[float], source: str) -> dict[str, Any] | None:
    """Mean, standard deviation and quantiles of scores; None for fewer than two."""
    if len(samples) < 2:
        return None
    x = np.asarray(samples, dtype=np.float64)
    at = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = {f"{q:g}": float(v) for q, v in zip(at, np.quantile(x, at), strict=True)}
    return {"of": source, "n": len(x), "mean": float(x.mean()), "std": float(x.std(ddof=1)), "quantiles": quantiles}


# -- words -------------------------------------------------------------------------------------------------------

Sign = tuple[Callable[[Mapping[str, Any]], bool], str]


def _below(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> bool:
    return bool(a and b and a["share"] is not None and b["share"] is not None and a["share"] <= b["share"])


SIGNS: tuple[Sign, ...] = (
    (
        lambda c: bool(c["accuracy"]["ci95"]) and c["accuracy"]["ci95"][0] <= 0.5,
        "its accuracy is not shown to be above chance",
    ),
    (
        lambda c: _below(c["accuracy"], c["baselines"].get("longest answer")),
        "taking the longest response is as good as this reward model",
    ),
    (
        lambda c: _below(c["accuracy"], c["baselines"].get("n-grams")),
        "a linear model on n-grams is as good: the reward model may have learnt little but words",
    ),
    (
        lambda c: bool(c["calibration"]) and c["calibration"]["before"]["error"] > 0.1,
        "its confidence is off by more than 10 points: see the temperature",
    ),
)


def warnings(card: Mapping[str, Any]) -> list[str]:
    """Plain sentences about what a reader should not overlook."""
    out = [text for shows, text in SIGNS if shows(card)]
    wins, data = card["length"]["longer_wins"], card["length"]["longer_is_better"]
    if wins["ci95"] and data["ci95"] and (wins["ci95"][0] > data["ci95"][1]):
        out.append(
            f"it prefers the longer response in {wins['share']:.0%} of the pairs, the labels in {data['share']:.0%}"
        )
    for name, found in card["probes"].items():
        if found["ci95"] and found["ci95"][1] < 0.5:
            out.append(f"it prefers damaged responses ({name}): right in {found['share']:.0%} only")
    return out
