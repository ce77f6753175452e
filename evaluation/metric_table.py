"""METRICS: an entry a metric of generated responses, by name. Light: its libraries are imported when it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data.common.tables import late
from evaluation.settings import EvaluationConfig


@dataclass(frozen=True)
class Entry:
    """A metric: how it is made, what results call its numbers, whether it needs references, and what else of the
    settings it is given.

    ``outcomes``: a score is 1 or 0 by definition, so that no response refused still leaves some room for refusals.
    """

    make: Callable[[], Any]
    columns: tuple[str, ...] = ()
    references: bool = True
    outcomes: bool = False
    options: Callable[[EvaluationConfig], dict[str, Any]] = lambda config: {}


METRICS: dict[str, Entry] = {
    "refusal_rate": Entry(
        late("evaluation.metrics.builtin:RefusalRate"), ("refused",), references=False, outcomes=True
    ),
    "self_bleu": Entry(late("evaluation.metrics.builtin:SelfBleu"), ("self_bleu", "self_bleu_n"), references=False),
    "rouge": Entry(late("evaluation.metrics.text:Rouge"), ("rouge1", "rouge2", "rougeL")),
    "bleu": Entry(late("evaluation.metrics.text:Bleu"), ("bleu", "bleu_signature")),
    "chrf": Entry(late("evaluation.metrics.text:Chrf"), ("chrf", "chrf_signature", "chrf_answer")),
    "meteor": Entry(late("evaluation.metrics.text:Meteor"), ("meteor_no_synonyms",)),
    "exact_match": Entry(late("evaluation.metrics.text:ExactMatch"), ("exact_match",), outcomes=True),
    "labels": Entry(
        late("evaluation.metrics.text:Labels"),
        ("accuracy", "precision", "recall", "f1", "unlabelled", "by_label"),
        outcomes=True,
        options=lambda config: {"labels": list(config.labels)},
    ),
}


OF_MODELS: dict[str, tuple[str, ...]] = {
    "perplexity": ("perplexity", "nats_per_character"),
    "base_perplexity": ("base_perplexity", "nats_under_base"),
}
"""Metrics that need a model, with what results call their numbers: they are computed where a system is loaded."""


def metric_names() -> tuple[str, ...]:
    """All that a recipe can name."""
    return (*METRICS, *OF_MODELS)


def columns_of_metric(name: str) -> tuple[str, ...]:
    """What results call the numbers of a metric, as far as it is known before it runs: a function's by its name."""
    if name in METRICS:
        return METRICS[name].columns
    of_folder = name.startswith(("folder:", "hub:"))
    return OF_MODELS.get(name, () if of_folder else (name.rpartition(":")[2],))


def collision(name: str, other: str, column: str) -> str:
    """Why two metrics do not go together that call a number the same."""
    return (
        f"{name} and {other} both give a number called '{column}', and one would take the place of the other: give "
        "your own function or folder another name, or leave one out"
    )
