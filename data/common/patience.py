"""A line now and then while something takes long, so that nobody takes a program that works for one that hangs."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from data.common.number_format import duration
from data.common.redaction import printable

FIRST, EVERY = 5.0, 15.0  # seconds until the first line, and between lines
T = TypeVar("T")


def tell(text: str) -> None:
    """A line on standard error, which results are never written to."""
    with contextlib.suppress(ValueError, OSError):  # closed, or full
        print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def patience(what: str, done: Callable[[], str] = lambda: "", say: Callable[[str], None] = tell) -> Iterator[None]:
    """Tell of work that takes longer than a few seconds, while it goes on; by the first process alone.

    Args:
        what: the work, such as "reading rows.jsonl".
        done: how far it is, in words; asked from another thread.
        say: takes a line.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    over, began = threading.Event(), time.monotonic()

    def watch() -> None:
        wait = FIRST
        while not over.wait(wait):
            wait, far = EVERY, done()
            say(f"{what}{': ' if far else ''}{far} ({duration(time.monotonic() - began)} so far)")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def each(rows: Iterable[T], what: str, unit: str = "rows") -> Iterator[T]:
    """The rows, one after another; told with their number, and their total where it is known, if it takes long."""
    total = f" of {len(rows):,}" if isinstance(rows, Sequence) else ""
    count = 0
    with patience(what, lambda: f"{count:,}{total} {unit}"):
        for row in rows:
            yield row
            count += 1
