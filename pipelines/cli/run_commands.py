"""``trivet run``, ``trivet plan`` and a command for each stage: their options."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Annotated

import typer

from data.common.errors import UserError
from pipelines.cli.options import Fresh, Input, RecipeFile, RunDir, Set, StoreDir
from pipelines.cli.run import run_stages
from pipelines.stages.table import STAGES


def run(
    recipe: RecipeFile,
    set_: Set = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="STAGE ...", help="these stages alone")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="begin with this stage")] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="end with this stage")] = None,
    run_dir: RunDir = None,
    fresh: Fresh = False,
    input_: Input = None,
    store: StoreDir = None,
    profile: Annotated[bool, typer.Option("--profile", help="RUN/profile: where time and memory of steps go")] = False,
) -> None:
    """Run the whole pipeline, or part of it.

    Finished, unchanged stages are skipped; what changed, and what follows from it, is run again.

    \b
    trivet run examples/demo.yaml
    trivet run my.yaml --set ppo.kl_coef=0.1 sft.epochs=2 --run-dir runs/less-kl
    trivet run my.yaml --from reward --until ppo
    """
    which = {"only": only or [], "start": from_, "until": until, "fresh": fresh}
    run_stages(recipe, set_, run_dir, input_, **which, store=store, profile=profile)  # type: ignore[arg-type]


def stage_command(name: str) -> Callable[..., None]:
    """The command that runs one stage alone, with the options that all of them share."""

    def command(
        recipe: RecipeFile,
        set_: Set = None,
        run_dir: RunDir = None,
        fresh: Fresh = False,
        input_: Input = None,
        store: StoreDir = None,
    ) -> None:
        run_stages(recipe, set_, run_dir, input_, only=[name], fresh=fresh, store=store)

    command.__doc__ = cleandoc(STAGES[name].command or "")
    return command


def plan(
    recipe: RecipeFile,
    set_: Set = None,
    run_dir: RunDir = None,
    input_: Input = None,
    store: StoreDir = None,
    settings: Annotated[bool, typer.Option("--settings", help="print every setting with its value instead")] = False,
    fit: Annotated[
        str | None,
        typer.Option("--fit", metavar="SIZE", help="find settings that fit a memory such as 24GB; auto: the device's"),
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="with --fit: write the recipe that fits here")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the stages as JSON")] = False,
) -> None:
    """Check a recipe and show what a run would do.

    Reads recipe, data and the base's configuration, and loads no weights. The time of stages that are not finished
    comes from a probe of this machine, a second or two long, whose result is kept for the day unless other
    work was in its way. With --fit it shows the memory of every role and phase instead, and the largest settings
    that fit.

    \b
    trivet plan examples/demo.yaml
    trivet plan my.yaml --set sft.epochs=2
    trivet plan my.yaml --settings          # every setting with its value
    trivet plan my.yaml --fit 24GB --write small.yaml
    """
    from pipelines.cli.run import show_fit, show_plan, show_settings

    if as_json and (settings or fit is not None or write is not None):
        raise UserError("--json: shows the stages, and goes with neither --settings nor --fit and --write")
    if fit is not None or write is not None:
        return show_fit(recipe, set_, run_dir, input_, fit, write)
    if settings:
        return show_settings(recipe, set_)
    show_plan(recipe, set_, run_dir, input_, store, as_json)
