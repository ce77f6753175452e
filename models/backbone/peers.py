"""The other processes of a run: one that dies, is stopped, fails or is out of reach is named; nobody waits for it.

On this machine a process is known by its id and by a marker, a file that it removes when it leaves in order; one that
is gone and whose marker is there was killed. Processes of other machines are known by their heartbeats.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from data.common.number_format import duration
from data.common.redaction import printable
from models.backbone.heartbeat import Beat, Heartbeat
from models.backbone.whereabouts import WHEREABOUTS, waits_for_others

GRACE = 15.0
"""Seconds after which a process ends by itself when another has died and it still waits for it."""
STOPPED, SILENT = 10.0, 40.0  # seconds for which one is stopped here, or silent elsewhere, until it counts as lost
LOST = 6.0  # the same, where a connection is lost already
STUCK = 600.0  # seconds for which all wait for each other without a break, until it counts as an error
ASLEEP = 20.0  # seconds between two looks, after which this process itself was stopped, and not just slow
SLOW, SLOW_SECONDS = 10.0, 60.0  # times its last steps, and at least so many seconds
RESUMES = "and the others cannot continue without it; the same command resumes from the newest checkpoint"


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

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger keeps it from running."""
        return state_of(self.pid) == psutil.STATUS_STOPPED and Path(self.marker).exists()

    @property
    def unheard(self) -> str:
        """Where it is while nothing was heard of it, in words that follow a verb."""
        return ""

    def __str__(self) -> str:
        return f"process {self.rank} (pid {self.pid} on {self.host})"


def state_of(pid: int) -> str | None:
    """What the system says of a process; None of one that is gone."""
    try:
        return psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:  # somebody else's
        return psutil.STATUS_RUNNING


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked about does not."""
    return state_of(pid) not in (None, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def death_notice(dead: list[Peer], place: str = "") -> str:
    """What is said of processes that died; ``place``: where the first of them was last heard."""
    who = ", ".join(map(str, dead))
    return f"{who} died{place}, most likely killed by a signal or for want of memory, {RESUMES}"


def failure_notice(peer: Peer, error: BaseException) -> str:
    """What is said of a process, this one, that raised an error which nobody foresaw."""
    return f"{peer} failed{WHEREABOUTS.place} with {in_a_line(error)}, {RESUMES}"


class Watch:
    """Looks after the other processes, and reports once, from whichever thread sees it first, that one is lost.

    Args:
        own: this process.
        others: on whatever machine.
        beats: None where there are no heartbeats.
        end: how this process ends while its main thread waits for one that is lost.
    """

    def __init__(
        self,
        own: Peer,
        others: list[Peer],
        beats: Heartbeat | None = None,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.here = [p for p in others if p.host == own.host]
        self.away = [p for p in others if p.host != own.host]
        self.own, self.beats, self.end = own, beats, end
        self.done, self.lock, self.said = threading.Event(), threading.Lock(), False
        self.stopped_since: dict[int, float] = {}
        self.named: set[tuple[int, str, int]] = set()
        self.waiting_since: float | None = None  # all of them

    # -- what is seen ------------------------------------------------------------------------------------------------

    def beat_of(self, peer: Peer) -> Beat | None:
        """The newest beat of a process; None before the first."""
        return None if self.beats is None else self.beats.last(peer.rank)

    def place(self, peer: Peer) -> str:
        """Where a process is, in words."""
        beat = self.beat_of(peer)
        return peer.unheard if beat is None else beat.place

    def lost(self, silent: float = SILENT) -> tuple[list[Peer], str]:
        """Processes without which nothing continues, and what is to be said of them."""
        if dead := [p for p in self.here if p.died]:
            return dead, death_notice(dead, self.place(dead[0]))
        if stopped := [p for p in self.here if self._stopped_for(p) >= STOPPED]:
            who = ", ".join(map(str, stopped))
            return stopped, f"{who} was stopped by a signal{self.place(stopped[0])} and is ended here, {RESUMES}"
        for peer in self.away if self.beats is not None else ():
            assert self.beats is not None
            if (quiet := self.beats.silence(peer.rank)) >= silent:
                text = f"cannot be reached{self.place(peer)}: nothing was heard of it for {duration(quiet)}"
                return [peer], f"{peer} {text}, {RESUMES}"
        for peer in [*self.here, *self.away]:
            if (beat := self.beat_of(peer)) is not None and beat.failure:
                return [peer], f"{peer} failed{beat.place} with {beat.failure}, {RESUMES}"
        return [], ""

    def _stopped_for(self, peer: Peer) -> float:
        if not peer.stopped:
            self.stopped_since.pop(peer.rank, None)
            return 0.0
        return time.monotonic() - self.stopped_since.setdefault(peer.rank, time.monotonic())

    def slow(self) -> Iterator[str]:
        """A sentence on each process whose step takes far longer than its last ones, and that waits for nobody.

        Only one of the processes that wait for it has to say so.
        """
        ranks = [p.rank for p in (self.own, *self.here, *self.away)]
        for peer in (*self.here, *self.away):
            beat = self.beat_of(peer)
            if self.own.rank != min(r for r in ranks if r != peer.rank):
                continue
            if beat is None or beat.usual is None or beat.waits or beat.left or not beat.stage:
                continue
            at = (peer.rank, beat.stage, beat.step)
            if beat.taken < max(SLOW_SECONDS, SLOW * beat.usual) or at in self.named:
                continue
            self.named.add(at)
            yield (
                f"{peer} is slow{beat.place}: {duration(beat.taken)} so far, where its last steps took "
                f"{duration(beat.usual)} each; the others wait for it"
            )

    def stuck(self) -> str:
        """What is to be said where all processes have waited for each other for long: none of them will ever go on."""
        beats = [self.beat_of(p) for p in (*self.here, *self.away)]
        if not beats or not all(b is not None and b.waits and not b.left for b in beats) or not waits_for_others():
            self.waiting_since = None
            return ""
        if self.waiting_since is None:
            self.waiting_since = time.monotonic()
        waited = time.monotonic() - self.waiting_since
        if waited < STUCK:
            return ""
        places = ", ".join(f"{p.rank}{self.place(p)}" for p in (*self.here, *self.away))
        return (
            f"all processes wait for each other for {duration(waited)} ({self.own.rank}{WHEREABOUTS.place}, {places}), "
            "which is an error of trivet or of the network; the same command resumes from the newest checkpoint"
        )

    # -- what is done ------------------------------------------------------------------------------------------------

    def report(self, text: str) -> None:
        """Say it on standard error, once."""
        with self.lock:
            if text and not self.said:
                print(printable(f"trivet: {text}"), file=sys.stderr, flush=True)
                self.said = True

    def run(self) -> None:
        """End this process when another is lost and the main thread still waits for it after a while."""
        before = time.monotonic()
        while not self.done.wait(0.5):
            now = time.monotonic()
            if now - before > ASLEEP:
                self.stopped_since.clear()
                if self.beats is not None:
                    self.beats.forget_silence()
            before = now
            lost, text = self.lost()
            if lost:
                self._give_up(lost, text)
                return
            if text := self.stuck():
                self.report(text)
                self.end(3)
                return
            for sentence in self.slow():
                print(printable(f"trivet: {sentence}"), file=sys.stderr, flush=True)

    def _give_up(self, lost: list[Peer], text: str) -> None:
        failed = any((beat := self.beat_of(p)) is not None and beat.failure for p in lost)
        if not failed:  # that one speaks for itself, and the main thread may fail of the same at this moment
            self.report(text)
        end_stopped(lost, self.here)
        if not self.done.wait(GRACE):
            self.report(text)
            self.end(3)

    def await_ends(self) -> None:
        """Wait, when all is done, until the others of this machine have ended, for a launcher waits for them as well.

        One that is stopped meanwhile is named and ended; one that runs on is left alone after a while.
        """
        until = time.monotonic() + GRACE
        while left := [p for p in self.here if alive(p.pid)]:
            halted = [p for p in left if state_of(p.pid) == psutil.STATUS_STOPPED]
            since = {p.rank: self.stopped_since.get(p.rank, time.monotonic()) for p in halted}
            self.stopped_since = since
            for peer in halted:
                if time.monotonic() - since[peer.rank] >= STOPPED:
                    self.report(f"{peer} was stopped by a signal when all was done, and is ended here")
                    kill(peer)
            if not halted and time.monotonic() >= until:
                return
            time.sleep(0.05)

    def leave(self) -> None:
        """Stop, and say that this process leaves in order."""
        if not self.done.is_set():
            self.done.set()
            if self.beats is not None:
                self.beats.leave()
            Path(self.own.marker).unlink(missing_ok=True)

    def asked(self) -> list[Peer]:
        """Who is lost, reported; a launcher's signal to end, which comes at the same time, does not break this off."""
        for _ in range(3):
            with contextlib.suppress(KeyboardInterrupt):
                until = time.monotonic() + (2 * LOST if self.away else 3.0)
                lost, text = self.lost(LOST)
                while not lost and time.monotonic() < until:
                    time.sleep(0.1)
                    lost, text = self.lost(LOST)
                self.report(text)
                return lost
        return []


def of_others(error: BaseException) -> bool:
    """Whether an error was raised in a collective operation, as it is where a connection is lost."""
    frames = traceback.walk_tb(error.__traceback__)
    return any("/torch/distributed/" in frame.f_code.co_filename.replace("\\", "/") for frame, _ in frames)


def in_a_line(error: BaseException) -> str:
    """An error's name and the beginning of what it says."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(line[:200] for line in lines[:1])])


def end_stopped(lost: list[Peer], here: list[Peer]) -> None:
    """Kill those that are stopped on this machine: they would keep their memory, and wake up to a run that is over."""
    for peer in lost:
        if peer in here and peer.stopped:
            kill(peer)


def kill(peer: Peer) -> None:
    """End a process of this machine that would not end by itself."""
    with contextlib.suppress(OSError):
        os.kill(peer.pid, signal.SIGKILL)
