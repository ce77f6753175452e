"""Errors with a message for the user: wrong input (exit code 2), and a stage that cannot go on (exit code 3)."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """Wrong input: the message names the file, key or line, what is wrong, and how to mend it."""


class StageError(Exception):
    """A stage cannot go on, and the reason is no mistake in the input: a clear message, exit code 3."""


class CheckpointError(StageError):
    """What a stage had finished could not be saved."""


class NonFiniteError(StageError):
    """Too many optimizer steps in a row without a finite loss and gradient."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return `` Did you mean 'a' or 'b'?`` for the names closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return " Did you mean " + " or ".join(f"'{c}'" for c in close) + "?" if close else ""


@contextlib.contextmanager
def located(source: str) -> Iterator[None]:
    """Put the file and line that a record came from before the message of a ``UserError`` about it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}" if source else f"{error}") from error
