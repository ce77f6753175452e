"""Stages that are killed at a safe point, in this process: nobody catches the exception, and the point is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stages.safe_points.checkpoints import Checkpoints, State


class Killed(BaseException):
    """Not an Exception: nothing may catch it and tidy up, as nothing could after a kill."""


@contextmanager
def killed_at(number: int) -> Iterator[list[int]]:
    """What the block runs is killed at its ``number``-th safe point; yields the safe points that were reached."""
    seen: list[int] = []
    real = Checkpoints.safe_point

    def safe_point(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        seen.append(args[0])
        if len(seen) == number:
            self.wait()
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "safe_point", safe_point)
        with pytest.raises(Killed):
            yield seen


class Stops(Checkpoints):
    """Checkpoints of which each is saved, and the ``left``-th ends the training."""

    left = 0

    def safe_point(self, at: int, snapshot: Callable[[], State], step: int | None = None, good: bool = True) -> None:
        self.save(at, snapshot())
        self.wait()
        self.left -= 1
        if not self.left:
            raise Killed
