"""Where somebody starts: ``trivet init``, ``trivet models`` and ``trivet ui``, their options.

Heavy libraries are imported when a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import AsDemonstrations, AsDocuments, AsPrompts, AsRankings, Columns, Ignore, Port


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


def ui(
    port: Port = 8780,
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
