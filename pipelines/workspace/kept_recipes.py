"""The recipe that each finished result of a run was made with: ``recipes/STAGE-KEY.json`` in the run's folder.

``recipe.yaml`` is what the newest call asked for. A call that was stopped, or that ran some stages alone, leaves
results of other settings behind it, and whoever opens one of those needs its own.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from models.backbone.artifacts import previous_folder, read_artifact, write_atomic
from pipelines.recipe.schema import Recipe
from pipelines.stages.table import STAGES

FOLDER = "recipes"
LETTERS = 16  # of a key, in the name of a file
NAME = re.compile(rf"(.+)-[0-9a-f]{{{LETTERS}}}\.json")


def keep(run: Path, stage: str, recipe: Recipe) -> None:
    """Write down the recipe of the result that lies in a run, in place of another one under which its key is the same.

    Recipes of one key give one result. They may differ in what no key holds, such as the folder that relative paths
    start from, and there the newest counts.
    """
    if (file := _file(run, stage)) is not None:
        values = {"recipe_folder": str(recipe.base_dir), "recipe": recipe.model_dump(mode="json")}
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        if not file.is_file() or file.read_bytes() != text.encode():
            file.parent.mkdir(exist_ok=True)
            write_atomic(file, text)


def kept_file(run: Path, stage: str) -> Path | None:
    """The file with ``recipe_folder`` and ``recipe`` of the result that lies in a run; None where nobody kept it."""
    file = _file(run, stage)
    return file if file is not None and file.is_file() else None


def of_no_result(run: Path) -> list[Path]:
    """The files of a run whose results are gone: neither in their place nor beside it, as the last one before.

    A file of another name is the user's own. Where a result lies whose manifest cannot be read, nobody knows which file
    is its own, and all of its stage stay.
    """
    places = {stage: _places(run / spec.folder) for stage, spec in STAGES.items()}
    known = {stage for stage, folders in places.items() if all(_known_or_absent(folder) for folder in folders)}
    needed = {_of(run, stage, folder) for stage in known for folder in places[stage]}
    named = ((file, NAME.fullmatch(file.name)) for file in sorted((run / FOLDER).glob("*.json")))
    return [file for file, name in named if name is not None and name[1] in known and file not in needed]


def _places(final: Path) -> list[Path]:
    """Where results of a stage lie: in its place, as the one before, and between the renames of a replacement."""
    return [final, previous_folder(final), *(final.with_name(f".{final.name}.{end}") for end in ("old", "restored"))]


def _known_or_absent(folder: Path) -> bool:
    return not os.path.lexists(folder) or read_artifact(folder) is not None


def _file(run: Path, stage: str) -> Path | None:
    return _of(run, stage, run / STAGES[stage].folder)


def _of(run: Path, stage: str, result: Path) -> Path | None:
    there = read_artifact(result)
    return None if there is None or not there.key else run / FOLDER / f"{stage}-{there.key[:LETTERS]}.json"
