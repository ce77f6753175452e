"""Finished stages of a run that were made from another result than the one that is there now.

A call that runs one stage again (`trivet ppo RECIPE`) leaves those behind it as they are, an evaluation among them:
what they say is of the result before. `trivet verify` reports the same of every link, with the keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.strict_json import read_object
from models.backbone.artifacts import Artifact, read_artifact
from pipelines.stages.table import folders, title_of
from pipelines.workspace.run_folder import RUN


def outdated(run: Path) -> dict[str, str]:
    """Stage -> a sentence, for every finished stage that was made from another result of the run than is there."""
    try:
        noted: Any = read_object(run / RUN)
    except UserError:
        noted = {}
    given = noted.get("inputs") or {}
    found: dict[str, Artifact] = {}
    for name, place in folders().items():
        try:
            if (artifact := read_artifact(run / place)) is not None:
                found[name] = artifact
        except UserError:
            continue
    out: dict[str, str] = {}
    for name, artifact in found.items():
        parents = artifact.manifest.get("parents")
        for parent, key in parents.items() if isinstance(parents, dict) else ():
            if parent in found and parent not in given and found[parent].key != key:
                out.setdefault(name, _sentence(name, parent))
    return out


def _sentence(name: str, parent: str) -> str:
    here, of = title_of(name), title_of(parent)
    said = "its numbers and responses are" if name == "evaluate" else "it is"
    return (
        f"{here} was made from another {of} than the one that is there now: {said} of that one. `trivet run` with the "
        "recipe makes it again"
    )
