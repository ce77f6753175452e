"""``trivet data check`` and ``trivet data fix``: their options; heavy libraries are imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data.common.errors import UserError
from pipelines.cli.options import Columns, Ignore

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Inspect data files, and clean them.")


@data_app.command("check")
def check_data(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE... | RECIPE", help="data files, or a recipe", show_default=False)
    ],
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="DIR", help="count tokens with this tokenizer")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    every: Annotated[bool, typer.Option("--all", help="show every bad row and every doubtful place")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="exit code 1 where anything is lost or shared")] = False,
    ignore: Ignore = None,
    columns: Columns = None,
) -> None:
    """Show what is in data files or behind a recipe, and what is wrong.

    Format, counts by role and turn, lengths, languages, bad rows, duplicates and near ones, doubtful rankings, and
    prompts that files share; of a recipe the rows of every source, what limits cut, and held-out prompts in training.

    \b
    trivet data check train.jsonl held_out.jsonl
    trivet data check train.jsonl --columns prompt=question --ignore 'meta_*'
    trivet data check my.yaml --all
    """
    from data.common.redaction import printable
    from pipelines.cli.data import is_recipe, naming_options, reading
    from pipelines.cli.tables import show_data, show_recipe_data

    if len(files) > 1 and (recipe := next(filter(is_recipe, files), None)):
        raise UserError(f"{recipe}: is a recipe, which is checked alone: trivet data check {recipe}")

    if len(files) == 1 and is_recipe(files[0]):
        given = {"--tokenizer": tokenizer, "--ignore": ignore, "--columns": columns}
        if wrong := next((name for name, value in given.items() if value), None):
            raise UserError(f"{wrong} is for files; the recipe says it")
        lost = show_recipe_data(files[0], as_json, every)
    else:
        with naming_options():
            lost = show_data(files, tokenizer, reading(columns, ignore), as_json=as_json, every=every)
    if strict and lost:
        typer.echo("\n".join(f"--strict: {printable(what)}" for what in lost), err=True)
    raise typer.Exit(1 if strict and lost else 0)


@data_app.command("fix")
def fix_data(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a data file", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="COPY", help="the copy: jsonl, json, csv, tsv, txt or parquet"),
    ] = None,
    clean: Annotated[
        list[str] | None,
        typer.Option("--clean", metavar="KEY=VALUE ...", help="what is done, as in data.clean; default: see above"),
    ] = None,
    ignore: Ignore = None,
    columns: Columns = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a copy that is there")] = False,
) -> None:
    """Write a cleaned copy of a data file.

    COPY.changes.jsonl next to it lists every row that was changed or dropped, with file and line. By default characters
    get their normal form (NFC), invisible ones and repeated rows go, and the copy of chats.csv is chats.fixed.csv:
    parquet of parquet, csv of csv, jsonl of all else.

    \b
    trivet data fix chats.parquet
    trivet data fix chats.jsonl --out clean.jsonl
    trivet data fix chats.jsonl --out clean.jsonl --clean mask=[email,phone]
    """
    from data.fix import usual_copy
    from pipelines.cli.data import cleaning, fix, reading

    fix(file, usual_copy(file) if out is None else out, cleaning(clean), reading(columns, ignore), overwrite)
