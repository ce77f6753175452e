"""What the commands that run stages share: options into a pipeline, failures into a log, the end of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import StageError, UserError
from pipelines.cli.exit_codes import StageFailed, log_line, summary_of, write_traceback
from pipelines.loading.load import load_recipe
from pipelines.recipe.schema import resolved_yaml
from pipelines.workspace.run_folder import REPORT, check_outside

if TYPE_CHECKING:
    from pipelines.run.pipeline import Pipeline


def parse_inputs(given: Sequence[str] | None) -> dict[str, str]:
    """``stage=path`` options as a mapping.

    Raises:
        UserError: no ``=``, or a stage twice.
    """
    inputs: dict[str, str] = {}
    for one in given or ():
        stage, equals, path = one.partition("=")
        if not equals or not stage or not path:
            raise UserError(f"--input {one}: must have the form stage=path, for example --input sft=runs/demo/sft")
        if stage in inputs:
            raise UserError(f"--input {one}: {stage} is given twice")
        inputs[stage] = path
    return inputs


def make_pipeline(
    recipe: Path,
    overrides: Sequence[str] | None,
    run_dir: Path | None,
    inputs: Sequence[str] | None,
    store: Path | None = None,
    may_idle: bool = False,
) -> Pipeline:
    """A pipeline from a recipe file; the recipe is checked before anything heavy is imported."""
    given = parse_inputs(inputs)
    loaded = load_recipe(recipe, overrides or (), may_idle)
    from pipelines.run.pipeline import Pipeline

    return Pipeline.from_loaded(loaded, recipe, run_dir, given, store)


def run_stages(
    recipe: Path,
    overrides: Sequence[str] | None,
    run_dir: Path | None,
    inputs: Sequence[str] | None,
    *,
    only: Sequence[str] = (),
    start: str | None = None,
    until: str | None = None,
    fresh: bool = False,
    store: Path | None = None,
    profile: bool = False,
) -> None:
    """Run a recipe's stages, then show what came out."""
    names = [name for one in only for name in one.split(",") if name]
    pipeline = make_pipeline(recipe, overrides, run_dir, inputs, store)
    require_taken(pipeline, pipeline.chosen(names, start, until))
    run_pipeline(pipeline, profile, only=names, start=start, until=until, fresh=fresh)


def require_taken(pipeline: Pipeline, chosen: Sequence[str]) -> None:
    """Refuse results that are given and that no stage of this call takes.

    Raises:
        UserError: names the first.
    """
    taken = {need for name in chosen for need in pipeline.inputs_of(name)}
    if unused := next((name for name in pipeline.given if name not in taken), None):
        stages = f"it runs {', '.join(chosen)}" if chosen else "it runs none"
        raise UserError(f"--input {unused}: no stage of this call takes it ({stages}): leave it out")


def run_pipeline(pipeline: Pipeline, profile: bool = False, **which: Any) -> None:
    """Run, report and summarise; a failure is logged in the run folder.

    Raises:
        StageFailed: with the log's path.
        UserError: of what the user gave; it is logged too where a stage had begun.
    """
    from models.backbone.watching import watched, watching

    with watched(pipeline.processes) as watch:
        progress = _run_logged(pipeline, profile, which)
        with watching(pipeline.processes):  # while the first one writes the report
            if pipeline.processes.is_main:
                forget_failure(pipeline.run_dir)
                finish(pipeline.run_dir, progress)
            pipeline.processes.barrier()
    if watch is not None and pipeline.processes.is_main:
        watch.await_ends()


def _run_logged(pipeline: Pipeline, profile: bool, which: dict[str, Any]) -> Any:
    """Run, and log a failure; the run's progress."""
    from pipelines.execution.progress import Progress

    folder = pipeline.run_dir / "profile" if profile else None
    progress = Progress(active=pipeline.processes.is_main, profile=folder)
    try:
        pipeline.run(**which, progress=progress)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, UserError) and not progress.current:
            raise  # nothing had begun that could fail
        stage = f"the {progress.current} stage failed" if progress.current else "the run failed"
        stage += ":" if isinstance(error, StageError) else " with"  # a sentence of ours, or an error's name
        log = write_traceback(pipeline.run_dir)
        if pipeline.processes.is_main:
            with contextlib.suppress(Exception):  # the failure itself is what is to be said
                from pipelines.report.page import write_report

                progress.say(f"report: {write_report(pipeline.run_dir, progress.say)}")
        if isinstance(error, UserError):
            progress.say(log_line(log))
            raise
        raise StageFailed(f"{stage} {summary_of(error, bool(progress.current))}\n        {log_line(log)}") from error
    return progress


def forget_failure(run_dir: Path) -> None:
    """Remove what a failure that is overcome has left: its logs, and the report that was written right behind them.

    A report of before the failure stays the previous one.
    """
    logs, report = list(run_dir.glob("error*.log")), run_dir / REPORT
    if report.is_file() and any(report.stat().st_mtime_ns >= log.stat().st_mtime_ns for log in logs):
        report.unlink()
    for log in logs:
        log.unlink()


def finish(run_dir: Path, progress: Any) -> None:
    """The report, the table of systems, and where things lie."""
    from pipelines.cli.summary import show_summary
    from pipelines.report.page import write_report

    report = write_report(run_dir, progress.say)
    show_summary(run_dir, progress.console)
    progress.say(f"report: {report}")


def show_settings(recipe: Path, overrides: Sequence[str] | None) -> None:
    """Every setting with its value, as the YAML of a recipe that says the same."""
    print(resolved_yaml(make_pipeline(recipe, overrides, None, None).recipe), end="")


def show_plan(
    recipe: Path,
    overrides: Sequence[str] | None,
    run_dir: Path | None,
    inputs: Sequence[str] | None,
    store: Path | None = None,
    as_json: bool = False,
) -> None:
    """The stages with what would happen to them, and how long those take that are not finished."""
    pipeline = make_pipeline(recipe, overrides, run_dir, inputs, store)
    from pipelines.cli.tables import console, plan_as_json, print_plan
    from pipelines.run.data_health import health_of
    from pipelines.run.rehearsal import rehearse
    from pipelines.run.rehearsed_rows import partly_rehearsed
    from pipelines.stages.keys import UNKNOWN

    require_taken(pipeline, pipeline.stages)
    plans = pipeline.plan()
    from data.storage.file_hashes import remembered
    from pipelines.run.plan_time import PlanTime

    time = PlanTime(pipeline.details_after(plans), [p.name for p in plans if p.status in ("new", "stale")])
    seconds, assumed = time.seconds, time.assumptions()
    findings = [found.text for found in health_of(pipeline).findings]
    if as_json:
        warnings: list[str] = []
        rehearse(pipeline, pipeline.stages, warnings.append)
        found = plan_as_json(pipeline.recipe, pipeline.run_dir, plans, seconds, assumed)
        warnings += [text for text in (pipeline.details.sharding, time.shorter_run()) if text]
        partly = partly_rehearsed(pipeline.corpus, pipeline.stages)
        return console().print_json(data=found | {"findings": findings, "warnings": warnings, "rehearsed": partly})
    kept = pipeline.kept()
    print_plan(pipeline.recipe, pipeline.run_dir, plans, pipeline.corpus, kept, findings, seconds, assumed)
    for text in (pipeline.details.sharding, time.shorter_run()):
        if text:
            console().print(text, style="yellow", markup=False)
    rehearse(pipeline, pipeline.stages, lambda text: print(f"warning: {text}"))
    for line in partly_rehearsed(pipeline.corpus, pipeline.stages):
        print(line)
    with remembered():
        unknown = UNKNOWN in pipeline.base_key.partition("@")[2].split("+")[0]
    if unknown:
        name = pipeline.recipe.base
        there = isinstance(name, str) and (pipeline.recipe.base_dir / name).is_dir()  # a known name comes first
        folder = f"./{name} for the folder next to the recipe" if there else "a folder"
        print(
            f"base {name}: its commit is not known, for neither the hub nor the cache knows it; "
            f"a run would stop. Download it first, or name {folder}"
        )


def show_fit(
    recipe: Path,
    overrides: Sequence[str] | None,
    run_dir: Path | None,
    inputs: Sequence[str] | None,
    memory: str | None,
    write: Path | None,
) -> None:
    """The largest settings that fit a memory, the memory of each role and phase, and a recipe that has them.

    Raises:
        UserError: no size, a file of another folder, a base whose sizes are not known, or nothing fits.
    """
    if memory is None:
        raise UserError("--write: belongs to --fit: say into what memory the recipe must fit, for example --fit 24GB")
    if write is not None and write.resolve().parent != recipe.resolve().parent:
        raise UserError(
            f"--write {write}: write it next to {recipe}, since relative paths start from a recipe's folder"
        )
    if write is not None and write.exists() and write.samefile(recipe):
        raise UserError(f"--write {write}: is the recipe itself, whose comments would be lost; choose another name")
    if write is not None:
        check_outside(write, "--write")
    from models.backbone.artifacts import replace_text
    from pipelines.cli.tables import print_fit
    from pipelines.run.fit import with_settings

    pipeline = make_pipeline(recipe, [*(overrides or ()), f"runtime.fit={memory}"], run_dir, inputs)
    fit = pipeline.details.fit
    found = fit.best()
    unknown = [name for name in fit.stages if fit.takes(name, found.settings).parts is None]
    if unknown:
        raise UserError(
            f"--fit: what {', '.join(unknown)} would take is not known: base {pipeline.recipe.base} is not on this "
            "machine; download it first (`hf download NAME`; `trivet models` has the names)"
        )
    print_fit(fit, found)
    if found.misfits:
        raise UserError(
            f"{', '.join(found.misfits)}: no setting of memory makes this fit; take a smaller base, or shorter texts "
            "(sft.max_tokens, reward.max_tokens, ppo.max_new_tokens)"
        )
    if write is not None:
        chosen = with_settings(found.recipe, {"runtime.fit": None})
        replace_text(write, resolved_yaml(chosen), print)
        print(f"written to {write}: trivet run {write}")


def the_run(path: Path) -> Path:
    """The run folder of a path, refused by name if it is none."""
    from pipelines.workspace.run_folder import find_run

    return find_run(path)
