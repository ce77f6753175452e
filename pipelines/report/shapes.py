"""The shapes of what the report reads: checked where it is read, so that an error behind that is an error of ours.

Every model says what the page relies on and lets the rest through; a part of another shape (third parties, other
versions) is left out, and the report says which part and why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipelines.workspace.run_folder import RunEntries


def _printable(value: float) -> float:
    if isinstance(value, int) and abs(value) > 10**300:
        raise ValueError("too large")
    return value


def _all_printable(value: Any) -> Any:
    """A JSON value whose numbers all fit into a float.

    Raises:
        ValueError: one does not.
    """
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _all_printable(inner)
    return _printable(value) if isinstance(value, int) else value


def _drawable(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


Real = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)]
Number = Annotated[Real, AfterValidator(_printable)]
Finite = Annotated[Number, AfterValidator(_drawable)]
Interval = Annotated[list[Finite], Field(min_length=2, max_length=2)] | None
Count = Annotated[int, Field(strict=True, ge=0, le=10**18)]


class Shape(BaseModel):
    """Strict about what it names, silent about the rest."""

    model_config = ConfigDict(strict=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, found: Any) -> Any:
        return _all_printable(found)


class Mean(Shape):
    mean: Finite | None = None
    ci95: Interval = None


class Share(Shape):
    share: Finite | None = None
    ci95: Interval = None
    n: Count | None = None

    @model_validator(mode="after")
    def _whole(self) -> Share:
        if self.ci95 is not None and self.share is None:
            raise ValueError("an interval of no share")
        return self


def _metric(value: Any) -> Any:
    if isinstance(value, dict) and "mean" in value:
        Mean.model_validate(value)
    return value


class System(Shape):
    reward: Mean = Mean()
    held_out_reward: Mean = Mean()
    gold: Mean = Mean()
    kl: Mean = Mean()
    length: Mean = Mean()
    distinct_1: Finite | Mean | None = None
    distinct_2: Finite | None = None
    truncated: Finite | None = None
    metrics: dict[str, Annotated[Any, AfterValidator(_metric)]] | None = None


class Adversary(Shape):
    win_rate: Number | None = None
    ci95: Interval = None


class Comparison(Shape):
    a: str
    b: str
    by: str = ""
    decoding: str = "sampled"
    win_rate: Finite
    ci95: Interval = None
    p_value: Number | None = None
    p_value_holm: Number | None = None
    minimum_detectable: Number | None = None
    difference: Mean | None = None
    length_controlled: Adversary | None = None
    verdict: str = ""
    verdict_text: str | None = None


class MetricComparison(Shape):
    difference: Mean | None = None
    p_value_holm: Number | None = None


class Judge(Shape):
    accuracy: Share | None = None
    tokens: dict[str, Count] | None = None
    adversary_tokens: dict[str, Count] | None = None
    flip_rate: Number | None = None
    adversaries: dict[str, Adversary] | None = None


class Harness(Shape):
    systems: dict[str, dict[str, dict[str, Any]]] | None = None


class Results(Shape):
    systems: dict[str, System] | None = None
    greedy: dict[str, System] | None = None
    comparisons: list[Comparison] | None = None
    metric_comparisons: list[MetricComparison] | None = None
    judges: dict[str, Judge] | None = None
    lm_eval: Harness | None = None
    warnings: list[str] = []
    baselines: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    judge: str | None = ""
    against: str = "sft"


class Bin(Shape):
    confidence: Number | None = None
    right: Number | None = None


class Reliability(Shape):
    error: Finite | None = None
    bins: list[Bin] | None = None


class Calibration(Shape):
    temperature: Finite | None = None
    before: Reliability | None = None
    after: Reliability | None = None


class Samples(Shape):
    std: Finite
    of: str = ""


class Length(Shape):
    score_per_token: Finite | None = None
    correlation: Finite | None = None
    longer_wins: Share = Share()
    longer_is_better: Share = Share()


class Top1(Share):
    chance: Finite | None = None


class Ceiling(Share):
    reached: Finite | None = None


class SubsetScore(Shape):
    score: Finite | None = None
    n: Count = 0


class PublishedScore(Shape):
    score: Finite | None = None
    subsets: dict[str, SubsetScore] = {}


class Card(Shape):
    accuracy: Share
    baselines: dict[str, Share]
    probes: dict[str, Share]
    slices: dict[str, dict[str, Share]]
    length: Length
    top1: Top1
    calibration: Calibration | None = None
    samples: Samples | None = None
    ceiling: Ceiling | None = None
    rewardbench2: PublishedScore | None = None
    negatives: list[Any] = []
    warnings: list[Any] = []


class Summary(Shape):
    """The card in a few numbers, as a stage's metrics have it."""

    baselines: dict[str, Finite | None] | None = None
    probes: dict[str, Finite | None] | None = None
    calibration_error: Finite | None = None
    temperature: Finite | None = None
    top1: Finite | None = None
    longer_wins: Finite | None = None
    card_warnings: list[Any] | None = None


class StageMetrics(Shape):
    pair_accuracy: Finite | None = None
    pair_accuracy_ci95: Interval = None
    pairs: Count | None = None
    score_std: Number | None = None
    kept_update: Count | None = None
    report_card: Summary | None = None


class Manifest(Shape):
    key: str = ""
    parents: dict[str, str] | None = None
    metrics: StageMetrics | None = None


class Row(Shape):
    """A row of ``metrics.jsonl``."""

    step: Finite = 0


class SampleScores(Shape):
    reward: Finite | None = None
    gold: Finite | None = None


class Sample(Shape):
    """A row of ``samples.jsonl``."""

    systems: dict[str, SampleScores]


class KeptRecipe(Shape):
    recipe: dict[str, Any]


RUN_SHAPE: type[BaseModel] = RunEntries


def checked(shape: type[BaseModel], found: Mapping[str, Any], file: str, notes: list[str]) -> dict[str, Any]:
    """What was read where it has the shape; else nothing, and a note that says what is wrong with the file."""
    if not found:
        return {}
    try:
        TypeAdapter(shape).validate_python(found)
    except (ValidationError, RecursionError) as error:
        notes.append(f"{file}: not of the shape that trivet writes{_where(error)}, and left out.")
        return {}
    return dict(found)


def whole_card(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """A report card with every part that the page reads; None where it has another shape."""
    try:
        return Card.model_validate(found).model_dump()
    except (ValidationError, RecursionError):
        return None


def checked_rows(
    shape: type[BaseModel], found: Sequence[dict[str, Any]], file: str, notes: list[str]
) -> list[dict[str, Any]]:
    """The rows that have the shape; a note counts the others."""
    adapter, kept, first = TypeAdapter(shape), list[dict[str, Any]](), ""
    for row in found:
        try:
            adapter.validate_python(row)
            kept.append(row)
        except (ValidationError, RecursionError) as error:
            first = first or _where(error)
    if dropped := len(found) - len(kept):
        rows = f"{dropped} of {len(found)} rows"
        notes.append(f"{file}: {rows} are not of the shape that trivet writes{first}, and were left out.")
    return kept


def _where(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return ""
    first = error.errors(include_url=False, include_input=False)[0]
    return f" ({'.'.join(map(str, first['loc']))[:120]}: {first['msg']})"
