"""Metrics of a system's responses: metrics by name (``evaluation.metric_table``), and one's own by file or folder.

``file.py:function`` is a function of prompts and completions that gives one number a response, ``folder:DIR`` a local
``evaluate`` module, ``hub:NAME`` one from the hub, which runs the hub's code and so takes ``evaluation.hub_metrics``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.intervals import UNBOUNDED, Bounds, mean_interval, proportion_interval
from data.common.user_functions import load_function
from evaluation.answers import SystemResponses
from evaluation.metric_table import METRICS, OF_MODELS, Entry, collision
from evaluation.settings import EvaluationConfig
from evaluation.systems import problem_of_metric

References = Sequence[Sequence[str]]  # of each row; empty where there are none


BOUNDS: dict[str, Bounds] = {
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "meteor_no_synonyms"), (0.0, 1.0)),
    "chrf_answer": (0.0, 100.0),
}
"""The range of single responses' scores, by their names, where it is known: their intervals stay within."""


def needs_references(names: Sequence[str]) -> bool:
    return any(name == "perplexity" or (name in METRICS and METRICS[name].references) for name in names)


Scores = dict[str, list[float | None]]  # of single responses, by name, one a row; None where there is no reference


def compute_metrics(
    system: SystemResponses,
    config: EvaluationConfig,
    references: References | None = None,
    *,
    base_dir: Path = Path("."),
    seed: int = 0,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[dict[str, Any], Scores]:
    """Every metric of the settings on a system's responses, and the numbers of single responses.

    Those come as ``{"mean", "ci95"}`` with an interval over prompts, numbers of the whole set as they are. Rows without
    a reference stay out of what needs one; ``references_n`` counts those that have one. A function of the user's is
    given ``columns`` by name as well.

    Raises:
        UserError: an unknown metric, one that needs references where there are none, one's own that fails, or two that
            call a number the same.
    """
    given = references if references is not None else [()] * len(system.prompts)
    with_one = [i for i, r in enumerate(given) if r]
    out: dict[str, Any] = {"references_n": len(with_one)} if with_one and needs_references(config.metrics) else {}
    scores: Scores = {}
    given_by = {column: name for name in OF_MODELS if name in config.metrics for column in OF_MODELS[name]}
    given_by |= dict.fromkeys(out, "the count of references")
    for name in config.metrics:
        if name in OF_MODELS:
            continue
        entry = METRICS.get(name)
        rows = with_one if entry is not None and entry.references else list(range(len(given)))
        if entry is not None:
            found = _ready_made(name, entry, system, config, given, rows)
        else:
            found = _own(name, system, given, config, base_dir, columns)
        for column in [key for key in found if key != "scores"] + list(found.get("scores", {})):
            if (other := given_by.setdefault(column, name)) != name:
                raise UserError(f"evaluation.metrics: {collision(name, other, column)}")
        outcomes = entry is not None and entry.outcomes
        units = [system.units[i] for i in rows]
        out |= _spread(found, units, outcomes, config.bootstrap, seed, ready_made=entry is not None)
        for label, values in found.get("scores", {}).items():
            at = dict(zip(rows, map(float, values), strict=True))
            scores[label] = [at.get(i) for i in range(len(given))]
    return out, scores


def summarised(
    found: Mapping[str, Any], system: SystemResponses, config: EvaluationConfig, seed: int
) -> tuple[dict[str, Any], Scores]:
    """What a metric found of a system, as ``compute_metrics`` gives it; responses without a number (None) stay out."""
    out, scores = {k: v for k, v in found.items() if k != "scores"}, found.get("scores", {})
    for name, values in scores.items():
        rows = [i for i, value in enumerate(values) if value is not None]
        if rows:
            known = {"scores": {name: [values[i] for i in rows]}}
            out |= _spread(known, [system.units[i] for i in rows], False, config.bootstrap, seed)
    return out, dict(scores)


def _ready_made(
    name: str, entry: Entry, system: SystemResponses, config: EvaluationConfig, given: References, rows: Sequence[int]
) -> Mapping[str, Any]:
    if not entry.references:
        return entry.make().compute(predictions=list(system.responses), **entry.options(config))
    if not rows:
        raise UserError(f"evaluation.metrics: {NO_REFERENCES.format(name=name)}")
    return entry.make().compute(
        predictions=[system.responses[i] for i in rows],
        references=[list(given[i]) for i in rows],
        **entry.options(config),
    )


NO_REFERENCES = (
    "{name} needs references, and no held-out prompt has any; give --prompts FILE with answers "
    '({{"prompt": ..., "completion": ...}}), or demonstrations whose prompts are held out'
)


def _spread(
    found: Mapping[str, Any],
    units: Sequence[str],
    outcomes: bool,
    resamples: int,
    seed: int,
    *,
    ready_made: bool = True,
) -> dict[str, Any]:
    """Aggregates as they are; ``scores``, one a response, as mean and interval."""
    out = {k: v for k, v in found.items() if k != "scores"}
    for name, values in found.get("scores", {}).items():
        if outcomes:
            interval = proportion_interval(values, units)
        else:
            bounds = BOUNDS.get(name, UNBOUNDED) if ready_made else UNBOUNDED
            interval = mean_interval(values, units, resamples=resamples, seed=seed, bounds=bounds)
        note = {"note": interval.note} if interval.ci is None else {}
        out[name] = {"mean": interval.estimate, "ci95": interval.ci} | note
    return out


def _own(
    name: str,
    system: SystemResponses,
    references: References,
    config: EvaluationConfig,
    base_dir: Path,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, Any]:
    """A metric of the user's, or of the hub."""
    if problem := problem_of_metric(name, config):
        raise UserError(f"evaluation.metrics: {problem}")
    if name.startswith(("hub:", "folder:")):
        return _module(name, system, references, base_dir)
    given: dict[str, Any] = dict(columns or {})
    given |= {"finished": list(system.finished), "categories": list(system.categories)}
    given["references"] = [list(r) for r in references]  # whatever the data calls a column of its own
    scores = load_function(name, base_dir).call(list(system.prompts), list(system.responses), **given)
    return {"scores": {name.rpartition(":")[2]: scores}}


def _module(name: str, system: SystemResponses, references: References, base_dir: Path) -> dict[str, Any]:
    """An ``evaluate`` module by folder or hub name: its numbers, and lists of one number a response."""
    import evaluate

    kind, _, where = name.partition(":")
    path = str((base_dir / Path(where).expanduser()).resolve()) if kind == "folder" else where
    if kind == "folder" and not Path(path).is_dir():
        raise UserError(f"evaluation.metrics: {name}: no such folder ({path})")
    given = {"references": [list(r) for r in references]} if any(references) else {}
    try:
        metric = evaluate.load(path)
        wanted: dict[str, Any] = {k: v for k, v in given.items() if k in _columns(metric)}
        if wanted and not _takes_lists(metric):
            wanted = {"references": [r[0] if r else "" for r in references]}
        found = metric.compute(predictions=list(system.responses), **wanted) or {}
    except Exception as error:  # the module's own code may raise anything
        more = " (`evaluate` copies modules to HF_HOME, which must be a folder that can be written)"
        why = f"{type(error).__name__}: {error}{more if isinstance(error, OSError) else ''}"
        raise UserError(f"evaluation.metrics: {name} failed with {why}") from error
    label, n = Path(where).name, len(system.responses)
    scores = {f"{label}/{k}": list(v) for k, v in found.items() if isinstance(v, list | tuple) and len(v) == n}
    numbers = {f"{label}/{k}": float(v) for k, v in found.items() if isinstance(v, int | float)}
    return numbers | {"scores": scores}


def _columns(metric: Any) -> set[str]:
    features = metric.features if not isinstance(metric.features, list) else metric.features[0]
    return set(features)


def _takes_lists(metric: Any) -> bool:
    """Whether a module's references are a list for each response."""
    every = metric.features if isinstance(metric.features, list) else [metric.features]
    return any(type(f.get("references")).__name__ in ("Sequence", "List", "LargeList", "list") for f in every)
