"""A run's folder: who holds it, and ``run.json`` with what became of each stage."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from data.common.errors import UserError
from data.common.locks import lock
from data.common.redaction import redacted
from data.common.strict_json import read_object
from models.backbone.artifacts import read_artifact, write_json
from pipelines.stages.table import folders

if TYPE_CHECKING:
    from models.backbone.processes import Processes

RUN, LOCK, RECIPE, REPORT = "run.json", ".lock", "recipe.yaml", "report.html"
AT_THE_GATE, FAILED = "stopped at the gate", "failed"  # a stage's status in run.json


class _Stage(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    status: str = ""
    key: str = ""
    artifact: str = ""
    seconds: FiniteFloat = Field(0.0, ge=0)
    peak_memory: int | None = Field(None, ge=0, le=10**18)
    tokens: int | None = Field(None, ge=0, le=10**18)
    lines: list[str] = []


class RunEntries(BaseModel):
    """The shape of ``run.json``."""

    model_config = ConfigDict(strict=True, extra="allow")
    name: str = ""
    seed: int = 0
    recipe_folder: str = "."
    inputs: dict[str, str] = {}
    stages: dict[str, _Stage] = {}
    data: dict[str, Any] = {}


def stopped_at_gate(path: Path, stage: str) -> str:
    """Why a stage of a run has no result, where the gate before it stopped the run; '' where that is not so."""
    entry = read_run(path).get("stages", {}).get(stage, {})
    if entry.get("status") != AT_THE_GATE:
        return ""
    why = "; ".join(entry.get("lines", []))
    return f"{path}: this run was {AT_THE_GATE} before {stage} ({why}), so that there is no result of that stage"


def _after(stage: str) -> list[str]:
    """The stages that run after one."""
    order = list(folders())
    return order[order.index(stage) + 1 :] if stage in order else []


def read_run(path: Path) -> dict[str, Any]:
    """``run.json`` of a run folder, or an empty dict where there is none.

    Raises:
        UserError: it is damaged.
    """
    file = path / RUN
    if not os.path.lexists(file):
        return {}
    fix = "remove it; the same `trivet run` writes it again and keeps the finished stages"
    try:
        found = read_object(file)
        RunEntries.model_validate(found)
    except UserError as error:
        raise UserError(f"{error}; {fix}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:120]
        raise UserError(f"{file}: damaged ({where}: {first['msg']}); {fix}") from error
    return found


def is_run(path: Path) -> bool:
    """Whether a folder is a run: it holds ``run.json``, which nobody but trivet writes. A recipe alone makes no run."""
    return (path / RUN).is_file()


def run_of(path: Path) -> Path | None:
    """The run folder that a path names: itself, or the parent of one of its stages' folders; None for all else.

    A model in or next to a run is no part of it.
    """
    path = path.resolve()
    if is_run(path):
        return path
    return path.parent if path.name in folders().values() and is_run(path.parent) else None


def find_run(path: Path) -> Path:
    """The run folder of a path (``run_of``).

    Raises:
        UserError: it names no run.
    """
    if (run := run_of(path)) is None:
        where = path.resolve()
        raise UserError(f"{where}: no run folder ({RUN}) and no stage of one; `trivet ls` lists the runs")
    return run


def check_outside(path: Path, option: str) -> None:
    """Check whether a place to write to lies outside the results of stages, before the work that fills it.

    One file more in a finished result is damage to it, and what lies in a stage's folder goes with the stage.

    Raises:
        UserError: it lies in a folder that has trivet's manifest or in which a run keeps a stage, or it is ``run.json``
            or the lock of a run.
    """
    path = path.absolute()
    for place in (path.parent.resolve() / path.name, path.resolve()):  # a link may be replaced, or written through
        if place.name in (RUN, LOCK) and is_run(place.parent):
            raise UserError(f"{path}: is trivet's own file of a run; choose another {option}")
        for folder in (place, *place.parents):
            if _keeps_stage(folder) or read_artifact(folder) is not None:
                raise UserError(
                    f"{path}: lies in {folder}, where trivet keeps a stage's result and nothing else may be written; "
                    f"choose another {option}"
                )


def _keeps_stage(folder: Path) -> bool:
    """Whether a folder is a stage's place in a run, or a hidden one next to it, finished or not."""
    names = folders().values()
    return (folder.name in names or folder.name.startswith(tuple(f".{n}." for n in names))) and is_run(folder.parent)


@contextlib.contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold a run folder against other processes; the lock goes with the process, however it ends.

    Raises:
        UserError: somebody else holds it, named by process id; or the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --run-dir") from error
    with file:
        if not lock(file):
            raise UserError(
                f"{path}: another run holds this folder (process {_written(path)}); wait for it or choose --run-dir"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def holder(path: Path) -> str:
    """The process that holds a run folder now, '' if none does. Writes nothing."""
    try:
        with (path / LOCK).open(encoding="utf-8") as file:
            return "" if lock(file, shared=True) else _written(path)
    except (FileNotFoundError, UserError):  # without locks there is no run either
        return ""
    except OSError:
        return _written(path)


def _written(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return (path / LOCK).read_text(encoding="utf-8")[:20].strip() or "unknown"
    return "unknown"


class RunFolder:
    """``run.json`` and the lock of a run folder; only the main process writes."""

    def __init__(self, path: Path, processes: Processes) -> None:
        self.path, self.processes = path, processes

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against a second run.

        Raises:
            UserError: somebody else holds it, or it cannot be written.
        """
        with holding(self.path) if self.processes.is_main else contextlib.nullcontext():
            yield

    def note(self, **values: Any) -> None:
        """Set top-level entries of ``run.json``."""
        if self.processes.is_main:
            write_json(self.path / RUN, redacted({"stages": {}} | read_run(self.path) | values))

    def stage(self, name: str, **values: Any) -> None:
        """Set a stage's entry."""
        if self.processes.is_main:
            run = {"stages": {}} | read_run(self.path)
            run["stages"][name] = values
            if values.get("status") == "done":  # a gate has not seen the new result
                for later in _after(name):
                    if run["stages"].get(later, {}).get("status") == AT_THE_GATE:
                        del run["stages"][later]
            write_json(self.path / RUN, redacted(run))
