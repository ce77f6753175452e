"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, such as runs/demo", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C ...", help="change settings of the recipe; the value is YAML"),
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", metavar="DIR", help="instead of runs/<name of the recipe>")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one")]
Fresh = Annotated[bool, typer.Option("--fresh", help="run again what is finished and unchanged")]
StoreDir = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="a folder in which runs share finished stages")
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="STAGE=PATH ...", help="take a stage's result from a folder: ours, PEFT or Hugging Face"
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore", metavar="COLUMN", help="a column, or pattern of columns, that need not be read; may be repeated"
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="OURS=THEIRS ...",
        help="what a format's column is called in the file; several, or repeated",
    ),
]
AsDemonstrations = Annotated[
    list[str] | None,
    typer.Option("--demonstrations", metavar="FILE", help="a file that is demonstrations, for SFT; may be repeated"),
]
AsRankings = Annotated[
    list[str] | None,
    typer.Option("--rankings", metavar="FILE", help="a file that is rankings, for the reward model; may be repeated"),
]
AsPrompts = Annotated[
    list[str] | None,
    typer.Option("--prompts", metavar="FILE", help="a file that is prompts, for PPO and evaluation; may be repeated"),
]
AsDocuments = Annotated[
    list[str] | None,
    typer.Option(
        "--documents", metavar="FILE", help="a file that is documents, for a base from scratch; may be repeated"
    ),
]
