"""The other processes of a run on this machine: one that dies is named, for launchers do not say what it means.

Each process has a marker, a file that it removes when it leaves in order; a process that is gone and whose marker is
there was killed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.common.errors import StageError, UserError

if TYPE_CHECKING:
    from models.backbone.processes import Processes

GRACE = 20.0
"""Seconds after which a process ends by itself when another has died and it still waits for it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One process."""

    rank: int
    host: str
    pid: int
    marker: str

    @property
    def died(self) -> bool:
        """Whether it is gone without having left in order."""
        return not alive(self.pid) and Path(self.marker).exists()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # no such files on this system
        return True


def death_notice(dead: list[Peer]) -> str:
    """What is said of processes that died."""
    who = ", ".join(f"process {p.rank} (pid {p.pid} on {p.host})" for p in dead)
    return (
        f"{who} died, most likely killed by a signal or for want of memory, and the others cannot continue without it; "
        "the same command resumes from the newest checkpoint"
    )


def dead_among(peers: list[Peer], wait: float = 0.0) -> list[Peer]:
    """Those that died; waits at most ``wait`` seconds, since a lost connection is seen before the process is."""
    until = time.monotonic() + wait
    while not (dead := [p for p in peers if p.died]) and time.monotonic() < until:
        time.sleep(0.1)
    return dead


class Watch:
    """Reports once, from whichever thread sees it first, that others died."""

    def __init__(self, peers: list[Peer]) -> None:
        self.peers, self.done, self.lock, self.said = peers, threading.Event(), threading.Lock(), False

    def print_deaths(self, dead: list[Peer]) -> None:
        with self.lock:
            if dead and not self.said:
                print(f"trivet: {death_notice(dead)}", file=sys.stderr, flush=True)
                self.said = True

    def run(self) -> None:
        """End this process when another died and the main thread still waits for it after a while."""
        while not self.done.wait(0.5):
            if dead := dead_among(self.peers):
                self.print_deaths(dead)
                if not self.done.wait(GRACE):
                    os._exit(3)
                return

    def asked(self) -> list[Peer]:
        """Who died, reported; a launcher's signal to end, which comes at the same time, does not break this off."""
        for _ in range(3):
            with contextlib.suppress(KeyboardInterrupt):
                dead = dead_among(self.peers, wait=3.0)
                self.print_deaths(dead)
                return dead
        return []


@contextlib.contextmanager
def watching(processes: Processes) -> Iterator[None]:
    """Watch the other processes on this machine while the block runs.

    Raises:
        StageError: instead of what a lost connection raises, where another process died.
    """
    if processes.world_size == 1:
        yield
        return
    handle, marker = tempfile.mkstemp(prefix="trivet-process-")
    os.close(handle)
    host = socket.gethostname()
    found = processes.gather([Peer(processes.rank, host, os.getpid(), marker)])
    watch = Watch([p for p in found if p.host == host and p.rank != processes.rank])
    threading.Thread(target=watch.run, daemon=True).start()
    try:
        yield
    except (UserError, StageError):
        raise
    except (Exception, KeyboardInterrupt) as error:  # a lost connection, or the launcher's signal to the others
        if dead := watch.asked():
            for peer in dead:
                Path(peer.marker).unlink(missing_ok=True)
            raise StageError(f"process {dead[0].rank} died (see above)") from error
        raise
    finally:
        watch.done.set()
        Path(marker).unlink(missing_ok=True)
