"""Rows of 64-bit numbers: appended one by one, on disk from some thousands on, and read back together by the first."""

from __future__ import annotations

import contextlib
import tempfile
from array import array
from collections.abc import Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

from data.storage.folders import scratch_folder
from data.storage.store import written

Rows = npt.NDArray[np.uint64]

IN_MEMORY = 1 << 16
"""So many numbers wait in memory."""

PART = 1 << 16
"""Numbers that are read back at a time, about."""

PARTS = 64
"""At most, since each is a file that is open."""


class NumberRows:
    """Rows of as many numbers as ``width`` says; memory stays the same however many they are."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._waiting = array("Q")
        self._file: IO[bytes] | None = None
        self._written = 0

    def add(self, *numbers: int) -> None:
        """Append one row.

        Raises:
            UserError: the disk is full.
        """
        self._waiting.extend(numbers)
        if len(self._waiting) >= IN_MEMORY:
            self._write()

    def extend(self, other: NumberRows) -> None:
        """Append the rows of another one, in their order.

        Raises:
            UserError: the disk is full.
        """
        for block in other._blocks():
            self._waiting.frombytes(np.ascontiguousarray(block).tobytes())
            if len(self._waiting) >= IN_MEMORY:
                self._write()

    def __getstate__(self) -> tuple[int, bytes]:
        """The width and all numbers: another process gets them by value."""
        return self.width, b"".join(np.ascontiguousarray(block).tobytes() for block in self._blocks())

    def __setstate__(self, state: tuple[int, bytes]) -> None:
        self.__init__(state[0])  # type: ignore[misc]
        self._waiting.frombytes(state[1])

    def _write(self) -> None:
        with written():
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=scratch_folder().path)  # noqa: SIM115 (it goes with this object)
            self._file.seek(0, 2)
            self._waiting.tofile(self._file)
            self._file.flush()
        self._written += len(self._waiting)
        self._waiting = array("Q")

    def __len__(self) -> int:
        return (self._written + len(self._waiting)) // self.width

    def parts(self) -> int:
        """How many parts ``grouped`` reads one after the other, where nobody says."""
        needed = len(self) * self.width // PART
        return min(PARTS, 1 << needed.bit_length()) if needed else 1

    def grouped(self, parts: int | None = None) -> Iterator[Rows]:
        """All rows by their first number, rows of the same number in the order in which they came.

        Args:
            parts: a power of two. Rows are read in so many parts (n, width), by ranges of the first number; those of
                one number are in one part.
        """
        parts = self.parts() if parts is None else parts
        if parts == 1:
            yield _in_order(np.concatenate([np.empty((0, self.width), np.uint64), *self._blocks()]))
            return
        with contextlib.ExitStack() as stack:
            for file in self._divided(parts, stack):
                file.seek(0)
                yield _in_order(np.fromfile(file, np.uint64).reshape(-1, self.width))
                file.close()

    def _divided(self, parts: int, stack: contextlib.ExitStack) -> list[IO[bytes]]:
        """A file of each part's rows, by the highest bits of their first number, in one pass."""
        shift, folder = np.uint64(64 - (parts.bit_length() - 1)), scratch_folder().path
        with written():
            files: list[IO[bytes]] = []
            for _ in range(parts):
                files.append(stack.enter_context(tempfile.TemporaryFile(dir=folder)))  # noqa: SIM115 (the stack closes them)
            for block in self._blocks():
                numbers = (block[:, 0] >> shift).astype(np.int64)
                order = np.argsort(numbers, kind="stable")
                edges = np.searchsorted(numbers[order], np.arange(parts + 1))
                for file, begin, end in zip(files, edges[:-1], edges[1:], strict=True):
                    if end > begin:
                        file.write(block[order[begin:end]].tobytes())
            for file in files:
                file.flush()
        return files

    def _blocks(self) -> Iterator[Rows]:
        if self._file is not None:
            self._file.seek(0)
            step = self.width << 16
            for start in range(0, self._written, step):
                numbers = np.fromfile(self._file, np.uint64, min(step, self._written - start))
                yield numbers.reshape(-1, self.width)
        if self._waiting:
            yield np.array(self._waiting, np.uint64).reshape(-1, self.width)


def _in_order(rows: Rows) -> Rows:
    """Rows by their first number, those of one number as they came."""
    return rows[np.argsort(rows[:, 0], kind="stable")]


def same(rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of rows in the order of their first numbers where each number begins and where it ends."""
    if not len(rows):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], rows[1:, 0] != rows[:-1, 0]]))
    return starts, np.append(starts[1:], len(rows))


def several(rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of such rows the beginnings and ends of the numbers that come more than once."""
    starts, ends = same(rows)
    more = ends - starts > 1
    return starts[more], ends[more]
