"""What came out of a run: ``trivet score``, ``report`` and ``watch``, their options.

Heavy libraries are imported when a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data.common.errors import UserError
from pipelines.cli.options import Columns, Ignore, Port, RunFolder


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
    from pipelines.cli.data import naming_options, reading
    from pipelines.run.score import score_file

    with naming_options():
        rows = score_file(run, file, out, label, reading(columns, ignore), lambda text: typer.echo(text, err=True))
    typer.echo(f"{rows} responses scored" + (f", written to {out}" if out else ""), err=True)


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


def watch(
    run: RunFolder,
    port: Port = 8790,
) -> None:
    """Serve the growing report to this machine's browser.

    While the run goes, and after.

    \b
    trivet watch runs/demo
    trivet watch runs/demo --port 0
    """
    from pipelines.cli.watch import watch as serve

    serve(run, port)
