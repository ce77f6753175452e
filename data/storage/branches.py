"""Rows that name the row above them, put together to trees from a private file: one tree at a time in memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data.common.errors import UserError
from data.storage.codec import tagged, untagged

CACHE = 16 * 1024
"""kB of the file that stay in memory."""

Tree = tuple[str, dict[str, Any]]


class Branches:
    """Rows by name, each with the name of the one above it, in a database that goes when nobody holds it.

    A row with a value that cannot be written stays in memory.

    Args:
        below: the key under which a tree's row lists the rows below it.
    """

    def __init__(self, below: str) -> None:
        self._below = below
        self._unwritten: dict[int, dict[str, Any]] = {}
        self._base = sqlite3.connect("", isolation_level=None)  # no name: a temporary file, written where it is large
        self.count = 0
        for line in (
            "PRAGMA journal_mode = OFF",
            f"PRAGMA cache_size = -{CACHE}",
            "CREATE TABLE rows (number INTEGER PRIMARY KEY, name BLOB UNIQUE, above BLOB, place BLOB, row TEXT)",
            "BEGIN",
        ):
            self._base.execute(line)

    def add(self, name: str, above: str | None, place: str, row: dict[str, Any]) -> bool:
        """Take a row; False where another one has its name.

        Raises:
            UserError: the disk is full.
        """
        text = ""
        try:
            text = json.dumps(tagged(row))
        except (TypeError, ValueError):
            self._unwritten[self.count] = row
        values = self.count, _bytes(name), None if above is None else _bytes(above), _bytes(place), text
        with _named():
            new = self._base.execute("INSERT OR IGNORE INTO rows VALUES (?, ?, ?, ?, ?)", values).rowcount
        if new:
            self.count += 1
        else:
            self._unwritten.pop(self.count, None)
        return bool(new)

    def trees(self) -> Iterator[Tree]:
        """Places and rows of those without a row above them, with all below; then, alone, those that are in a circle.

        Raises:
            UserError: the disk is full.
        """
        if not self.count:
            return
        with _named():
            self._base.execute("CREATE INDEX above ON rows (above)")
            self._base.execute("CREATE TABLE reached (number INTEGER PRIMARY KEY)")
        roots = self._base.execute(
            "SELECT number, name, place, row FROM rows r WHERE above IS NULL OR NOT EXISTS "
            "(SELECT 1 FROM rows o WHERE o.name = r.above) ORDER BY number"
        )
        reached = 0
        for number, name, place, text in roots:
            row, below = self._with_below(number, name, text)
            reached += below
            yield _text(place), row
        if reached < self.count:
            left = self._base.execute(
                "SELECT number, place, row FROM rows WHERE number NOT IN (SELECT number FROM reached) ORDER BY number"
            )
            for number, place, text in left:
                yield _text(place), self._row(number, text) | {self._below: []}

    def _with_below(self, number: int, name: bytes, text: str) -> tuple[dict[str, Any], int]:
        """A row with those below it, and how many they all are."""
        root = self._row(number, text)
        waiting, count = [(number, name, root)], 0
        while waiting:
            number, name, row = waiting.pop()
            count += 1
            row[self._below] = below = []
            with _named():
                self._base.execute("INSERT INTO reached VALUES (?)", (number,))
                found = self._base.execute(
                    "SELECT number, name, row FROM rows WHERE above = ? ORDER BY number", (name,)
                )
                for its_number, its_name, its_text in found.fetchall():
                    one = self._row(its_number, its_text)
                    below.append(one)
                    waiting.append((its_number, its_name, one))
        return root, count

    def _row(self, number: int, text: str) -> dict[str, Any]:
        return dict(untagged(json.loads(text))) if text else dict(self._unwritten[number])


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _text(stored: bytes) -> str:
    return stored.decode(errors="surrogatepass")


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(
            f"messages cannot be put together ({error}); make room in the temporary folder, or name another one in "
            "SQLITE_TMPDIR"
        ) from error
