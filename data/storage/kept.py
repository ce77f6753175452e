"""What was read once and is kept in the cache for the next process: folders and fingerprints, found by content.

A folder appears whole or not at all: it is made aside and renamed. What nobody used for a month is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from data.storage.folders import cache_root, scratch_folder

META = "meta.json"
MAX_AGE = 30 * 24 * 3600
"""Seconds without use after which a kept folder goes."""


@cache
def code_digest() -> str:
    """sha256 over the code of this room: what other code has read is not taken."""
    digest = hashlib.sha256()
    room = Path(__file__).parents[1]
    for file in sorted(room.rglob("*.py")):
        digest.update(f"{file.relative_to(room)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def key_of(described: Any) -> str:
    """The name of what is described by plain values, and read by this code."""
    text = json.dumps([described, code_digest()], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


Stamp = tuple[int, int, int, int]


def stamp_of(path: Path) -> Stamp:
    """What changes when a file is written: size, times, and the file itself."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- folders ---------------------------------------------------------------------------------------------------------


def find(key: str) -> tuple[Path, dict[str, Any]] | None:
    """A kept folder with what its head says; None where there is none that is whole."""
    folder = cache_root() / key
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in meta["sizes"].items())
    except (OSError, ValueError, KeyError):
        return None
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    _touch(folder)
    return folder, meta


def publish(key: str, meta: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Keep a folder that ``write`` fills; nothing is kept where the cache cannot be written, or is full."""
    root, made = cache_root(), scratch_folder().path / key
    if made.parent.parent != root:
        return
    try:
        made.mkdir()
        write(made)
        sizes = {file.name: file.stat().st_size for file in made.iterdir()}
        (made / META).write_text(json.dumps(meta | {"sizes": sizes}, ensure_ascii=True), encoding="utf-8")
        made.rename(root / key)
    except OSError:  # full, or another process was first
        shutil.rmtree(made, ignore_errors=True)
    _remove_old(root)


def _remove_old(root: Path) -> None:
    for folder in root.glob(f"*/{META}"):
        try:
            if time.time() - folder.parent.stat().st_mtime > MAX_AGE:
                shutil.rmtree(folder.parent, ignore_errors=True)
        except OSError:
            continue


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        return  # of a cache that can only be read


# ---- fingerprints ----------------------------------------------------------------------------------------------------


class Memo:
    """Texts by name that follow from the content that a key stands for; ``key`` None remembers nothing."""

    def __init__(self, key: str | None) -> None:
        self._file = None if key is None else cache_root() / f"{key}.json"

    def get(self, name: str, make: Callable[[], str]) -> str:
        """The text that is remembered, or is made now."""
        found = self.find(name)
        return self.keep(name, make()) if found is None else found

    def first(self, name: str, make: Callable[[], str]) -> str:
        """The one text of a key that is remembered first: of processes that make one at once, all return the same."""
        found = self.find(name)
        if found is not None:
            return found
        made = make()
        if self._file is None or self._write(self._file, {name: made}, new=True):
            return made
        return self.find(name) or self.keep(name, made)

    def find(self, name: str) -> str | None:
        """The text that is remembered; None where there is none."""
        return self._read().get(name)

    def keep(self, name: str, text: str) -> str:
        """Remember a text, and return it."""
        if self._file is not None:
            self._write(self._file, self._read() | {name: text})
        return text

    def _read(self) -> dict[str, str]:
        if self._file is None:
            return {}
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @staticmethod
    def _write(file: Path, found: dict[str, str], new: bool = False) -> bool:
        """Whether it was written; ``new``: only where no process has written the file."""
        folder = scratch_folder()
        aside = folder.path / f"{file.name}-{folder.next_number()}"
        try:
            aside.write_text(json.dumps(found), encoding="utf-8")
            if new:
                os.link(aside, file)
                aside.unlink()
            else:
                aside.replace(file)
        except OSError:
            aside.unlink(missing_ok=True)
            return False
        return True


def joined_key(keys: Sequence[str | None]) -> str | None:
    """One key of several; None where one is missing."""
    return None if None in keys or not keys else key_of(list(keys))
