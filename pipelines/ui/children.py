"""Runs that a page has started: child processes that outlive the page and its server, and how they are stopped.

Each has a process group of its own and writes what a terminal would show into ``RUN.log`` next to its run folder.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.common.errors import UserError
from pipelines.ui.commands import COMMAND, environment, shown
from pipelines.workspace.run_folder import check_outside, holder

TAIL = 40_000
"""Bytes of a log that a page shows."""


def log_of(folder: Path) -> Path:
    """Where a run's lines go: next to its folder, whose contents are trivet's own."""
    return folder.with_name(f"{folder.name}.log")


def tail_of(log: Path) -> str:
    """The last lines of a log, whole ones; '' where there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text if size <= TAIL else text.partition("\n")[2]


@dataclass(frozen=True, kw_only=True)
class Child:
    """A run that was started here."""

    arguments: tuple[str, ...]
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def line(self) -> str:
        """The command line that does the same, its lines into the same log."""
        return f"{shown(self.arguments)} >> {shlex.quote(str(log_of(self.folder)))} 2>&1"


@dataclass
class Children:
    """All runs that were started here, by folder; the newest of each."""

    found: dict[Path, Child] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, folder: Path) -> Child | None:
        """The newest run that was started here into a folder."""
        return self.found.get(folder.resolve())

    def start(self, arguments: Sequence[str], folder: Path) -> Child:
        """Start ``trivet run`` and leave it alone.

        Raises:
            UserError: somebody runs into this folder already, it is a stage's, or its log cannot be written.
        """
        check_outside(folder, "run folder")
        with self.lock:
            here = folder.resolve()
            before = self.found.get(here)
            if (before is not None and before.alive) or holder(here):
                raise UserError(f"{folder}: a run goes into this folder already; wait for it, or choose another folder")
            log = log_of(folder)
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("ab") as file:
                    file.write(f"$ {shown(arguments)}\n".encode())
                    file.flush()
                    process = subprocess.Popen(
                        [*COMMAND, *arguments],
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=environment(),
                        start_new_session=True,
                    )
            except OSError as error:
                raise UserError(f"{log}: cannot be written ({error.strerror}); choose another run folder") from error
            child = Child(arguments=tuple(arguments), folder=folder, process=process)
            self.found[here] = child
            return child

    def stop(self, folder: Path) -> None:
        """Ask a run to stop, as Ctrl-C does: at its next safe point; asked once more, at once.

        Raises:
            UserError: it was not started here, so that it is only followed.
        """
        child = self.of(folder)
        if child is None or not child.alive:
            raise UserError(
                f"{folder}: was not started from this page, so it is not stopped from here either; "
                "press Ctrl-C in its own terminal"
                if child is None
                else f"{folder}: has ended already"
            )
        os.killpg(child.process.pid, signal.SIGINT)

    def alive(self) -> list[Child]:
        """Those that still run."""
        return [child for child in self.found.values() if child.alive]

    def farewell(self) -> list[str]:
        """What to say of runs that go on when the server ends, a line for each."""
        return [
            f"{child.folder}: still runs (process {child.process.pid}), its lines are in {log_of(child.folder)}; "
            f"`trivet watch {shlex.quote(str(child.folder))}` follows it, `kill -INT -{child.process.pid}` stops it"
            for child in self.alive()
        ]

    def wait(self, seconds: float) -> None:
        """Wait until none runs, at most so long."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            time.sleep(0.05)
