"""METRICS: an entry a metric of generated responses, by name. Light: its libraries are imported when it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data.common.tables import late
from evaluation.settings import EvaluationConfig


@dataclass(frozen=True)
class Entry:
    """A metric: how it is made, whether it needs references, and what else of the settings it is given.

    ``outcomes``: a score is 1 or 0 by definition, so that no response refused still leaves some room for refusals.
    """

    make: Callable[[], Any]
    references: bool = True
    outcomes: bool = False
    options: Callable[[EvaluationConfig], dict[str, Any]] = lambda config: {}


METRICS: dict[str, Entry] = {
    "refusal_rate": Entry(late("evaluation.metrics.builtin:RefusalRate"), references=False, outcomes=True),
    "self_bleu": Entry(late("evaluation.metrics.builtin:SelfBleu"), references=False),
    "rouge": Entry(late("evaluation.metrics.text:Rouge")),
    "bleu": Entry(late("evaluation.metrics.text:Bleu")),
    "chrf": Entry(late("evaluation.metrics.text:Chrf")),
    "meteor": Entry(late("evaluation.metrics.text:Meteor")),
    "exact_match": Entry(late("evaluation.metrics.text:ExactMatch"), outcomes=True),
    "labels": Entry(
        late("evaluation.metrics.text:Labels"), outcomes=True, options=lambda config: {"labels": list(config.labels)}
    ),
}


OF_MODELS = ("perplexity", "base_perplexity")
"""Metrics that need a model: they are computed where a system is loaded."""


def metric_names() -> tuple[str, ...]:
    """All that a recipe can name."""
    return (*METRICS, *OF_MODELS)
