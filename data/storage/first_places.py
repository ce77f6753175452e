"""Where each of many numbers came first, in a private file on disk: memory stays the same however many they are."""

from __future__ import annotations

import sqlite3

from data.common.errors import UserError

CACHE = 32 * 1024
"""kB of the file that stay in memory."""


class Firsts:
    """The first place of each 64-bit number, in a database that goes when nobody holds it."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None)  # no name: a temporary file, written where it is large
        for line in (
            "PRAGMA journal_mode = OFF",
            f"PRAGMA cache_size = -{CACHE}",
            "CREATE TABLE firsts (number INTEGER PRIMARY KEY, place TEXT)",
            "BEGIN",
        ):
            self._base.execute(line)

    def of(self, number: int, place: str) -> str:
        """The place where a number came first, which is this one where it is new.

        Raises:
            UserError: the disk is full.
        """
        signed = number - (1 << 63)  # SQLite's integers have a sign
        try:
            new = self._base.execute("INSERT OR IGNORE INTO firsts VALUES (?, ?)", (signed, place)).rowcount
            if new:
                return place
            found = self._base.execute("SELECT place FROM firsts WHERE number = ?", (signed,)).fetchone()
        except sqlite3.Error as error:
            raise UserError(
                f"duplicates cannot be remembered ({error}); make room in the temporary folder, or name another one in "
                "SQLITE_TMPDIR"
            ) from error
        return str(found[0])
