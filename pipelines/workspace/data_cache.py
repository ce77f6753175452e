"""What ``trivet gc --cache`` may remove of the cache: records and bases that are made again when they are asked for.

What a live process uses stays: it holds its own scratch folder by a lock, and what it has read from the cache was
touched after that folder was made. Ratings of judges stay: whoever asks for them again pays for them again.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import psutil

from data.storage.folders import BASES, RATINGS, SCRATCH, cache_root
from pipelines.workspace.gc import Leftover, size_of

DAY = 24 * 3600
PARTIAL = ".partial"  # of a base that is being read: .NAME.PROCESS.partial


def cache_size() -> tuple[Path, int]:
    """Where the cache is, and the bytes of what it keeps of data and bases."""
    roots = [cache_root(), cache_root(BASES)]
    return roots[0].parent, sum(size_of(root) for root in roots if root.is_dir())


def ratings_size() -> tuple[Path, int]:
    """Where judges' ratings are kept, and their bytes."""
    root = cache_root(RATINGS)
    return root, size_of(root) if root.is_dir() else 0


def cached(days: float) -> list[Leftover]:
    """What of the cache could go: what dead processes left, and what nobody used for so many days."""
    root, bases = cache_root(), cache_root(BASES)
    live = {path for path in root.glob(f"{SCRATCH}*") if _is_held(path)}
    since = min(map(_made, live), default=None)
    found = list(_records(root, days, live, since)) if root.is_dir() else []
    return found + (list(_bases(bases, days, since)) if bases.is_dir() else [])


def _records(root: Path, days: float, live: Collection[Path], since: float | None) -> Iterator[Leftover]:
    for path in sorted(root.glob(f"{SCRATCH}*")):
        if path not in live:
            yield Leftover(path=path, owner=root, why="left by a process that is gone", bytes=size_of(path))
    for path in sorted(root.iterdir()):
        if not path.name.startswith(SCRATCH):
            yield from _unused(path, root, "records of a file", days, since)


def _bases(root: Path, days: float, since: float | None) -> Iterator[Leftover]:
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") and path.suffix == PARTIAL:
            process = path.name.split(".")[-2]
            if not process.isdecimal() or not psutil.pid_exists(int(process)):
                yield Leftover(path=path, owner=root, why="left by a process that is gone", bytes=size_of(path))
        else:
            yield from _unused(path, root, "a base that a GGUF file was read into", days, since)


def _unused(path: Path, root: Path, what: str, days: float, since: float | None) -> Iterator[Leftover]:
    """It, where nobody used it for so many days."""
    used = path.stat().st_mtime
    if used <= time.time() - days * DAY:
        held = "using the cache" if since is not None and used >= since else ""
        why = f"{what}, made again when needed; last used {(time.time() - used) / DAY:.0f} days ago"
        yield Leftover(path=path, owner=root, why=why, bytes=size_of(path), held=held)


def _made(scratch: Path) -> float:
    """When a scratch folder was made: its lock is written once."""
    return (scratch / "lock").stat().st_mtime


def _is_held(scratch: Path) -> bool:
    try:
        with (scratch / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def clean_cache(days: float) -> tuple[list[Leftover], list[str]]:
    """Remove what may go, asked for again; return what went, and why other things did not."""
    gone: list[Leftover] = []
    errors: list[str] = []
    for one in cached(days):
        if one.held:
            continue
        try:
            shutil.rmtree(one.path) if one.path.is_dir() else one.path.unlink()
            gone.append(one)
        except OSError as error:
            errors.append(f"{one.path}: {error.strerror or error}")
    return gone, errors
