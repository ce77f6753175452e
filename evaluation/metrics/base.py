"""Metrics of generated responses as ``evaluate`` modules that load without a network.

They are instantiated directly (``Distinct()``), never by ``evaluate.load``, which needs a network or runs copied
scripts. Each keeps its rows in memory, in a folder of its own that goes with it. This module knows nothing of models:
responses arrive as token ids or text, scores as numbers.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import evaluate

_TOKENS = {"predictions": datasets.Sequence(datasets.Value("int64"))}
_TEXT = {"predictions": datasets.Value("string")}


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
            ValueError: nothing to compute (instead of a mean of nothing).
        """
        if "predictions" in kwargs and kwargs["predictions"] is not None and not len(kwargs["predictions"]):
            raise ValueError(f"{type(self).__name__}: nothing to compute, predictions are empty")
        result = super().compute(**kwargs)
        assert result is not None  # only other processes than the first get None, and these metrics know one process
        return result


class Distinct(LocalMetric):
    """Distinct-n (Li et al. 2016, "A Diversity-Promoting Objective Function"): unique n-grams over all n-grams."""

    about = "Share of n-grams that are unique: pooled over all responses, and as a mean over responses."
    inputs = "predictions: token ids of each response; with config_name='words', texts, split at white space."
    columns: ClassVar = {"tokens": _TOKENS, "words": _TEXT}

    def _compute(self, predictions: Sequence[Any], orders: Sequence[int] = (1, 2)) -> dict[str, float]:
        """Return ``distinct_n`` (pooled) and ``distinct_n_mean`` (per response, then averaged) for each n of
        ``orders``.

        The pooled value falls with the number of responses: compare it only between equally many. Responses shorter
        than n tokens have no n-grams and stay out of the mean; without any n-gram the value is 0.
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


class Truncation(LocalMetric):
    """Share of responses cut off at the length limit."""

    about = "Share of responses that did not end by themselves."
    inputs = "predictions: for each response, whether it finished with a stop token."
    columns: ClassVar = {"default": {"predictions": datasets.Value("bool")}}

    def _compute(self, predictions: Sequence[bool]) -> dict[str, float]:
        """Return ``truncated``, the share of False."""
        return {"truncated": sum(not finished for finished in predictions) / len(predictions)}
