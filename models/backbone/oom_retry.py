"""Out of memory: the same work again in smaller batches, which changes no sum beyond rounding."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from data.common.errors import StageError
from models.backbone.sharding import reset_after_failure

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the allocator of the CPU had no more."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and should_reduce_batch_size(error)


class OOMRetry:
    """A limit on a batch size that is halved when memory runs out, and stays so.

    Each process has its own limit: batches add up to the same sums whatever their size.

    Args:
        name: of the setting that it limits, for the user.
        warn: reports each smaller batch.
        together: of several processes that meet in ``run`` (``Processes.together``): where the smallest batch does not
            fit in one of them, all stop with its error.
        any_failed: whether memory ran out in any of the processes that meet in ``run``, from whether it did in this
            one; then all of them do their work again. For work whose parts are added up over processes as they come.
    """

    def __init__(
        self,
        name: str,
        warn: Callable[[str], None] = warnings.warn,
        together: Callable[[Callable[[], Any]], Any] = lambda work: work(),
        any_failed: Callable[[bool], bool] | None = None,
    ) -> None:
        self.name, self.warn, self.together, self.any_failed = name, warn, together, any_failed
        self.limit: int | None = None  # part of a stage's state: batches decide about the last bits
        self._progress: Callable[[int], None] = lambda rows: None

    def size(self, wanted: int) -> int:
        """So many of ``wanted`` rows as memory is known to have room for."""
        return wanted if self.limit is None else min(wanted, self.limit)

    def run(
        self, work: Callable[[int], T], wanted: int, minimum: int = 1, undo: Callable[[], None] = lambda: None
    ) -> T:
        """``work(size)``, again with half the size as long as memory runs out.

        Args:
            wanted: the size that the recipe asks for.
            minimum: a smaller size makes no smaller batch.
            undo: takes back what a failed attempt has left.

        Raises:
            StageError: the smallest batch does not fit.
        """
        if self.any_failed is None:
            return self.together(lambda: self._run(work, wanted, minimum, undo))
        while True:
            made: list[T] = self.together(lambda: self._attempt(work, wanted, minimum, lambda: None))
            if not self.any_failed(not made):
                return made[0]
            undo()

    def each(self, rows: Sequence[int], wanted: int, work: Callable[[Sequence[int]], None]) -> None:
        """``work`` on at most ``wanted`` of the rows at a time; what is finished is not done again.

        Raises:
            StageError: a single row does not fit.
        """
        start = 0

        def attempt(size: int) -> int:
            work(rows[start : start + size])
            return size

        while start < len(rows):
            size = self._run(attempt, min(wanted, len(rows) - start))
            start += size
            self._progress(size)

    @contextlib.contextmanager
    def reporting(self, progress: Callable[[int], None]) -> Iterator[None]:
        """Within it ``each`` tells of so many more rows that are done."""
        before, self._progress = self._progress, progress
        try:
            yield
        finally:
            self._progress = before

    def _run(
        self, work: Callable[[int], T], wanted: int, minimum: int = 1, undo: Callable[[], None] = lambda: None
    ) -> T:
        while True:
            if made := self._attempt(work, wanted, minimum, undo):
                return made[0]

    def _attempt(self, work: Callable[[int], T], wanted: int, minimum: int, undo: Callable[[], None]) -> list[T]:
        """What ``work`` returns; nothing where memory ran out, and the limit is lower from now on."""
        size = self.size(wanted)
        try:
            return [work(size)]
        except Exception as error:
            if not out_of_memory(error):
                raise
            if size <= minimum:
                undo()
                raise StageError(
                    f"out of memory, even with {self.name}={size} ({str(error).splitlines()[0]}). Shorten the "
                    "texts, take a smaller base, or set runtime.gradient_checkpointing=true "
                    "(`trivet plan RECIPE --fit auto` says what fits)"
                ) from error
        undo()  # not before the error is gone, since its traceback holds on to the tensors
        reset_after_failure()
        self.limit = max(minimum, size // 2)
        clear_device_cache(garbage_collection=True)
        self.warn(
            f"out of memory with {self.name}={size}: continuing with {self.limit}, which is slower and changes no "
            "result beyond rounding"
        )
        return []
