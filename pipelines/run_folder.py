"""A run's folder: who holds it, and ``run.json`` with what became of each stage."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError
from models.artifacts import write_json
from models.devices import Processes


def read_run(path: Path) -> dict[str, Any]:
    """``run.json`` of a run folder, or an empty dict."""
    try:
        found = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    return found if isinstance(found, dict) else {}


class RunFolder:
    """``run.json`` and the lock of a run folder; only the main process writes."""

    def __init__(self, path: Path, processes: Processes) -> None:
        self.path, self.processes = path, processes

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against a second run; the lock goes with the process, however it ends.

        Raises:
            UserError: somebody else holds it, named by process id; or the folder cannot be written.
        """
        if not self.processes.is_main:
            yield
            return
        lock = self.path / ".lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = lock.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); choose another --run-dir") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise UserError(
                    f"{self.path}: another run holds this folder (process {holder}); wait for it or choose --run-dir"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def note(self, **values: Any) -> None:
        """Set top-level entries of ``run.json``."""
        if self.processes.is_main:
            write_json(self.path / "run.json", {"stages": {}} | read_run(self.path) | values)

    def stage(self, name: str, **values: Any) -> None:
        """Set a stage's entry."""
        if self.processes.is_main:
            run = {"stages": {}} | read_run(self.path)
            run["stages"][name] = values
            write_json(self.path / "run.json", run)
