"""The recipe that each finished result of a run was made with: ``recipes/STAGE-KEY.json`` in the run's folder.

``recipe.yaml`` is what the newest call asked for. A call that was stopped, or that ran some stages alone, leaves
results of other settings behind it, and whoever opens one of those needs its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.common.strict_json import read_object
from models.backbone.artifacts import previous_folder, read_artifact, write_json
from pipelines.recipe.schema import Recipe
from pipelines.stages.table import STAGES

FOLDER = "recipes"
LETTERS = 16  # of a key, in the name of a file


def keep(run: Path, stage: str, recipe: Recipe) -> None:
    """Write down the recipe of the result that lies in a run; one that is there already stays."""
    if (file := _file(run, stage)) is not None and not file.is_file():
        file.parent.mkdir(exist_ok=True)
        values = {"recipe_folder": str(recipe.base_dir), "recipe": recipe.model_dump(mode="json")}
        write_json(file, values, sort_keys=False)


def kept(run: Path, stage: str) -> dict[str, Any] | None:
    """``recipe_folder`` and ``recipe`` of the result that lies in a run; None where nobody kept it.

    Raises:
        UserError: the file is damaged.
    """
    file = _file(run, stage)
    return read_object(file) if file is not None and file.is_file() else None


def of_no_result(run: Path) -> list[Path]:
    """The files of a run whose results are gone: neither in their place nor beside it, as the last one before."""
    made = {stage: run / spec.folder for stage, spec in STAGES.items()}
    places = [(stage, place) for stage, final in made.items() for place in (final, previous_folder(final))]
    places += [(stage, run / f".{final.name}.old") for stage, final in made.items()]
    needed = {_of(run, stage, place) for stage, place in places}
    return [file for file in sorted((run / FOLDER).glob("*.json")) if file not in needed]


def _file(run: Path, stage: str) -> Path | None:
    return _of(run, stage, run / STAGES[stage].folder)


def _of(run: Path, stage: str, result: Path) -> Path | None:
    there = read_artifact(result)
    return None if there is None or not there.key else run / FOLDER / f"{stage}-{there.key[:LETTERS]}.json"
