"""Results that a run is given, or has from before, against what it asks: rendering, held-out records, adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig

from data.common.strict_json import read_object
from data.leaks import source_of
from evaluation.systems import parse
from models.backbone.architecture import without_weights
from models.backbone.artifacts import read_artifact
from models.roles.files import ADAPTER, CONFIG, SCORING
from models.roles.lora import differences
from pipelines.recipe.schema import Recipe
from pipelines.run.base_rehearsal import KnownBase, adapter_settings
from pipelines.run.parts import RunParts
from pipelines.stages.depends_on import rendering_of
from pipelines.stages.keys import differences as changes
from pipelines.stages.table import STAGES
from stages import lineage
from stages.stage import copy_sentence

UNSET: dict[str, Any] = {"file": None, "args": {}, "stop_strings": []}  # what goes without saying in a rendering


def results_taken(pipeline: RunParts, chosen: Sequence[str]) -> dict[str, Path]:
    """Results that the chosen stages are given, with their folders."""
    needs = {need for name in chosen for need in pipeline.inputs_of(name)}
    return {name: folder for name, folder in pipeline.given.items() if name in needs}


def given_otherwise(pipeline: RunParts, chosen: Sequence[str]) -> Iterator[str]:
    """Sentences about results that the chosen stages are given, and that were made with another rendering or limit."""
    recipe = pipeline.recipe
    rendering = _rendering(recipe)
    for stage in sorted(results_taken(pipeline, chosen)):
        if differ := otherwise(recipe, stage, pipeline.given[stage]):
            yield f"{stage}, which is given, was made otherwise than it is used here: {', '.join(differ)}"
    named = [parse(name) for name in recipe.evaluation.systems] if "evaluate" in chosen else []
    for folder, name in ((recipe.base_dir / Path(n.value).expanduser(), n.name) for n in named if n.kind == "path"):
        then = {k: v for k, v in _made_with(folder).items() if k in rendering} if folder.is_dir() else {}
        if differ := changes(then, {k: rendering[k] for k in then}):
            yield f"evaluation.systems: {name} was made otherwise than it is asked here: {', '.join(differ)}"


def otherwise(recipe: Recipe, stage: str, folder: Path) -> list[str]:
    """How the rendering or limit with which a stage's result was made differs from the recipe's; as far as known."""
    then, now = _made_with(folder), dict[str, Any]()
    if STAGES[stage].on_base and not (stage == "reward" and recipe.reward.base != "same"):
        now = _rendering(recipe)
    if stage == "reward":
        now["reward.max_tokens"] = recipe.reward.max_tokens
    both = now.keys() & then.keys()
    return changes({k: then[k] for k in both}, {k: now[k] for k in both})


def _rendering(recipe: Recipe) -> dict[str, Any]:
    return UNSET | rendering_of(recipe)


def trained_on_held_out(pipeline: RunParts, chosen: Sequence[str]) -> Iterator[str]:
    """Sentences about results that the chosen stages take and do not make, and that were trained on prompts which this
    run holds out, or on nobody knows what."""
    needs = {need: folder for name in chosen for need, folder in pipeline.inputs_of(name).items()}
    taken = {n: folder for n, folder in needs.items() if n not in chosen and STAGES[n].training_data is not None}
    held = {part: getattr(pipeline.corpus, part).held_out for part in ("prompts", "rankings", "demonstrations")}
    for stage, folder in sorted(taken.items()):
        for part, records in held.items():
            if places := lineage.seen(folder, records):
                yield (
                    f"leak: {stage}, which is taken from {folder}, was trained on {len(places):,} of the "
                    f"{len(records):,} held-out records of data.{part} (the first is {source_of(records[places[0]])}): "
                    "what is found out about it on them is too good. Hold out what it was not trained on, as with the "
                    "data, data.held_out and data.group_by of its own run"
                )
        if "evaluate" in chosen and stage in pipeline.given and not lineage.is_known(folder):
            yield (
                f"{stage}, which is given: not all that it was trained on is known, and held-out prompts of this run "
                "may be among it"
            )


def _made_with(folder: Path) -> dict[str, Any]:
    """Rendering and limit of a stage's result, and the limit of an exported reward model; as far as they are known."""
    found = read_artifact(folder)
    if found is None:
        limit = read_object(folder / SCORING).get("max_tokens") if (folder / SCORING).is_file() else None
        return {} if limit is None else {"reward.max_tokens": limit}
    described = found.manifest.get("described") or {}
    settings = described.get("settings") or {}
    limit = {"reward.max_tokens": settings["max_tokens"]} if "max_tokens" in settings else {}
    return UNSET | (described.get("rendering") or {}) | limit


def copied_roles(recipe: Recipe, chosen: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Roles that the chosen stages start as a copy of a finished stage's role, each with that stage."""
    shares = recipe.reward.base == "same"
    if "reward" in chosen and shares and recipe.reward.init == "sft":
        yield "reward", "sft"
    if "ppo" in chosen:
        yield "policy", "sft"
        if recipe.ppo.value.init != "policy_trunk":
            yield "value", "reward" if shares and recipe.ppo.value.init == "reward" else "sft"


def warn_of_copies(pipeline: RunParts, base: KnownBase, chosen: Sequence[str], warn: Callable[[str], None]) -> None:
    """Tell of roles that keep the settings of an adapter that the run is given, or has, and not the recipe's."""
    if pipeline.recipe.adapter.tuning.copies:
        return
    lm = without_weights(base.config)
    for role, stage in copied_roles(pipeline.recipe, chosen):
        there = (
            None
            if stage in chosen
            else _stored_adapter(pipeline.given.get(stage, pipeline.run_dir / STAGES[stage].folder))
        )
        if there is None:
            continue
        asked = adapter_settings(base, lm, pipeline.recipe.adapter, head=stage == "reward")
        if differ := differences(lm, asked, there, stage):
            warn(copy_sentence(role, stage, differ))


def _stored_adapter(folder: Path) -> PeftConfig | None:
    """The configuration of a stage's adapter or of a plain one; None where there is none to compare."""
    found = next((f for f in (folder / ADAPTER, folder) if (f / CONFIG).is_file()), None)
    if found is None:
        return None
    with contextlib.suppress(Exception):  # what is wrong with it is told where it is loaded
        settings = read_object(found / CONFIG)
        kinds: dict[Any, Any] = {"LORA": LoraConfig, "ADALORA": AdaLoraConfig, "IA3": IA3Config}
        if (kind := kinds.get(settings.get("peft_type"))) is not None:
            return cast(PeftConfig, kind(**{k: v for k, v in settings.items() if k in kind.__dataclass_fields__}))
    return None
