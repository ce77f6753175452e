"""sha256 of files; large ones are remembered by path, size, time and inode, for plans that need not read them again.

Only inside ``remembered()`` is a known hash taken for a file's own: a run hashes every byte, so that a file that
changed with its size and time kept is noticed there, and what it found is what the next plan remembers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from data.storage.folders import cache_root

LARGE = 1 << 20  # bytes; smaller files are read
MAX_FILES = 10_000  # files that are remembered
NAME = "hashes.json"
_trusting: ContextVar[bool] = ContextVar("trusting", default=False)


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Within it ``sha256_of`` takes the hash of a large file that has not changed by its size, time and inode."""
    token = _trusting.set(True)
    try:
        yield
    finally:
        _trusting.reset(token)


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes."""
    before = _stamp(path)
    large = before[0] >= LARGE
    if large and _trusting.get() and (known := _known().get(str(path.resolve()))) and known[:-1] == before:
        return str(known[-1])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if large and _stamp(path) == before:
        _remember(str(path.resolve()), [*before, found])
    return found


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev]


def _known() -> dict[str, list[Any]]:
    """What is remembered; nothing where the file is missing or damaged."""
    try:
        read = json.loads((cache_root() / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in read.items() if isinstance(v, list) and len(v) == 5} if isinstance(read, dict) else {}


def _remember(path: str, entry: list[Any]) -> None:
    """Write it down; where that cannot be, the next plan reads the file again."""
    known = _known()
    if known.get(path) == entry:
        return
    known.pop(path, None)
    kept = dict([*known.items(), (path, entry)][-MAX_FILES:])
    with contextlib.suppress(OSError):
        folder = cache_root()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{NAME}.{os.getpid()}"
        file.write_text(json.dumps(kept), encoding="utf-8")
        file.replace(folder / NAME)
