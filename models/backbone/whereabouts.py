"""Where this process is, its stage and step: for what the others say of it when it dies or is slow."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import deque

KEPT, ENOUGH = 20, 3  # steps whose seconds are kept, and how many of them say what is usual
DEPTH = 16  # frames from the innermost in which a wait for other processes shows


def place_of(stage: str, step: int) -> str:
    """A place in words that follow a verb."""
    return f" in {stage} at step {step}" if stage else " between stages"


class Whereabouts:
    """One for the process."""

    def __init__(self) -> None:
        self.enter("")

    def enter(self, stage: str) -> None:
        """Begin a stage; '' is none."""
        self.stage, self.step, self.since = stage, 0, time.monotonic()
        self.seconds = deque[float](maxlen=KEPT)

    def advance(self, step: int | None) -> None:
        """Note so many steps as done; None: a part of one, of work that is not counted in steps."""
        now = time.monotonic()
        if step is not None:
            self.seconds.append(now - self.since)
            self.step = step
        self.since = now

    @property
    def place(self) -> str:
        """The stage and its step, in words."""
        return place_of(self.stage, self.step)

    def usual(self) -> float | None:
        """Median seconds of the last steps; None while there are too few."""
        last = list(self.seconds)
        return statistics.median(last) if len(last) >= ENOUGH else None

    def taken(self) -> float:
        """Seconds since the last step was done."""
        return time.monotonic() - self.since


WHEREABOUTS = Whereabouts()


def waits_for_others() -> bool:
    """Whether the main thread is in a collective operation, as far as its Python frames show."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    for _ in range(DEPTH):
        if frame is None:
            return False
        if "/torch/distributed/" in frame.f_code.co_filename.replace("\\", "/"):
            return True
        frame = frame.f_back
    return False
