"""Files that the user's functions opened while a stage ran: noted with its result, compared when it is found again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.common.opened_files import forget, read_by
from data.common.user_functions import owners_of
from data.storage.file_hashes import sha256_of

ENTRY = "files_read"  # in a manifest: path from the recipe's folder -> sha256
OPENED = "opened"  # in a description: those that have changed since
GONE = "not there"


def files_read(references: Iterable[str], base_dir: Path) -> dict[str, str]:
    """What the functions of these names have opened in this process, each file with its sha256."""
    found = {
        path: sha for name in references for owner in owners_of(name, base_dir) for path, sha in read_by(owner).items()
    }
    return {Path(os.path.relpath(path, base_dir.absolute())).as_posix(): found[path] for path in sorted(found)}


def begin(references: Iterable[str], base_dir: Path) -> None:
    """A stage starts: what its functions open from here on is noted anew; what loading them opened stays as it was."""
    for name in references:
        forget(owners_of(name, base_dir)[-1])


def changed_files(manifest: Mapping[str, Any], base_dir: Path) -> dict[str, str]:
    """The files that a result's functions opened and that have changed since, with what they hash to."""
    noted = manifest.get(ENTRY)
    there = {name: _hash_of(base_dir / name) for name in noted} if isinstance(noted, Mapping) else {}
    return {name: found for name, found in there.items() if found != noted[name]}  # type: ignore[index]


def _hash_of(path: Path) -> str:
    try:
        return sha256_of(path) if path.is_file() else GONE
    except OSError:
        return GONE
