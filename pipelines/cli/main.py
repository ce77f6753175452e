"""The command line: its commands, and failures as messages and exit codes.

Knows nothing of how a stage runs. Heavy libraries are imported inside commands, so that help is quick.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from models.backbone.launch import check_alone
from pipelines.cli.data_commands import data_app
from pipelines.cli.evaluate import evaluate
from pipelines.cli.exit_codes import exit_code, spread_values
from pipelines.cli.export import export
from pipelines.cli.folders import gc, ls, verify
from pipelines.cli.import_base import import_base
from pipelines.cli.result_commands import report, score, watch
from pipelines.cli.run_commands import plan, run, stage_command
from pipelines.cli.serving_commands import chat, rollout_server, serve, serve_reward
from pipelines.cli.start_commands import init, models, ui
from pipelines.cli.words import plain_words
from pipelines.stages.table import STAGES

app = typer.Typer(
    name="trivet",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="RLHF from one recipe: instruction SFT, a reward model on ranked responses, PPO, held-out evaluation.\n\n"
    "\b\nStart here:\n  trivet run examples/demo.yaml     everything on a small task, on a CPU\n"
    "  trivet init --help                a recipe for your base and your data\n"
    "  trivet ui                         all of it in a browser, on this machine\n"
    "  trivet plan examples/demo.yaml    what a run would do\n"
    "  trivet models                     base models by name\n"
    "  trivet COMMAND --help             one command, with examples\n\n"
    "Exit codes: 0 done; 2 the input is wrong; 3 a stage failed; 130 and 143 stopped by a signal.",
)
app.add_typer(data_app, name="data")


SHARED = ("run", "evaluate", "plan", "rollout-server")
"""Commands besides the stages' that several processes of one launcher may be given."""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"trivet {version('trivet')}")
        except PackageNotFoundError:
            typer.echo("trivet (from a checkout, not installed)")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options of all commands."""
    command = context.invoked_subcommand
    if command is not None and command not in SHARED and command not in STAGES:
        check_alone(command, os.environ)


def add_stage_commands(app: typer.Typer) -> None:
    """A command for every stage of the table that has none."""
    there = {one.name for one in app.registered_commands}
    for name, stage in STAGES.items():
        if stage.command is not None and name not in there:
            app.command(name)(stage_command(name))


def add_commands(app: typer.Typer) -> None:
    """All commands, in the order of the help."""
    app.command()(run)
    app.command()(init)
    add_stage_commands(app)
    app.command()(evaluate)
    app.command()(plan)
    app.command()(models)
    app.command()(score)
    app.command("serve-reward")(serve_reward)
    takes_flags_of_servers = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=takes_flags_of_servers)(serve)
    app.command("rollout-server", context_settings=takes_flags_of_servers)(rollout_server)
    app.command()(chat)
    app.command("import")(import_base)
    app.command()(export)
    app.command()(report)
    app.command()(watch)
    app.command()(ui)
    app.command()(verify)
    app.command()(ls)
    app.command()(gc)


add_commands(app)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    import io
    import os
    import sys

    given = sys.argv[1:] if arguments is None else arguments
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's character set need not hold what data holds
    add_stage_commands(app)
    with exit_code() as ended:
        found = app(args=spread_values(plain_words(given)), prog_name="trivet", standalone_mode=False)
        ended.code = found if isinstance(found, int) else 0
    return ended.code
