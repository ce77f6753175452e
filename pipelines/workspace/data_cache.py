"""What ``trivet gc --cache`` may remove of the data cache: all of it is made again when it is asked for.

What a live process uses stays: it holds its own scratch folder by a lock, and what it has read from the cache was
touched after that folder was made.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from data.storage.folders import SCRATCH, cache_root
from pipelines.workspace.gc import Leftover, size_of

DAY = 24 * 3600


def cache_size() -> tuple[Path, int]:
    """Where the data cache is, and its bytes."""
    root = cache_root()
    return root, size_of(root) if root.is_dir() else 0


def cached(days: float) -> list[Leftover]:
    """What of the data cache could go: what dead processes left, and what nobody used for so many days."""
    root = cache_root()
    if not root.is_dir():
        return []
    return list(_found(root, days))


def _found(root: Path, days: float) -> Iterator[Leftover]:
    scratch = sorted(root.glob(f"{SCRATCH}*"))
    live = {path for path in scratch if _is_held(path)}
    since = min(map(_made, live), default=None)
    for path in scratch:
        if path not in live:
            yield Leftover(path=path, owner=root, why="left by a process that is gone", bytes=size_of(path))
    for path in sorted(root.iterdir()):
        if path.name.startswith(SCRATCH):
            continue
        used = path.stat().st_mtime
        if used <= time.time() - days * DAY:
            held = "using the cache" if since is not None and used >= since else ""
            why = f"records of a file, made again when needed; last used {(time.time() - used) / DAY:.0f} days ago"
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
