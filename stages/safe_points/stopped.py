"""What a stage that was stopped has saved: with which settings it started, and where it stays while others are tried.

A stage writes into the hidden folder ``.NAME.partial``. When it starts under another key, that folder is renamed to
``.NAME.stopped-KEY`` with all its checkpoints, and it is renamed back when its key is asked for again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.common.errors import UserError
from data.common.redaction import redacted
from data.common.strict_json import read_object
from models.backbone.artifacts import partial_folder, previous_folder, read_artifact, write_json

CHECKPOINTS = "checkpoints"  # the folder in a stage's hidden one
NAME = re.compile(r"step_([0-9]{1,18})")
WORK_FILE = "begun.json"  # next to the checkpoints, so that it goes with them


class _WorkFile(BaseModel):
    model_config = ConfigDict(strict=True)
    key: str = Field(min_length=1, max_length=200)
    described: dict[str, Any] = {}
    made_with: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class StoppedWork:
    """What a hidden folder says of its stage: the key, what it is the hash of, and how the stage is computed."""

    key: str
    described: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)


def note_work(out: Path, key: str, described: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    """Write down in a stage's hidden folder with which settings it runs."""
    (out / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    write_json(out / CHECKPOINTS / WORK_FILE, redacted({"key": key, "described": described, "made_with": made_with}))


def read_work(out: Path) -> StoppedWork | None:
    """What a hidden folder holds work of; None where it holds none.

    The newest readable checkpoint's key counts, or that of a finished stage that was not yet renamed.
    """
    steps = sorted(_steps(out), reverse=True)
    found = [a for n in steps if (a := read_artifact(out / CHECKPOINTS / f"step_{n}")) is not None]
    key = found[0].key if found else made.key if (made := read_artifact(out)) is not None else ""
    if not key:
        return None
    try:
        noted = _WorkFile.model_validate(read_object(out / CHECKPOINTS / WORK_FILE))
    except (UserError, ValidationError):
        return StoppedWork(key=key)
    return StoppedWork(**noted.model_dump()) if noted.key == key else StoppedWork(key=key)


def newest_step(out: Path) -> int | None:
    """The number of a hidden folder's newest checkpoint."""
    return max(_steps(out), default=None)


def _steps(out: Path) -> list[int]:
    return [int(m[1]) for p in (out / CHECKPOINTS).glob("step_*") if (m := NAME.fullmatch(p.name))]


def stopped_folders(final: Path) -> list[Path]:
    """Hidden folders of a stage that was stopped under other settings, in the order of their names."""
    return sorted(p for p in final.parent.glob(f".{final.name}.stopped-*") if p.is_dir())


def work_of(final: Path, key: str) -> Path | None:
    """The hidden folder with work of this key: the stage's own, or one that was set aside."""
    for folder in (partial_folder(final), *stopped_folders(final)):
        if (work := read_work(folder)) is not None and work.key == key:
            return folder
    return None


def other_work(final: Path, key: str) -> tuple[Path, StoppedWork] | None:
    """A stage's hidden folder with work of another key."""
    out = partial_folder(final)
    work = read_work(out)
    return None if work is None or work.key == key else (out, work)


def place_of(final: Path, key: str) -> Path:
    """Where work of a key is set aside: a name that nothing has."""
    names = [f".{final.name}.stopped-{key[:12]}{more}" for more in ("", *(f"-{n}" for n in range(2, 1000)))]
    return next(p for name in names if not os.path.lexists(p := final.with_name(name)))


def take_up(final: Path, key: str) -> Path | None:
    """Set other work aside and bring back this key's, so that the hidden folder holds nothing of another key.

    Main process only.

    Returns:
        Where the work of the other key stays; None where there was none.
    """
    other, own, aside = other_work(final, key), work_of(final, key), None
    if other is not None:
        aside = place_of(final, other[1].key)
        os.replace(other[0], aside)
    if own is not None and own != partial_folder(final):
        if os.path.lexists(partial_folder(final)):  # holds no work of any key
            os.replace(partial_folder(final), place_of(final, "nothing"))
        os.replace(own, partial_folder(final))
    return aside


def kept_of(final: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Hidden folders of a stage that keep something next to its result, and what each holds, in words."""
    if previous_folder(final).is_dir():
        yield previous_folder(final), f"the {name} that the present one replaced"
    for folder in stopped_folders(final):
        step = newest_step(folder)
        at = "" if step is None else f" at step_{step}"
        yield folder, f"{name} with other settings, stopped{at}"
