"""A first recipe: from a base and data files to a commented text that passes what ``trivet plan`` checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.checks import DataCheck
from models.hub.registry import resolve_base
from pipelines.init.files import STAGE_OF, Given
from pipelines.init.limits import limits_by_rows, template_line
from pipelines.init.machines import Machine
from pipelines.init.memory import Memory, memory_on
from pipelines.init.stops import stop_line
from pipelines.init.text import Group, Line, recipe_text
from pipelines.loading.checks import AMOUNTS
from pipelines.loading.load import load_text
from pipelines.recipe import rates
from pipelines.recipe.schema import Recipe
from pipelines.run.amounts import is_open
from pipelines.run.data_health import health_of
from pipelines.run.fit import with_settings
from pipelines.run.pipeline import Pipeline
from pipelines.run.plan_details import PlanDetails
from pipelines.run.plan_time import PlanTime
from pipelines.run.rehearsal import rehearse
from pipelines.stages.shapes import parameters_text

SCRATCH = "scratch"
"""The base that the run pretrains itself."""
FEW, MANY, USUAL = 500, 20_000, 0.1
"""Rows below which a fifth is held out, from which on it is about 2,000 of them, and the share between."""
SHOWN, MAX_SHARE = 25, 0.4
"""Of few rows so many are held out, with which something can be shown, but no larger share than this."""
KNOBS = {
    "ppo": {
        "updates": "rollouts and updates of the policy",
        "rollouts": "responses an update",
        "kl_coef": "weight of the KL penalty: raise it where responses drift",
    },
}
"""Settings of a stage that are changed the first: shown with the values that they have anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a recipe is written from.

    Attributes:
        name: of the run.
        base: as the recipe names it, or ``SCRATCH``.
        file: where the recipe goes; relative paths start in its folder.
        given: the data files.
        check: what the doctor found in them.
        machine: where it is to run.
        held_out: a share or a file; None leaves it to the number of rows.
        ignore: columns that no format has to read.
    """

    name: str
    base: str
    file: Path
    given: Sequence[Given]
    check: DataCheck
    machine: Machine
    held_out: float | Path | None = None
    ignore: tuple[str, ...] = ()

    def seen_from_recipe(self, path: Path) -> str:
        """A path as the recipe writes it: relative where it lies below the recipe's folder."""
        whole, folder = path.expanduser().absolute(), self.file.parent.absolute()
        return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else str(whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A recipe's text, its stages, and what ``trivet plan`` would warn of."""

    text: str
    stages: tuple[str, ...]
    warnings: tuple[str, ...]


def draft(wanted: Wanted) -> Draft:
    """Write the text of a recipe and check it as ``trivet plan`` does.

    Raises:
        UserError: whatever makes a plan fail, from rows that the template refuses to a base that is not there.
    """
    first = _pipeline(recipe_text([_head(wanted, None), _data(wanted, None)]), wanted.file)
    details = first.details
    template, limits = template_line(details.recipe, details), limits_by_rows(details)
    rendering = [line for line in (template, stop_line(details)) if line is not None]
    recipe = _changed(details.recipe, rendering, limits)
    memory = memory_on(wanted.machine, _details(details, recipe))
    top = [_about(wanted, recipe), _head(wanted, details, rendering), _data(wanted, first)]
    text = recipe_text([*top, *_stage_groups(recipe, first, limits), _runtime(memory)])
    made = _pipeline(text, wanted.file)
    warnings = [*_warnings(made, memory, alone=wanted.machine.cards <= 1)]
    if wanted.machine.here and (long := PlanTime(made.details, made.stages).shorter_run()):
        warnings.append(long)
    return Draft(text=text, stages=made.recipe.stages, warnings=tuple(dict.fromkeys(warnings)))


def _pipeline(text: str, file: Path) -> Pipeline:
    return Pipeline.from_loaded(load_text(text, file), file)


def _changed(recipe: Recipe, rendering: Sequence[Line], limits: dict[str, Line]) -> Recipe:
    written = {line.key: line.value for line in rendering if line.written}
    recipe = recipe.model_copy(update=written | ({"stop": tuple(written["stop"])} if "stop" in written else {}))
    return with_settings(recipe, {f"{stage}.{line.key}": line.value for stage, line in limits.items()})


def _details(details: PlanDetails, recipe: Recipe) -> PlanDetails:
    return PlanDetails(recipe, details.corpus, details.device, details.made, amounts=details.amounts)


def _warnings(pipeline: Pipeline, memory: Memory, alone: bool) -> Iterator[str]:
    """What ``trivet plan`` says beyond its table; ``alone``: one process is all that the recipe is for."""
    if memory.too_large:
        yield memory.too_large
    if pipeline.details.shape is None:
        yield f"base {pipeline.recipe.base} is not on this machine: download it first (`hf download`), or name a folder"
    plans = pipeline.plan()
    for plan in plans:
        for key in ("warning", *(("too_large",) if alone and not memory.too_large else ())):
            if text := plan.details.get(key):
                yield f"{plan.name}: {text}"
    yield from (found.text for found in health_of(pipeline).findings)
    more: list[str] = []
    rehearse(pipeline, pipeline.stages, more.append)
    yield from more


# -- the groups -------------------------------------------------------------------------------------------------------


def _about(wanted: Wanted, recipe: Recipe) -> Group:
    about = (
        f"A first recipe for {wanted.machine.title}, by `trivet init`. Check it: trivet plan {wanted.file.name}; "
        f"run it: trivet run {wanted.file.name}",
        "What is left out, or stands behind a #, has the value shown or follows from base and data; "
        "docs/how-to/recipe.md has the reasons.",
        f"Stages: {' -> '.join(recipe.stages)}" + _more(wanted),
    )
    return Group(key="", lines=(), about=about)


def _more(wanted: Wanted) -> str:
    """What another file would add."""
    parts = {one.part for one in wanted.given}
    if "rankings" in parts and not parts & {"demonstrations", "prompts"}:
        return ". With data.prompts (or demonstrations) PPO and evaluation follow"
    if "rankings" not in parts and "demonstrations" in parts:
        return ". With data.rankings the reward model, PPO and evaluation follow"
    return ""


def _head(wanted: Wanted, details: PlanDetails | None, rendering: Sequence[Line] = ()) -> Group:
    scratch = wanted.base == SCRATCH
    why = "" if details is None else _base_facts(details)
    lines = [
        Line(key="name", value=wanted.name, why=f"results go to runs/{wanted.name}"),
        Line(key="base", value={"pretrain": {}} if scratch else wanted.base, why=why),
    ]
    return Group(key="", lines=[*lines, *rendering])


def _base_facts(details: PlanDetails) -> str:
    shape, opened = details.shape, details.opened
    if not isinstance(details.recipe.base, str):
        assert shape is not None
        return f"trained from scratch: {parameters_text(shape.parameters)} parameters"
    if shape is None:
        spec = resolve_base(details.recipe.base, base_dir=details.recipe.base_dir)
        return f"{spec.source}: not on this machine yet" + (f"; {spec.note}" if spec.note else "")
    positions = f", {opened.positions:,} positions" if opened is not None and opened.positions else ""
    return f"{shape.size}{positions}"


def _data(wanted: Wanted, pipeline: Pipeline | None) -> Group:
    lines = []
    for part, use in STAGE_OF.items():
        files = [one for one in wanted.given if one.part == part]
        if files:
            facts = "; ".join(f"{one.path.name}: {one.facts()}" if len(files) > 1 else one.facts() for one in files)
            sources = [_source(wanted, one) for one in files]
            lines.append(Line(key=part, value=sources if len(sources) > 1 else sources[0], why=f"for {use}: {facts}"))
    if pipeline is not None and not any(line.key == "prompts" for line in lines) and "ppo" in pipeline.recipe.stages:
        count = len(pipeline.corpus.prompts.train)
        why = f"{count:,} prompts of demonstrations and rankings; a file of your own may replace them"
        lines.append(Line(key="prompts", value="FILE", why=why, written=False))
    lines.append(Line(key="held_out", value=_held_out(wanted), why=_held_out_facts(wanted, pipeline)))
    if wanted.ignore:
        lines.append(Line(key="ignore", value=list(wanted.ignore), why="columns that are no part of it"))
    return Group(key="data", lines=lines, about=_shared(wanted) if pipeline is not None else ())


def _source(wanted: Wanted, one: Given) -> Any:
    """A source as a recipe writes it: its path, or with the settings that are not the usual ones."""
    settings = one.source.model_dump(mode="json", exclude_defaults=True, exclude={"path"})
    path = wanted.seen_from_recipe(one.path)
    return {"path": path} | settings if settings else path


def _shared(wanted: Wanted) -> list[str]:
    """What files have in common."""
    return [
        f"{Path(one.first).name} and {Path(one.second).name} share {one.shared:,} prompt{'s' * (one.shared > 1)}: rows "
        "of one prompt stand on one side of the split, whatever file they are from"
        for one in wanted.check.overlaps
        if one.shared
    ]


def _held_out(wanted: Wanted) -> float | str:
    if isinstance(wanted.held_out, Path):
        return wanted.seen_from_recipe(wanted.held_out)
    if wanted.held_out is not None:
        return wanted.held_out
    asked = [one.found.rows for one in wanted.given if one.part == "prompts"]  # evaluation asks those held out of them
    rows = sum(asked) or max(one.found.rows for one in wanted.given)
    if rows < FEW:
        answered = any(one.part != "documents" for one in wanted.given)
        all_few = max(one.found.rows for one in wanted.given) < FEW  # the share is of all files, also of large ones
        return max(2 * USUAL, min(MAX_SHARE, round(SHOWN / rows, 2)) if answered and all_few else 0)
    return USUAL if rows <= MANY else max(0.001, round(USUAL * MANY / rows, 3))


def _held_out_facts(wanted: Wanted, pipeline: Pipeline | None) -> str:
    if pipeline is None:
        return ""
    found = [(part, len(getattr(pipeline.corpus, part).held_out)) for part in STAGE_OF]
    given = {one.part for one in wanted.given} | ({"prompts"} if "ppo" in pipeline.recipe.stages else set())
    counts = ", ".join(f"{count:,} {part}" for part, count in found if part in given)
    share = "a file" if isinstance(wanted.held_out, Path) else "share of the prompts"
    return f"{share}, in no stage's training data: {counts}"


def _stage_groups(recipe: Recipe, pipeline: Pipeline, limits: dict[str, Line]) -> Iterator[Group]:
    """For each stage that is tuned: what is set, and behind a # what is chosen by base and data."""
    details = _details(pipeline.details, recipe)
    for stage in (name for name in recipe.stages if name in rates.DIVISORS):
        config = getattr(recipe, stage)
        lines = [limits[stage]] if stage in limits else []
        chosen = [rates.SETTING, *(name for group, _, name in (d.partition(".") for d in AMOUNTS) if group == stage)]
        for key in chosen:
            if key == rates.SETTING or is_open(pipeline.asked, stage, key):
                lines.append(Line(key=key, value=getattr(config, key), written=False))
        knobs = KNOBS.get(stage, {}).items()
        lines += [Line(key=key, value=getattr(config, key), why=why, written=False) for key, why in knobs]
        yield Group(key=stage, lines=lines, about=[f"{stage}: {text}" for text in details.chosen(stage).splitlines()])
    if "evaluation" in limits:
        yield Group(key="evaluation", lines=[limits["evaluation"]])


def _runtime(memory: Memory) -> Group:
    return Group(key="runtime", lines=memory.lines, about=[text for text in memory.about if text])
