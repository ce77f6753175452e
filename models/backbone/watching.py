"""Under what watch a process works: from the moment it seeks the others until it leaves them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from data.common.errors import StageError, UserError
from data.common.number_format import duration
from data.common.redaction import printable
from models.backbone.heartbeat import Group, connect
from models.backbone.peers import Peer, Watch, failure_notice, in_a_line, of_others

MEETING = 30.0  # seconds until it is first said that others have not come; each time after twice as long


class Sibling(Peer):
    """A process of the same launcher that has not joined the others; the launcher itself tells of one that ends."""

    @property
    def died(self) -> bool:
        """False: of one that ends the launcher itself says so."""
        return False

    @property
    def unheard(self) -> str:
        """Where it is before its first beat, in words."""
        return " before the first stage"


@contextlib.contextmanager
def starting(environment: Mapping[str, str]) -> Iterator[None]:
    """Watch the launcher's other processes on this machine while the block waits until all have joined."""
    if not environment.get("RANK", "").isdigit() or environment.get("WORLD_SIZE", "1") == "1":
        yield
        return
    host, own = socket.gethostname(), int(environment["RANK"])
    watch = Watch(Peer(own, host, os.getpid(), __file__), siblings(host))
    for work in (watch.run, lambda: say_who_is_missing(environment, watch.done)):
        threading.Thread(target=work, daemon=True).start()
    try:
        yield
    finally:
        watch.done.set()


def say_who_is_missing(environment: Mapping[str, str], done: threading.Event) -> None:
    """Says, again and again until ``done``, that this process waits for others, which torch does without a word."""
    rank, count, started = environment["RANK"], environment.get("WORLD_SIZE", ""), time.monotonic()
    where, wait = f"{environment.get('MASTER_ADDR', '')}:{environment.get('MASTER_PORT', '')}", MEETING
    while not done.wait(wait):
        waited = duration(time.monotonic() - started)
        text = (
            f"process {rank} has waited {waited} at {where} for the others: WORLD_SIZE={count} speaks of so many, and "
            "they have not all come; start them, or unset RANK, WORLD_SIZE and LOCAL_RANK to run one process"
        )
        print(printable(f"trivet: {text}"), file=sys.stderr, flush=True)
        wait *= 2


def siblings(host: str) -> list[Peer]:
    """This process's siblings that have a rank."""
    found: list[Peer] = []
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(os.getppid()).children():
            with contextlib.suppress(psutil.Error):
                rank = child.environ().get("RANK", "")
                if rank.isdigit() and child.pid != os.getpid():
                    found.append(Sibling(int(rank), host, child.pid, __file__))
    return found


WATCHED: list[Watch | None] = []
"""The watch over the processes of this one's group while there is one; None of a group of one."""


@contextlib.contextmanager
def watched(processes: Group) -> Iterator[Watch | None]:
    """Look after the other processes until the end of the block; within another such block that one goes on."""
    if WATCHED:
        yield WATCHED[-1]
        return
    if processes.world_size == 1:
        yield None
        return
    handle, marker = tempfile.mkstemp(prefix="trivet-process-")
    os.close(handle)
    own = Peer(processes.rank, socket.gethostname(), os.getpid(), marker)
    with starting(os.environ):  # those that have joined are not known by more yet
        found = processes.gather([own])
        beats = connect(processes)
    watch = Watch(own, [p for p in found if p.rank != own.rank], beats)
    if beats is not None:
        beats.start()
    threading.Thread(target=watch.run, daemon=True).start()
    WATCHED.append(watch)
    try:
        yield watch
    finally:
        WATCHED.remove(watch)
        watch.leave()


@contextlib.contextmanager
def watching(processes: Group) -> Iterator[None]:
    """Watch the other processes while the block runs, whose errors they hear of.

    Raises:
        StageError: instead of what a lost connection raises, where another process is lost.
    """
    with watched(processes) as watch:
        if watch is None:
            yield
            return
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            try:
                _tell(watch, error)
            finally:
                watch.leave()
            raise


def _tell(watch: Watch, error: Exception | KeyboardInterrupt) -> None:
    """Let the others hear of an error that ends this process.

    Raises:
        StageError: it is another process that is lost.
    """
    if isinstance(error, UserError | StageError):  # as a rule of all at once
        if watch.beats is not None:
            watch.beats.failure = in_a_line(error)
        return
    interrupted = isinstance(error, KeyboardInterrupt)  # the launcher's signal to the others, or the user's
    if (interrupted or of_others(error)) and (lost := watch.asked()):
        for peer in lost:
            if peer in watch.here and peer.died:
                Path(peer.marker).unlink(missing_ok=True)
        raise StageError(f"process {lost[0].rank} is lost (see above)") from error
    if not interrupted:
        if watch.beats is not None:
            watch.beats.fail(in_a_line(error))
        # itself as well: a launcher's signal may end the others before they hear of it
        watch.report(failure_notice(watch.own, error))
