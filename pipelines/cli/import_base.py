"""``trivet import``: a GGUF file as a plain folder, which recipes name as their base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data.common.errors import UserError, nearest
from pipelines.workspace.run_folder import check_outside


def import_base(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a GGUF file, or a folder with one", show_default=False)],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="a new folder", show_default=False)],
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="fp32, bf16 or fp16; default: what holds the file's exactly"),
    ] = None,
) -> None:
    """Read a GGUF file into a plain folder.

    Weights are dequantised; tokens, chat template and stop ids are those that the file has. A recipe may name the file
    itself as its base: it is then read into the cache ($TRIVET_CACHE), once. What the folder would compute or split
    otherwise than llama.cpp is refused by name.

    \b
    trivet import SmolLM2-135M-Instruct.Q8_0.gguf --to smollm2
    trivet import model.gguf --to small --dtype bf16
    """
    from models.hub.gguf_base import import_gguf
    from models.hub.registry import gguf_in
    from models.roles.saving import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: no such precision.{nearest(dtype, DTYPES)} One of: {', '.join(DTYPES)}")
    found = gguf_in(file)
    if found is None:
        raise UserError(f"{file}: no GGUF file there (*.gguf)")
    to = to.resolve()
    if to.exists():
        raise UserError(f"{to}: exists already; choose a new folder")
    check_outside(to, "--to")
    import_gguf(found, to, None if dtype is None else DTYPES[dtype], lambda text: typer.echo(text, err=True))
    typer.echo(str(to))
