"""Finished stages that the runs of a store share: taken from it by key, and put into it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from models.backbone.artifacts import partial_folder, read_artifact
from models.backbone.processes import Processes
from pipelines.run.opened import changed_files
from pipelines.stages.table import STAGES
from pipelines.workspace.run_folder import RunFolder
from pipelines.workspace.store import Store
from stages.safe_points.stopped import read_work, work_of


class SharedStages:
    """A run's side of a store.

    Args:
        store: None: this run shares nothing.
        run_dir: where the run keeps its stages.
        base_dir: where relative paths of its recipe start.
        processes: that work together; the main one asks the store, and all follow.
    """

    def __init__(self, store: Store | None, run_dir: Path, base_dir: Path, processes: Processes) -> None:
        self.store, self.run_dir, self.base_dir, self.processes = store, run_dir, base_dir, processes

    def holds(self, key: str) -> bool:
        """Whether the store has a result of this key, made with the very files that functions open here."""
        found = self.store.find(key) if self.store is not None else None
        return found is not None and not changed_files(found.manifest, self.base_dir)

    def take(self, name: str, key: str, folder: RunFolder) -> bool:
        """Put the stage of this key into the run folder; whether there was one."""
        if self.store is None:
            return False
        found, final = False, self.run_dir / STAGES[name].folder
        if self.processes.is_main:
            found = self.holds(key) and self.store.fetch(key, final) is not None
            if found:
                _let_go(final, key)
                folder.stage(name, status="done", key=key, artifact=STAGES[name].folder, seconds=0.0, stored=True)
        return bool(self.processes.gather([found])[0])

    def put(self, name: str, warn: Callable[[str], None]) -> None:
        """Share a stage of the run folder, where it is finished."""
        done = read_artifact(self.run_dir / STAGES[name].folder)
        if self.store is None or not self.processes.is_main or done is None:
            return
        try:
            self.store.put(done)
        except OSError as error:  # the stage itself is finished and safe
            warn(f"{name}: not shared, {self.store.root} cannot be written ({error.strerror or error})")


def _let_go(final: Path, key: str) -> None:
    """Remove the checkpoints of a key whose stage is finished now; those of other keys stay."""
    for folder in (work_of(final, key), partial_folder(final)):
        if folder is not None and ((work := read_work(folder)) is None or work.key == key):
            shutil.rmtree(folder, ignore_errors=True)
