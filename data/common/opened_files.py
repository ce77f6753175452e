"""Files that code of the user's opens to read while it runs: what no source names, and a result may depend on.

Python reports every file that it opens to audit hooks. Files that a library opens by itself (safetensors, SQLite,
Arrow) are not reported, nor is what other threads or processes of the user's code open.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SOURCES = (".py", ".pyc")  # of modules, which are hashed by themselves
_here = threading.local()
_read: dict[str, dict[Path, str]] = {}
_written: set[Path] = set()


@contextlib.contextmanager
def noting(owner: str, roots: Iterable[Path]) -> Iterator[None]:
    """Within it, files below ``roots`` that this thread opens to read are noted as the owner's."""
    _listen()
    before = getattr(_here, "owner", None)
    _here.owner = owner, tuple(Path(root).absolute() for root in roots)
    try:
        yield
    finally:
        _here.owner = before


def read_by(owner: str) -> dict[Path, str]:
    """The sha256 of each file when an owner's code first opened it, but of those that the code writes itself."""
    return {path: found for path, found in _read.get(owner, {}).items() if path not in _written}


def forget(owner: str) -> None:
    """Drop what was noted of an owner, so that files are hashed again when they are opened next."""
    _read.pop(owner, None)


@functools.cache
def _listen() -> None:
    """Hooks stay for good, so there is one."""
    sys.addaudithook(_heard)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and (owner := getattr(_here, "owner", None)) is not None:
        _here.owner = None  # what is opened here is not the user's
        try:
            with contextlib.suppress(OSError, ValueError, TypeError):
                _note(*owner, *arguments)
        finally:
            _here.owner = owner


def _note(owner: str, roots: tuple[Path, ...], name: Any, mode: Any, flags: Any) -> None:
    if not (isinstance(name, str | bytes) or hasattr(name, "__fspath__")):
        return
    path = Path(os.path.abspath(os.fsdecode(name)))
    if path.suffix in SOURCES or not any(path.is_relative_to(root) for root in roots):
        return
    if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _written.add(path)
    elif path not in (noted := _read.setdefault(owner, {})) and path.is_file():
        noted[path] = hashlib.sha256(path.read_bytes()).hexdigest()
