"""Where records lie while a process uses them: a folder of its own in the cache, which goes with the process.

The cache is ``$TRIVET_CACHE``, or ``trivet`` in the user's cache folder; where it cannot be written, the folder for
temporary files. A folder that a killed process left behind is removed by the next one.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import IO

SCRATCH = "scratch-"
DATA, BASES, RATINGS = "data", "bases", "ratings"
"""Parts of the cache: records of files that were read, bases that GGUF files were read into, and judges' ratings."""


def cache_root(part: str = DATA) -> Path:
    """The folder of a part of the cache, whether it is there or not."""
    if named := os.environ.get("TRIVET_CACHE"):
        return Path(named).expanduser() / part
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "trivet" / part


class Folder:
    """A folder that this process holds by a lock, so that others see that it lives."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.owner = os.getpid()
        while not self._made(root):
            pass  # another process took the folder for an abandoned one before it was locked
        self._numbers = count()

    def _made(self, root: Path) -> bool:
        self.path = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=root))
        self._lock: IO[str] = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return (self.path / "lock").exists()

    def next_number(self) -> int:
        return next(self._numbers)

    def remove(self) -> None:
        if os.getpid() == self.owner:
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock.close()


_held: dict[int, Folder] = {}


def scratch_folder() -> Folder:
    """The folder of this process, made when it is first asked for; a forked process makes one of its own."""
    found = _held.get(os.getpid())
    if found is None or not found.path.is_dir():
        root = cache_root()
        try:
            _remove_abandoned(root)
            found = Folder(root)
        except OSError:
            found = Folder(Path(tempfile.gettempdir()) / f"trivet-{os.getuid()}")
        _held[os.getpid()] = found
        atexit.register(found.remove)
    return found


def new_file(name: str) -> Path:
    """The path of a file in this process's folder that nothing else has."""
    folder = scratch_folder()
    return folder.path / f"{os.getpid()}-{folder.next_number()}-{name}"


def _remove_abandoned(root: Path) -> None:
    """Remove the folders whose processes are gone: nobody holds their locks."""
    for folder in root.glob(f"{SCRATCH}*"):
        try:
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # it is held, or just being made
