"""The command line: reads arguments, calls the pipeline, turns failures into messages and exit codes.

Knows nothing of how a stage runs. Heavy libraries are imported inside commands, so that help is quick.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Annotated

import typer

from data.common.errors import UserError
from models.backbone.launch import check_alone
from pipelines.cli import evaluate as cli_evaluate
from pipelines.cli import export as cli_export
from pipelines.cli import folders as cli_folders
from pipelines.cli import import_base as cli_import
from pipelines.cli.data_commands import data_app
from pipelines.cli.exit_codes import exit_code, spread_values
from pipelines.cli.options import (
    AsDemonstrations,
    AsDocuments,
    AsPrompts,
    AsRankings,
    Columns,
    Fresh,
    Ignore,
    Input,
    RecipeFile,
    RunDir,
    RunFolder,
    Set,
    StoreDir,
)
from pipelines.cli.run import run_stages
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


@app.command()
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


def add_stage_commands(app: typer.Typer) -> None:
    """A command for every stage of the table that has none."""
    there = {one.name for one in app.registered_commands}
    for name, stage in STAGES.items():
        if stage.command is not None and name not in there:
            app.command(name)(stage_command(name))


@app.command()
def init(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE ...]", help="data files, or '{path: FILE, header: false}'", show_default=False),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="a name, folder, hub id, or scratch: a base of its own")
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option("--for", metavar="MACHINE", help="here (default), cpu, 24gb, 80gb, 8x80gb: cards x memory of one"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the recipe")] = Path("mine.yaml"),
    demonstrations: AsDemonstrations = None,
    rankings: AsRankings = None,
    prompts: AsPrompts = None,
    documents: AsDocuments = None,
    held_out: Annotated[
        str | None, typer.Option("--held-out", metavar="SHARE|FILE", help="what no stage is trained on")
    ] = None,
    ignore: Ignore = None,
    columns: Columns = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace a recipe that is there, and keep it next to it")
    ] = False,
) -> None:
    """Write a first recipe from base and data.

    Recognises the files, as `trivet data check` does, and says what they are used for: prompts with responses for SFT,
    ranked or compared responses for the reward model, prompts for PPO. Sets what the rows, the base and the machine
    call for, leaves everything else to its default and shows it in a comment, and checks the recipe as `trivet plan`
    does. In a terminal it asks for what is missing.

    \b
    trivet init
    trivet init instructions.jsonl rankings.jsonl --base ./my-base
    trivet init instructions.jsonl --prompts lines.txt --base ./my-base --for 24gb
    """
    from pipelines.cli.init import Asked, write_recipe

    said = {"demonstrations": demonstrations, "rankings": rankings, "prompts": prompts, "documents": documents}
    parts = {path: part for part, paths in said.items() for path in paths or ()}
    write_recipe(
        Asked(
            files=files or (),
            parts=parts,
            base=base,
            machine=machine,
            out=out,
            held_out=held_out,
            columns=columns or (),
            ignore=ignore or (),
            force=force,
        )
    )


add_stage_commands(app)
app.command()(cli_evaluate.evaluate)


@app.command()
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
    comes from a probe of this machine, a second or two long, whose result is kept for the day. With --fit it shows the
    memory of every role and phase instead, and the largest settings that fit.

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


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="a name, or a model folder", show_default=False)
    ] = None,
) -> None:
    """List the base models by name, or describe one.

    Needs no network.

    \b
    trivet models
    trivet models qwen2.5-0.5b
    trivet models ./my-base
    """
    from pipelines.cli.tables import show_model, show_models

    show_models() if name is None else show_model(name)


@app.command()
def score(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL", help="a run, a reward adapter, a classifier, a scorer's address", show_default=False
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="prompts and responses", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="write here instead of standard output")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="NAME", help="which label of a classifier")] = None,
    ignore: Ignore = None,
    columns: Columns = None,
) -> None:
    """Reward the responses in a file, one JSON line each.

    By a run's reward model, an exported one, any Transformers folder for sequence classification, or a remote scorer.

    \b
    trivet score runs/demo answers.jsonl --out scored.jsonl
    trivet score http://127.0.0.1:8791/ answers.jsonl
    trivet score runs/demo answers.csv --columns completion=reply
    trivet score ./some-reward-model answers.jsonl
    """
    from pipelines.cli.data import reading
    from pipelines.run.score import score_file

    rows = score_file(run, file, out, label, reading(columns, ignore), lambda text: typer.echo(text, err=True))
    typer.echo(f"{rows} responses scored" + (f", written to {out}" if out else ""), err=True)


@app.command("serve-reward")
def serve_reward(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_FUNCTION", help="a run, a reward model, or file.py:function")
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one")] = 8791,
) -> None:
    """Serve a reward model or a function over HTTP.

    To PPO runs on this machine: an example of a remote scorer.

    \b
    trivet serve-reward runs/demo
    trivet serve-reward my_rewards.py:kindness --port 0
    """
    from pipelines.cli.serve_reward import serve

    serve(source, port)


@app.command()
def serve(
    run: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="a run, or any model", show_default=False)],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="base, sft or ppo of a run; without it, all of them")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one")] = 8790,
) -> None:
    """Serve a run's models by OpenAI's protocol.

    Chat and completions with streaming, for programs on this machine; all models of a run stand on its one base, and
    a request names one as its `model`.

    \b
    trivet serve runs/demo
    trivet serve runs/demo --stage ppo --port 0
    """
    from pipelines.cli.serve import serve as serve_models

    serve_models(run, stage, port)


@app.command("rollout-server", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def rollout_server(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="whose base and limits it serves")],
    python: Annotated[str, typer.Option("--python", metavar="PATH", help="the interpreter that has vLLM")] = "python3",
    host: Annotated[str, typer.Option("--host", metavar="NAME", help="where it listens")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, metavar="N", help="and its port")] = 8000,
    show: Annotated[bool, typer.Option("--print", help="print the command and start nothing")] = False,
) -> None:
    """Start a vLLM server that samples a recipe's rollouts.

    vLLM lives in an environment of its own. Flags that trivet does not know go to vLLM.

    \b
    trivet rollout-server recipe.yaml --python vllm-env/bin/python
    trivet rollout-server recipe.yaml --print --tensor-parallel-size 2
    """
    from pipelines.cli.rollout_server import serve
    from pipelines.cli.run import make_pipeline

    raise typer.Exit(serve(make_pipeline(recipe, None, None, None).recipe, python, host, port, context.args, show))


@app.command()
def chat(
    run: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="a run, or any model", show_default=False)],
    stage: Annotated[str | None, typer.Option("--stage", metavar="STAGE", help="base, sft or ppo of a run")] = None,
    compare_with: Annotated[
        str | None, typer.Option("--compare-with", metavar="STAGE_OR_PATH", help="a second model that responds as well")
    ] = None,
    old_name: Annotated[str | None, typer.Option("--beside", hidden=True)] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="system prompt")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0, help="0 is greedy; default 1")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, metavar="N", help="longest response")] = None,
    preferences: Annotated[Path | None, typer.Option("--preferences", metavar="FILE", help="where votes go")] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="seed of the sampling")] = None,
) -> None:
    """Talk to a model, or to two side by side.

    With --compare-with both respond, each with its reward, and your votes become training data.

    \b
    trivet chat runs/demo
    trivet chat runs/demo --stage ppo --compare-with sft --preferences mine.jsonl
    trivet chat qwen2.5-0.5b-instruct
    """
    from pipelines.cli.chat import talk

    if old_name is not None:
        raise UserError(f"--beside is called --compare-with: trivet chat {run} --compare-with {old_name}")
    talk(
        *(run, stage, compare_with),
        system=system,
        temperature=temperature,
        max_new_tokens=tokens,
        preferences=preferences,
        seed=seed,
    )


app.command("import")(cli_import.import_base)


app.command()(cli_export.export)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN [RUN ...]", help="run folders, such as runs/demo", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="where a comparison goes; default comparison.html", show_default=False
        ),
    ] = None,
) -> None:
    """Write the report of a run again, or compare runs.

    Of one run: its self-contained report.html. Of several: one page that compares them.

    \b
    trivet report runs/demo
    trivet report runs/demo runs/less-kl --out less-kl.html
    """
    from pipelines.cli.run import the_run

    folders = [the_run(run) for run in runs]
    if len(folders) == 1 and out is not None:
        raise UserError(f"--out names the page of a comparison; the report of one run is {folders[0] / 'report.html'}")
    if len(folders) == 1:
        from pipelines.report.page import write_report

        typer.echo(str(write_report(folders[0], lambda text: typer.echo(text, err=True))))
    else:
        from pipelines.report.compare import write_comparison

        typer.echo(
            str(write_comparison(folders, out or Path("comparison.html"), lambda text: typer.echo(text, err=True)))
        )


@app.command()
def watch(
    run: RunFolder,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one")] = 8790,
) -> None:
    """Serve the growing report to this machine's browser.

    While the run goes, and after.

    \b
    trivet watch runs/demo
    trivet watch runs/demo --port 0
    """
    from pipelines.cli.watch import watch as serve

    serve(run, port)


@app.command()
def ui(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one")] = 8780,
    browser: Annotated[bool, typer.Option("--open", help="open the page in the browser as well")] = False,
) -> None:
    """Serve pages to start from, to this machine's browser.

    Choose a base and data, with the doctor's verdict; draft a recipe and change it in a form; plan, start, follow, stop
    and resume runs; compare them; chat with two models side by side and vote. Every page shows the command line that
    does the same. Needs the extra: pip install 'trivet[ui]'.

    The address that is printed has a token, so that no other user of this machine can use the pages. Runs that are
    started there outlive the page and this command, which says at its end how to follow and stop them.

    \b
    trivet ui
    trivet ui --open
    trivet ui --port 0
    """
    from pipelines.cli.ui import serve

    serve(port, browser)


for command in (cli_folders.verify, cli_folders.ls, cli_folders.gc):
    app.command()(command)


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
        found = app(args=spread_values(given), prog_name="trivet", standalone_mode=False)
        ended.code = found if isinstance(found, int) else 0
    return ended.code
