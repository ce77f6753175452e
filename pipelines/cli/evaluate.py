"""``trivet evaluate``: options into a pipeline that evaluates a run, a recipe, or a model that belongs to no run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data.common.errors import UserError
from data.local_files import why_absent
from models.backbone.settings import ADAPTER_CONFIG
from pipelines.cli.options import Fresh, Input, Set
from pipelines.cli.run import make_pipeline, parse_inputs, run_pipeline
from pipelines.workspace.run_folder import run_of

if TYPE_CHECKING:
    from pipelines.run.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The command's own options; None leaves a setting as the recipe has it."""

    prompts: Path | None = None
    systems: str | None = None
    metrics: str | None = None
    allow_hub_metrics: bool = False
    rankings: Path | None = None
    lm_eval: str | None = None
    tasks_dir: Path | None = None


def evaluate(
    run: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="a run, a recipe, or any model", show_default=False)
    ],
    prompts: Annotated[Path | None, typer.Option("--prompts", metavar="FILE", help="other held-out prompts")] = None,
    systems: Annotated[
        str | None,
        typer.Option(
            "--systems",
            metavar="A,B,...",
            help="base, sft, ppo, ppo@N, best-of-N, best-of-N:NAME, prompted:NAME, path:DIR",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="A,B,...", help="rouge, bleu, chrf, meteor, exact_match, labels, ..."),
    ] = None,
    allow_hub_metrics: Annotated[
        bool, typer.Option("--allow-hub-metrics", help="metrics named hub:NAME may run the hub's code")
    ] = False,
    rankings: Annotated[
        Path | None, typer.Option("--rankings", metavar="FILE", help="other rankings for the reward model's card")
    ] = None,
    lm_eval: Annotated[
        str | None, typer.Option("--lm-eval", metavar="TASK,...", help="tasks of lm-evaluation-harness")
    ] = None,
    tasks_dir: Annotated[
        Path | None, typer.Option("--tasks-dir", metavar="DIR", help="your own task files for --lm-eval")
    ] = None,
    set_: Set = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", metavar="DIR", help="where the results go")] = None,
    fresh: Fresh = False,
    input_: Input = None,
) -> None:
    """Compare models on held-out prompts.

    All have the same prompts, seeds and limits. They are judged by gold, the reward model, judges and metrics.

    With other prompts, systems or settings the results go to a folder of their own (RUN/evaluations/...), and the run
    stays as it is. Responses are kept in RUN/generations and not made twice. See docs/how-to/evaluation.md.

    \b
    trivet evaluate runs/demo
    trivet evaluate runs/demo --prompts new.jsonl --systems sft,ppo,best-of-8
    trivet evaluate runs/demo --systems sft,best-of-8,best-of-8:ppo.reward
    trivet evaluate runs/demo --systems sft,ppo@20,path:exports/mine
    trivet evaluate ./my-model --prompts new.jsonl --systems base
    trivet evaluate runs/demo --prompts answered.jsonl --metrics rouge,chrf
    trivet evaluate runs/demo --lm-eval arc_easy,my_task --tasks-dir tasks
    """
    asked = Asked(
        prompts=prompts,
        systems=systems,
        metrics=metrics,
        allow_hub_metrics=allow_hub_metrics,
        lm_eval=lm_eval,
        rankings=rankings,
        tasks_dir=tasks_dir,
    )
    run_evaluation(run, asked, set_, run_dir, input_, fresh)


def run_evaluation(
    run: str,
    asked: Asked,
    overrides: Sequence[str] | None,
    run_dir: Path | None,
    inputs: Sequence[str] | None,
    fresh: bool,
) -> None:
    """Evaluate a run as its recipe says, or otherwise into a folder of its own; or a recipe's evaluate stage."""
    changes = settings_of(asked, overrides)
    path, given = Path(run), parse_inputs(inputs)
    if path.is_file():
        pipeline = make_pipeline(path, changes, run_dir, inputs, may_idle=bool(changes))
        run_pipeline(pipeline, only=["evaluate"], fresh=fresh)
        return
    if run_of(path) is None:
        run_pipeline(_of_model(run, asked, changes, run_dir, given), only=["evaluate"], fresh=fresh)
        return
    from pipelines.run.open_run import open_run

    pipeline = open_run(path, changes)
    if changes or given or run_dir or "evaluate" not in pipeline.recipe.stages:
        pipeline = _in_another_folder(pipeline, changes, run_dir, given)
    run_pipeline(pipeline, only=["evaluate"], fresh=fresh)


def settings_of(asked: Asked, overrides: Sequence[str] | None) -> list[str]:
    """The options as settings of the recipe; files and folders are relative to where the command is given."""
    changes = list(overrides or ())
    for key, option, file in (
        ("data.held_out", "prompts", asked.prompts),
        ("evaluation.rankings", "rankings", asked.rankings),
    ):
        if file is not None and not file.is_file():
            raise UserError(f"--{option} {file} {why_absent(file)}")
        changes += [f"{key}={file.resolve()}"] if file is not None else []
    for key, listed in (("systems", asked.systems), ("metrics", asked.metrics)):
        if listed is not None:
            names = [_in_place(name.strip()) for name in listed.split(",") if name.strip()]
            changes.append(f"evaluation.{key}={json.dumps(names)}")
    if asked.lm_eval is not None:
        tasks = [name.strip() for name in asked.lm_eval.split(",") if name.strip()]
        changes.append(f"evaluation.lm_eval.tasks={json.dumps(tasks)}")
    if asked.tasks_dir is not None:
        changes.append(f"evaluation.lm_eval.tasks_dir={asked.tasks_dir.resolve()}")
    if asked.allow_hub_metrics:
        changes.append("evaluation.hub_metrics=true")
    return changes


def _in_place(name: str) -> str:
    """Folders and files as seen from here, not from the recipe."""
    kind, _, place = name.partition(":")
    if kind in ("path", "folder") and place:
        return f"{kind}:{Path(place).expanduser().resolve()}"
    return f"{Path(kind).resolve()}:{place}" if kind.endswith(".py") else name


def _in_another_folder(
    run: Pipeline, changes: Sequence[str], run_dir: Path | None, given: Mapping[str, str]
) -> Pipeline:
    """A pipeline that evaluates a run's finished stages in another folder; the run stays as it is."""
    from pipelines.export.quantised_loss import inputs_of_finished
    from pipelines.run.pipeline import Pipeline

    recipe = run.recipe.model_copy(update={"stages": ("evaluate",), "rankings": None})
    inputs = inputs_of_finished(run, given)
    tag = hashlib.sha256("\n".join([*changes, *map(str, sorted(given.items()))]).encode()).hexdigest()[:8]
    pipeline = Pipeline(recipe, run_dir or run.run_dir / "evaluations" / tag, inputs)
    pipeline.generations = run.generations  # what the run's systems said already
    return pipeline


def _of_model(
    model: str,
    asked: Asked,
    changes: Sequence[str],
    run_dir: Path | None,
    given: Mapping[str, str],
) -> Pipeline:
    """A pipeline around a model that belongs to no run: a folder, an adapter, a name or a hub id."""
    from models.hub.registry import resolve_base
    from pipelines.run.pipeline import Pipeline

    path = Path(model)
    try:
        resolve_base(_base_of(path), base_dir=Path.cwd())
    except UserError as error:
        raise UserError(f"{model}: no such run folder or recipe, and no model: {error}") from None
    if asked.prompts is None:
        raise UserError(f"{model} is no run; to evaluate a model, name the prompts: --prompts FILE")
    adapter = (path / ADAPTER_CONFIG).is_file()
    named = ["base", f"path:{path.resolve()}"] if adapter else ["base"]
    recipe: dict[str, Any] = {
        "name": "evaluate-" + re.sub(r"[^\w.-]+", "-", path.name or model).strip("-."),
        "base": _base_of(path),
        "stages": ["evaluate"],
        "data": {},
        "evaluation": {} if asked.systems else {"systems": named},
    }
    return Pipeline.from_recipe(recipe, changes, run_dir, given)


def _base_of(path: Path) -> str:
    """The folder itself, or the base that an adapter names.

    Raises:
        UserError: an adapter that names none.
    """
    config = path / ADAPTER_CONFIG
    if not config.is_file():
        return str(path)
    try:
        named = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config}: names no base (base_model_name_or_path)") from error
    if not isinstance(named, str) or not named:
        raise UserError(f"{config}: names no base (base_model_name_or_path)")
    return named
