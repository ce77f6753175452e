"""Work shared out to helper processes in blocks; what comes back is in the order of the blocks.

A helper is a fresh Python that imports what it is told to call: nothing of the caller's main module, threads or open
files gets there. It ends when its caller does, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, TypeVar

from data.common.errors import UserError

T = TypeVar("T")
MAX_HELPERS = 4
"""Helpers at most: their caller can hardly feed more."""

AHEAD = 2
"""Blocks for each helper that are being worked on, or wait for one before them."""


def helpers() -> int:
    """How many helpers pay on this machine: 0 with one core, or where several processes share the work already."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = int(os.environ.get("WORLD_SIZE") or 1) > 1
    return 0 if cores < 2 or shared else min(cores, MAX_HELPERS)


def mapped(function: Callable[[Any], Any], blocks: Iterable[T], count: int) -> Iterator[tuple[T, Any]]:
    """Yield each block with what the function makes of it, in order; ``count`` helpers work on blocks that follow.

    Args:
        function: of a module, called in helper processes.
        blocks: what can be pickled; a few are taken ahead.
        count: helpers; with 0 the function is called here.

    Raises:
        UserError: a helper died.
        Exception: whatever the function raises, at its block.
    """
    if not count:
        yield from ((block, function(block)) for block in blocks)
        return
    given = enumerate(blocks)
    following = next(given, None)
    if following is None:
        return
    waiting: deque[T] = deque()  # blocks that were given out, in order
    first = 0  # the number of the first of them
    with _Helpers(count) as pool:
        while waiting or following is not None:
            if following is not None and pool.has_idle and len(waiting) < AHEAD * count:
                number, block = following
                pool.give(number, function, block)
                waiting.append(block)
                following = next(given, None)
                continue
            pool.gather()
            while waiting and first in pool.answers:
                error, result = pool.answers.pop(first)
                if error is not None:
                    raise error
                yield waiting.popleft(), result
                first += 1


Answer = tuple[Exception | None, Any]


class _Helpers:
    """Helper processes, all of which end with the block of ``with``; ``answers`` are theirs by the blocks' numbers.

    No thread of the caller waits for them: what threads allocate stays with them, and memory would be held twice.
    """

    def __init__(self, count: int) -> None:
        self.answers: dict[int, Answer] = {}
        self._idle = [_Helper() for _ in range(count)]
        self._all = tuple(self._idle)
        self._busy: dict[Any, tuple[int, _Helper]] = {}

    @property
    def has_idle(self) -> bool:
        """Whether a block can be given out."""
        return bool(self._idle)

    def give(self, number: int, function: Callable[[Any], Any], block: Any) -> None:
        """Have a helper that is idle work on a block."""
        helper = self._idle.pop()
        try:
            helper.pipe.send((function, block))
        except OSError:
            self.answers[number] = helper.lost(), None
        else:
            self._busy[helper.pipe] = number, helper

    def gather(self) -> None:
        """Wait until a helper has answered, where one is at work, and take what there is."""
        for pipe in wait(list(self._busy)) if self._busy else ():
            number, helper = self._busy.pop(pipe)
            try:
                self.answers[number] = helper.pipe.recv()
            except (OSError, EOFError):
                self.answers[number] = helper.lost(), None
            else:
                self._idle.append(helper)

    def __enter__(self) -> _Helpers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # nobody waits for what they are at
            for helper in self._all:
                helper.process.kill()
        for helper in self._all:
            helper.close()


class _Helper:
    """One process that calls functions."""

    def __init__(self) -> None:
        self.pipe, other = Pipe()
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with other:  # the process has a copy of its own, so that each side sees when the other is gone
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from data.common.workers import serve; serve({other.fileno()})"],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": paths},
            )

    def lost(self) -> UserError:
        """What to say of a process that died."""
        code = self.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return UserError(
            f"a helper process {how}; if memory is short, make room for it, or run on one core: taskset -c 0 trivet"
        )

    def close(self) -> None:
        """End the process, which waits for calls or is dead."""
        self.pipe.close()
        self.process.wait()


def serve(descriptor: int) -> None:
    """Answer the calls that come through a connection until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller, who ends this process
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError, OSError):
        while True:
            function, block = pipe.recv()
            error: Exception | None = None
            result = None
            try:
                result = function(block)
            except Exception as raised:
                error = raised
            pipe.send((error, result))
