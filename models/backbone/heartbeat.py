"""Heartbeats: every process of a run says once a second where it is, and hears the others, on any machine.

Beats come from a thread of their own, so that long work of the main one does not silence them. They go through a store
of rank 0; where it cannot be reached there are none, and nobody is judged by them.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Protocol

from models.backbone.whereabouts import WHEREABOUTS, place_of, waits_for_others

EVERY = 1.0  # seconds between beats
ANSWER = 3.0  # seconds in which a store answers
CONNECTING = timedelta(seconds=20)


class Group(Protocol):
    """What is used of ``Processes``."""

    @property
    def is_main(self) -> bool: ...

    rank: int
    world_size: int

    def gather(self, items: Sequence[Any]) -> list[Any]: ...


class Store(Protocol):
    """What is used of torch's stores."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a process says of itself."""

    number: int
    stage: str = ""
    step: int = 0
    taken: float = 0.0  # seconds since its last step
    usual: float | None = None  # seconds that its last steps took
    waits: bool = False  # for other processes
    failure: str = ""  # what it fails with
    left: bool = False  # in order

    @property
    def place(self) -> str:
        """Where it is, in words that follow a verb."""
        return place_of(self.stage, self.step)


class Heartbeat:
    """Sends this process's beats and keeps the others' last ones.

    Args:
        rank: of this process.
        ranks: of the others.
        store: what all of them write to and read from.
    """

    def __init__(self, rank: int, ranks: list[int], store: Store) -> None:
        self.rank, self.ranks, self.store = rank, ranks, store
        self.heard: dict[int, tuple[Beat, float]] = {}  # rank -> its last beat, and when it came here
        self.round = time.monotonic()  # when all were heard last
        self.number, self.failure, self.lock = 0, "", threading.Lock()
        self.done = threading.Event()

    def start(self) -> None:
        """Beat and listen, in a thread, until ``done`` is set."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self.done.wait(EVERY):
            try:
                self.exchange()
            except Exception:  # the store is gone with rank 0, or for a while
                time.sleep(EVERY)

    def exchange(self, left: bool = False) -> None:
        """Send one beat and hear the others'."""
        with self.lock:
            self.number += 1
            where = WHEREABOUTS
            beat = Beat(
                number=self.number,
                stage=where.stage,
                step=where.step,
                taken=where.taken(),
                usual=where.usual(),
                waits=waits_for_others(),
                failure=self.failure,
                left=left,
            )
            self.store.set(f"beat/{self.rank}", json.dumps(asdict(beat)))
            for rank in self.ranks:
                if self.store.check([f"beat/{rank}"]):
                    self.hear(rank, json.loads(self.store.get(f"beat/{rank}")))
            self.round = time.monotonic()

    def hear(self, rank: int, said: Mapping[str, object]) -> None:
        """Note the beat of another process, and when its number has changed."""
        beat = Beat(**said)  # type: ignore[arg-type]
        if rank not in self.heard or self.heard[rank][0].number != beat.number:
            self.heard[rank] = (beat, time.monotonic())

    def fail(self, failure: str) -> None:
        """Say that this process fails, and leave the others time to hear it."""
        self.failure = failure
        self._say(left=False)
        time.sleep(2.5 * EVERY)

    def leave(self) -> None:
        """Say that this process leaves in order, and stop."""
        self.done.set()
        self._say(left=not self.failure)

    def _say(self, left: bool) -> None:
        """Send a last beat, unless the store does not answer: where rank 0 is stopped it never does."""

        def send() -> None:
            with contextlib.suppress(Exception):
                self.exchange(left)

        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        sending.join(ANSWER)

    def last(self, rank: int) -> Beat | None:
        """The last beat of a process; None where none was heard."""
        return self.heard[rank][0] if rank in self.heard else None

    def silence(self, rank: int) -> float:
        """Seconds since a process was heard; none of one that has left or that never was.

        While rank 0, which has the store, does not answer, nothing can be said of the others.
        """
        if rank not in self.heard or self.heard[rank][0].left:
            return 0.0
        since = time.monotonic() - self.heard[rank][1]
        stale = time.monotonic() - self.round
        return since if rank == 0 or stale < 5 * EVERY else 0.0

    def forget_silence(self) -> None:
        """Begin to count anew: this process itself was stopped for a while."""
        now = time.monotonic()
        self.round = now
        self.heard = {rank: (beat, now) for rank, (beat, _) in self.heard.items()}


def connect(processes: Group) -> Heartbeat | None:
    """Beats of this group of processes through a store of their own; None where rank 0 cannot be reached.

    Called by all of them at once.
    """
    from torch.distributed import TCPStore

    host, store = os.environ.get("MASTER_ADDR", "127.0.0.1"), None
    if processes.is_main:
        with contextlib.suppress(Exception):
            store = TCPStore(host, 0, processes.world_size, True, CONNECTING, False)
    port = processes.gather([0 if store is None else store.port])[0]
    if store is None and port:
        with contextlib.suppress(Exception):
            store = TCPStore(host, port, processes.world_size, False, CONNECTING, False)
    if store is None:
        return None
    return Heartbeat(processes.rank, [r for r in range(processes.world_size) if r != processes.rank], store)
