"""Errors with a message for the user: wrong input (exit code 2), and a stage that cannot continue (exit code 3)."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Numbers of errors that mean a full disk, or a file that cannot be written there."""


class UserError(Exception):
    """Wrong input: the message names the file, key or line, what is wrong, and how to fix it."""


class RowError(UserError):
    """Wrong input in one of several rows; ``row`` is its index among those that were given."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


class StageError(Exception):
    """A stage cannot continue, and the reason is no mistake in the input: a clear message, exit code 3."""


class CheckpointError(StageError):
    """What a stage had finished could not be saved."""


class GateStopped(StageError):
    """The reward model's report card does not pass the gate; ``lines`` are those that failed."""

    def __init__(self, message: str, lines: Sequence[str]) -> None:
        super().__init__(message)
        self.lines = tuple(lines)


class NonFiniteError(StageError):
    """Too many optimizer steps in a row without a finite loss and gradient."""


@contextlib.contextmanager
def located(place: str) -> Iterator[None]:
    """Put ``place``, a file and its row, before what a ``UserError`` says inside; nothing where it is empty."""
    try:
        yield
    except UserError as error:
        if not place or str(error).startswith(place):
            raise
        raise UserError(f"{place}: {error}") from error


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return `` Did you mean 'a' or 'b'?`` for the names closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return " Did you mean " + " or ".join(f"'{c}'" for c in close) + "?" if close else ""
