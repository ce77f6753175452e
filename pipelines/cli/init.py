"""``trivet init``: options, or questions in a terminal, into a recipe that is written next to nothing else."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer
from pydantic import ValidationError

from data.common.errors import UserError
from data.common.redaction import printable
from data.local_files import why_absent
from data.source_settings import Source
from models.backbone.artifacts import check_destination, replace_text
from pipelines.workspace.run_folder import check_outside

if TYPE_CHECKING:
    from pipelines.init.draft import Draft, Wanted
    from pipelines.init.files import Given

T = TypeVar("T")
EXAMPLE = "trivet init instructions.jsonl rankings.jsonl --base qwen2.5-0.5b"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says; None and empty are not said."""

    files: Sequence[str]
    parts: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None
    machine: str | None = None
    out: Path
    held_out: str | None = None
    columns: Sequence[str] = ()
    ignore: Sequence[str] = ()
    force: bool = False


def write_recipe(asked: Asked) -> None:
    """Write a recipe, asking in a terminal for what is missing.

    Raises:
        UserError: something is missing and nobody can be asked, a recipe is there already, a file of no known
            format, or whatever ``trivet plan`` would refuse.
    """
    check_destination(asked.out, "--out")
    check_outside(asked.out, "--out")
    if asked.out.exists() and not asked.force:
        raise UserError(f"{asked.out}: is there already; choose another --out, or replace it with --force")
    may_ask = sys.stdin.isatty() and sys.stdout.isatty()
    files = [*dict.fromkeys([*asked.files, *asked.parts])]
    asks = may_ask and not (files and asked.base)
    if not asks:
        _require(files, asked.base)
    base = asked.base or _answered("Base (a name of `trivet models`, a folder, a hub id, or scratch)", _base(asked))
    _base(asked)(base)
    sources = [source_of(file) for file in files] or _answered("Data files, with blanks between them", _files)
    from pipelines.cli.data import naming_options, reading
    from pipelines.init.draft import SCRATCH, Wanted, draft
    from pipelines.init.files import examined
    from pipelines.init.machines import COMMON, machine_of

    held_out, machine = _held_out(asked.held_out), machine_of(asked.machine or "here")
    read_as = reading(asked.columns, asked.ignore)
    parts = {source_of(file).path: part for file, part in asked.parts.items()}
    if may_ask and base != SCRATCH:
        parts |= _asked_parts([one.path for one in sources if one.path not in parts])
    columns = {} if read_as is None else read_as.columns
    with naming_options():
        given, check = examined(sources, parts, base == SCRATCH, columns, asked.ignore)
    for one in given:
        typer.echo(_verdict(one))
    if asks and asked.machine is None:
        machine = _answered(f"Machine ({', '.join(COMMON)})", machine_of, "here")
    wanted = Wanted(
        name=_run_name(asked.out),
        base=_as_recipe_names_it(base, asked.out),
        file=asked.out,
        given=given,
        check=check,
        machine=machine,
        held_out=held_out,
        ignore=tuple(asked.ignore),
    )
    _write(wanted, draft(wanted), asked)


def _write(wanted: Wanted, made: Draft, asked: Asked) -> None:
    for text in made.warnings:
        typer.echo(printable(f"warning: {text}"))
    if asked.out.exists() and not asked.force:  # written by somebody else meanwhile
        raise UserError(f"{asked.out}: is there now; choose another --out, or replace it with --force")
    replace_text(asked.out, made.text, typer.echo)
    typer.echo(printable(f"{asked.out}: written for {wanted.machine.title}; stages: {', '.join(made.stages)}"))
    count = len(made.warnings)
    warned = f", with {count} warning{'s' * (count > 1)} (above)" if count else ""
    typer.echo(printable(f"`trivet plan {asked.out}` passes{warned}; it says how long a run takes"))


def _require(files: Sequence[str], base: str | None) -> None:
    missing = [
        *([] if files else ["data files"]),
        *(
            []
            if base
            else ["--base (a name of `trivet models`, a folder, a hub id, or scratch for one from your texts)"]
        ),
    ]
    if missing:
        raise UserError(f"init needs {' and '.join(missing)}. For example: {EXAMPLE}")


def _verdict(one: Given) -> str:
    from pipelines.init.files import STAGE_OF

    return printable(f"{one.path}: {one.part}, for {STAGE_OF[one.part]} ({one.facts()})")


# -- questions --------------------------------------------------------------------------------------------------------


def _answered(question: str, read: Callable[[str], T], usual: str | None = None) -> T:
    """The answer to a question, which is asked again with the reason while it cannot be used."""
    while True:
        text = str(typer.prompt(question, default=usual))
        try:
            return read(text)
        except UserError as error:
            typer.echo(printable(str(error)))


def _base(asked: Asked) -> Callable[[str], str]:
    def known(name: str) -> str:
        from models.hub.registry import resolve_base
        from pipelines.init.draft import SCRATCH

        if name != SCRATCH:
            resolve_base(_as_recipe_names_it(name, asked.out), base_dir=asked.out.absolute().parent)
        return name

    return known


def _files(text: str) -> list[Source]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text}: {error}") from None
    found = [source_of(word) for word in words]
    for source in found:
        if not Path(source.path).is_file():
            raise UserError(f"{source.path} {why_absent(Path(source.path))}")
    return found


def _asked_parts(files: Sequence[str]) -> dict[str, str]:
    """What plain text is, which nothing in it says."""
    from data.readers.files import is_text

    def part(text: str) -> str:
        if text not in ("prompts", "documents"):
            raise UserError(f"{text!r}: write prompts or documents")
        return text

    question = "{}: plain text; one prompt a line (prompts), or texts to pretrain a base on (documents)"
    return {file: _answered(question.format(file), part, "prompts") for file in files if is_text(Path(file))}


# -- values -----------------------------------------------------------------------------------------------------------


def source_of(text: str) -> Source:
    """A file by its path, or as a recipe writes one that is read by settings of its own.

    Raises:
        UserError: a mapping with a setting that no source has, or a value that it does not take.
    """
    if not text.lstrip().startswith("{"):
        return Source(path=str(Path(text).expanduser()))
    from pipelines.recipe.errors import problems_of, recipe_error
    from pipelines.recipe.yaml_source import read_text

    source = read_text(text, "FILE")
    try:
        found = Source.model_validate(source.data)
    except ValidationError as error:
        raise recipe_error(source, problems_of(error, source)) from None
    return found.model_copy(update={"path": str(Path(found.path).expanduser())})


def _as_recipe_names_it(base: str, out: Path) -> str:
    """The base as the recipe names it: a folder, which is given from here, from the recipe's folder."""
    folder = Path(base).expanduser()
    if not folder.is_dir():
        return base
    whole, start = folder.absolute(), out.absolute().parent
    return f"./{whole.relative_to(start)}" if whole.is_relative_to(start) else str(whole)


def _run_name(out: Path) -> str:
    """The recipe's name: that of its file, without what cannot name a run folder."""
    name = "".join(c if c.isalnum() or c in "-_. " else "-" for c in out.stem).lstrip("-. ")
    return name or "run"


def _held_out(text: str | None) -> float | Path | None:
    if text is None:
        return None
    try:
        share = float(text)
    except ValueError:
        path = Path(text).expanduser()
        if not path.is_file():
            raise UserError(f"--held-out {text}: neither a share such as 0.1 nor a file of prompts") from None
        return path
    if not 0 < share < 1:
        raise UserError(f"--held-out {text}: a share lies between 0 and 1")
    return share
