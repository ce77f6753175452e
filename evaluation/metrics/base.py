"""Metrics of generated answers as ``evaluate`` modules that load without a network.

They are instantiated directly (``Distinct()``), never by ``evaluate.load``, which needs a network or runs copied
scripts. Each keeps its rows in memory, in a folder of its own that goes with it. This module knows nothing of models:
answers arrive as token ids or text, scores as numbers.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import datasets
import evaluate

from data.common.paired_tests import mean_interval, paired_comparison

_TOKENS = {"predictions": datasets.Sequence(datasets.Value("int64"))}
_TEXT = {"predictions": datasets.Value("string")}
_NUMBER = {"predictions": datasets.Value("float64")}


class LocalMetric(evaluate.Metric):
    """An ``evaluate.Metric`` without files: subclasses give ``about``, ``inputs``, ``columns`` and ``_compute``."""

    about: ClassVar[str]
    inputs: ClassVar[str]
    columns: ClassVar[dict[str, dict[str, Any]]]  # per config_name; the first is the default

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trivet-metric-")  # evaluate makes folders even in memory
        name = config_name or next(iter(self.columns))
        if name not in self.columns:
            raise ValueError(f"{type(self).__name__} has no configuration '{name}': choose from {sorted(self.columns)}")
        super().__init__(config_name=name, keep_in_memory=True, cache_dir=self._folder.name, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.about,
            citation="",
            inputs_description=self.inputs,
            features=datasets.Features(self.columns[self.config_name]),
        )

    def compute(self, **kwargs: Any) -> dict[str, Any]:
        """As ``evaluate.Metric.compute``.

        Raises:
            ValueError: nothing to measure (instead of a mean of nothing).
        """
        if "predictions" in kwargs and kwargs["predictions"] is not None and not len(kwargs["predictions"]):
            raise ValueError(f"{type(self).__name__}: nothing to measure, predictions are empty")
        result = super().compute(**kwargs)
        assert result is not None  # only other processes than the first get None, and these metrics know one process
        return result


class Distinct(LocalMetric):
    """Distinct-n (Li et al. 2016, "A Diversity-Promoting Objective Function"): unique n-grams over all n-grams."""

    about = "Share of n-grams that are unique: pooled over all answers, and as a mean over answers."
    inputs = "predictions: token ids of each answer; with config_name='words', texts, split at white space."
    columns: ClassVar = {"tokens": _TOKENS, "words": _TEXT}

    def _compute(self, predictions: Sequence[Any], orders: Sequence[int] = (1, 2)) -> dict[str, float]:
        """Return ``distinct_n`` (pooled) and ``distinct_n_mean`` (per answer, then averaged) for each n of ``orders``.

        The pooled value falls with the number of answers: compare it only between equally many. Answers shorter than n
        tokens have no n-grams and stay out of the mean; without any n-gram the value is 0.
        """
        rows = [p.split() if isinstance(p, str) else list(p) for p in predictions]
        result = {}
        for n in orders:
            grams = [[tuple(r[i : i + n]) for i in range(len(r) - n + 1)] for r in rows]
            pooled = [g for row in grams for g in row]
            shares = [len(set(g)) / len(g) for g in grams if g]
            result[f"distinct_{n}"] = len(set(pooled)) / len(pooled) if pooled else 0.0
            result[f"distinct_{n}_mean"] = math.fsum(shares) / len(shares) if shares else 0.0
        return result


class Length(LocalMetric):
    """Answer length in tokens, or in white-space words."""

    about = "Mean, median, shortest and longest answer."
    inputs = "predictions: token ids of each answer; with config_name='words', texts, split at white space."
    columns: ClassVar = {"tokens": _TOKENS, "words": _TEXT}

    def _compute(self, predictions: Sequence[Any]) -> dict[str, Any]:
        """Return ``length`` (mean), ``ci95``, ``median``, ``shortest`` and ``longest``; empty answers count as 0."""
        lengths = sorted(len(p.split()) if isinstance(p, str) else len(p) for p in predictions)
        found, k = mean_interval(lengths, bounds=(0.0, math.inf)), len(lengths)
        median = (lengths[(k - 1) // 2] + lengths[k // 2]) / 2
        return {
            "length": found.estimate,
            "ci95": found.ci,
            "median": median,
            "shortest": lengths[0],
            "longest": lengths[-1],
        }


class Truncation(LocalMetric):
    """Share of answers cut off at the length limit."""

    about = "Share of answers that did not end by themselves."
    inputs = "predictions: for each answer, whether it finished with a stop token."
    columns: ClassVar = {"default": {"predictions": datasets.Value("bool")}}

    def _compute(self, predictions: Sequence[bool]) -> dict[str, float]:
        """Return ``truncated``, the share of False."""
        return {"truncated": sum(not finished for finished in predictions) / len(predictions)}


class MeanScore(LocalMetric):
    """Mean score with a bootstrap interval."""

    about = "Mean of a score per answer (reward, gold preference, a judge's mark), with a 95 % interval."
    inputs = "predictions: one score an answer."
    columns: ClassVar = {"default": _NUMBER}

    def _compute(
        self, predictions: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """Return ``mean``, ``ci95`` (None below 20 prompts) and ``n``; ``clusters`` names each answer's prompt."""
        found = mean_interval(predictions, clusters, seed=seed)
        return {"mean": found.estimate, "ci95": found.ci, "n": found.n}


class SequenceKL(LocalMetric):
    """KL divergence from the reference, per answer and per token."""

    about = "Sampled estimate of KL(policy || reference): mean over answers of summed log-ratios, in nats."
    inputs = "predictions: the sum of log policy - log reference over each answer's tokens; references: its tokens."
    columns: ClassVar = {"default": {**_NUMBER, "references": datasets.Value("int64")}}

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, Any]:
        """Return ``kl`` per answer with ``ci95``, and ``kl_per_token``: total over total, never a mean of means."""
        found, tokens = mean_interval(predictions), sum(references)
        return {
            "kl": found.estimate,
            "ci95": found.ci,
            "kl_per_token": math.fsum(predictions) / tokens if tokens else 0.0,
        }


class WinRate(LocalMetric):
    """Paired win rate, ties as half."""

    about = "How often an answer's score beats the score of the other system's answer to the same prompt."
    inputs = "predictions: scores of the system; references: scores of the other system, same prompts, same order."
    columns: ClassVar = {"default": {**_NUMBER, "references": datasets.Value("float64")}}

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[float],
        clusters: Sequence[Hashable] | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Return the fields of ``data.common.paired_tests.Comparison``; ``clusters`` names each answer's prompt."""
        return paired_comparison(predictions, references, clusters=clusters, seed=seed).as_dict()
