"""Work shared out to helper processes in blocks; what comes back is in the order of the blocks.

A helper is a fresh Python that imports what it is told to call: nothing of the caller's main module, threads or open
files gets there. It ends when its caller does, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from data.common.errors import UserError

T = TypeVar("T")
MAX_HELPERS = 4
"""Helpers at most: their caller can hardly feed more."""

AHEAD = 2
"""Blocks for each helper that wait or are being worked on."""


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
    given = iter(blocks)
    if (first_of_all := next(given, None)) is None:
        return
    with _Helpers(count) as pool:
        waiting: deque[tuple[T, Future[Any]]] = deque()
        for block in chain([first_of_all], given):
            waiting.append((block, pool.submit(function, block)))
            if len(waiting) >= AHEAD * count:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


class _Helpers:
    """Helper processes, each spoken to by a thread at a time; all of them end with the block of ``with``."""

    def __init__(self, count: int) -> None:
        self._idle: queue.SimpleQueue[_Helper] = queue.SimpleQueue()
        self._all = [_Helper() for _ in range(count)]
        for helper in self._all:
            self._idle.put(helper)
        self._threads = ThreadPoolExecutor(count)

    def submit(self, function: Callable[[Any], Any], block: Any) -> Future[Any]:
        return self._threads.submit(self._call, function, block)

    def _call(self, function: Callable[[Any], Any], block: Any) -> Any:
        helper = self._idle.get()
        try:
            return helper.call(function, block)
        finally:
            self._idle.put(helper)

    def __enter__(self) -> _Helpers:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # nobody waits for what they are at
            for helper in self._all:
                helper.process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for helper in self._all:
            helper.close()


class _Helper:
    """One process that calls functions."""

    def __init__(self) -> None:
        self._pipe, other = Pipe()
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with other:  # the process has a copy of its own, so that each side sees when the other is gone
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from data.common.workers import serve; serve({other.fileno()})"],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": paths},
            )

    def call(self, function: Callable[[Any], Any], block: Any) -> Any:
        """What the function makes of the block.

        Raises:
            UserError: the process died.
        """
        try:
            self._pipe.send((function, block))
            error, result = self._pipe.recv()
        except (OSError, EOFError) as lost:
            code = self.process.wait()
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise UserError(
                f"a helper process {how}; if memory is short, make room for it, or run on one core: taskset -c 0 trivet"
            ) from lost
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """End the process, which waits for calls or is dead."""
        self._pipe.close()
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
