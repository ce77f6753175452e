"""What a run's files say of a stage's model, for its model card: lineage, data, settings and what was found of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from data.common.number_format import interval, number
from data.common.redaction import redacted
from data.common.strict_json import read_object
from models.backbone.artifacts import Artifact, read_artifact
from models.backbone.settings import AdapterConfig
from pipelines.recipe.schema import Recipe
from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES
from pipelines.workspace.run_folder import read_run
from stages.settings import PretrainConfig

RESULTS = "results.json"


def lineage(pipeline: Pipeline, stage: str) -> dict[str, Artifact | None]:
    """The stages that a stage's result came from and itself, in the order in which they ran; None: the run was given
    a folder without a manifest, of which nothing is known."""
    found: dict[str, Artifact | None] = {}
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        given = pipeline.given.get(name)
        artifact = read_artifact(given if given is not None else pipeline.run_dir / STAGES[name].folder)
        found[name] = artifact
        waiting += [p for p in (artifact.manifest.get("parents") or {} if artifact else {}) if p in STAGES]
    return {name: found[name] for name in STAGES if name in found}


def data_rows(pipeline: Pipeline, stages: Mapping[str, Artifact | None]) -> list[tuple[str, str, str, str, str]]:
    """(part, source, rows for training, rows held out, first digits of the part's hash) of what the stages read.

    Rows are those of the run's own record of its sources. What a given stage was trained on is not in it.
    """
    wanted = {
        part: str(digest)
        for name, artifact in stages.items()
        if artifact is not None and name not in pipeline.given
        for part, digest in (artifact.manifest.get("described", {}).get("data") or {}).items()
    }
    out = []
    for row in read_run(pipeline.run_dir).get("sources") or []:
        if not isinstance(row, dict) or row.get("part") not in wanted:
            continue
        used, held_out = row.get("used"), row.get("held_out")
        counts = ("not recorded", "not recorded")
        if isinstance(used, int) and isinstance(held_out, int):
            counts = (f"{used - held_out:,}", f"{held_out:,}")
        source = without_folder(str(redacted(str(row.get("source")))))
        out.append((str(row["part"]), source, *counts, wanted[row["part"]][:12]))
    return out


def hub_sets(rows: list[tuple[str, str, str, str, str]]) -> list[str]:
    """The data sets of the hub among sources, by their names there."""
    from data.hub import HUB_ID

    found = (HUB_ID.fullmatch(source) for _, source, *_ in rows if source.startswith("hub:"))
    return list(dict.fromkeys(m["id"] for m in found if m is not None))


def without_folder(source: str) -> str:
    """A source without the folders of the machine that it lay on."""
    return PurePath(source).name if PurePath(source).is_absolute() else source


def settings_off_default(stage: str, artifact: Artifact) -> dict[str, Any]:
    """The settings that a stage ran with and that are not the defaults, by their names in a recipe.

    Of what ran, not of the recipe as it is now: a stage's manifest holds them.
    """
    described = artifact.manifest.get("described") or {}
    entry = STAGES[stage]
    settings = described.get("settings") or {}
    inner = settings.get(entry.group)
    settings = inner if isinstance(inner, dict) else settings
    config = PretrainConfig if stage == "pretrain" else _config_of(entry.group)
    found = dict(_changed(settings, config, f"{entry.group}."))
    if entry.trains:
        found |= dict(_changed(described.get("adapter") or {}, AdapterConfig, "adapter."))
    return dict(redacted(found))


def _config_of(group: str) -> type[BaseModel]:
    """The class of a group of a recipe's settings."""
    annotation: Any = Recipe.model_fields[group].annotation
    options = (annotation, *getattr(annotation, "__args__", ()))
    return next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))


def _changed(settings: Mapping[str, Any], config: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    fields = config.model_fields
    needed = any(field.is_required() for field in fields.values())
    validated = {} if needed else config().model_dump(mode="json")  # where validation fills in what is left out
    for key, value in settings.items():
        if (field := fields.get(key)) is None:
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel) and isinstance(value, dict):
            yield from _changed(value, type(default), f"{prefix}{key}.")
        elif field.is_required() or _differs(value, validated.get(key, to_jsonable_python(default))):
            yield f"{prefix}{key}", _said(value)


def _differs(value: Any, default: Any) -> bool:
    """Whether a recorded value is another than the default; inner mappings are recorded without some of their keys."""
    if isinstance(value, dict) and isinstance(default, dict):
        return any(_differs(v, default.get(k)) for k, v in value.items())
    if isinstance(value, list) and isinstance(default, list) and len(value) == len(default):
        return any(map(_differs, value, default))
    return bool(value != default)


def _said(value: Any) -> Any:
    """A value without the keys of its inner mappings that are unset."""
    if isinstance(value, dict):
        return {k: _said(v) for k, v in value.items() if v is not None}
    return [_said(v) for v in value] if isinstance(value, list) else value


def evaluation_of(pipeline: Pipeline, stage: str, artifact: Artifact | None) -> tuple[dict[str, Any], str]:
    """The run's evaluation, where it has the stage's model as it is now; else nothing, and why."""
    folder = pipeline.run_dir / STAGES["evaluate"].folder
    found = read_artifact(folder)
    if found is None or not (folder / RESULTS).is_file():
        return {}, "The run has no evaluation."
    made_of = (found.manifest.get("described", {}).get("inputs") or {}).get(stage)
    if artifact is None or made_of != artifact.key:
        return {}, "The run's evaluation is not of this model."
    results = read_object(folder / RESULTS)
    if stage not in (results.get("systems") or {}):
        return {}, "The run's evaluation is not of this model."
    return results, ""


def steps_of(artifact: Artifact) -> str:
    """How long a stage trained, and on how many rows, as its manifest says."""
    metrics = artifact.metrics
    counts = metrics.get("counts") or {}
    read = {name: metrics[name] for name in ("documents", "rankings", "prompts") if name in metrics}
    named = {
        **(read or {"rows": counts.get("used")}),
        "cut rows": counts.get("cut") or None,
        "dropped rows": metrics.get("dropped") or None,
        **{name: metrics.get(name) for name in ("updates", "steps")},
    }
    facts = [f"{value:,} {name}" for name, value in named.items() if isinstance(value, int)]
    curve: Mapping[str, Any] = next(iter((metrics.get("held_out_curves") or {}).values()), {})
    before, change = (curve.get("before") or {}).get("loss"), curve.get("change")
    if isinstance(before, float) and isinstance(change, float):
        certain = interval(curve.get("change_ci95"))
        unit = f" {curve['unit']}" if curve.get("unit") else ""
        facts.append(f"held-out loss {number(before)}{unit} before and {number(before + change)} after")
        facts += [f"a change of {number(change)} {certain}"] if certain else []
    elif isinstance(metrics.get("held_out_nll"), float):
        facts.append(f"held-out loss {number(metrics['held_out_nll'])} nats a token")
    return ", ".join(facts)


def base_in_words(pipeline: Pipeline) -> str:
    """The base of a run without the folders of the machine that it lay on."""
    recipe = pipeline.recipe
    further = f", trained further by the run `{recipe.name}` (continued pretraining)" if recipe.continued else ""
    if not isinstance(recipe.base, str):
        return f"a base that the run `{recipe.name}` pretrained from scratch{further}"
    spec = pipeline.loaded.first_spec if recipe.continued else pipeline.loaded.spec
    at = f" at revision `{spec.revision}`" if spec.revision else ""
    return (f"`{spec.name}`, a local folder" if Path(spec.source).is_dir() else f"`{spec.source}`{at}") + further
