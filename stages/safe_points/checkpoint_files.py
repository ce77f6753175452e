"""A checkpoint on disk: tensors and JSON, written aside, hashed, and renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data.common.errors import UserError
from data.common.strict_json import read_object
from models.backbone.artifacts import FORMAT, MANIFEST, files_of, write_json
from models.backbone.tensor_files import save_tensors

TENSORS, NUMBERS = "tensors.safetensors", "state.json"


def read_numbers(path: Path) -> dict[str, Any]:
    """``state.json``, its shape checked.

    Raises:
        UserError: damaged, or of another shape.
    """
    found = read_object(path / NUMBERS)
    parts = found.get("processes")
    if not isinstance(found.get("state"), dict) or not isinstance(parts, list):
        raise UserError(f"{path / NUMBERS}: holds no state and processes")
    if not parts or not all(isinstance(p, dict) for p in parts):
        raise UserError(f"{path / NUMBERS}: holds no process's numbers")
    if not (path / TENSORS).is_file():
        raise UserError(f"{path / TENSORS}: missing")
    return found


def write_checkpoint(
    aside: Path, final: Path, tensors: Mapping[str, Tensor], numbers: Any, entries: Mapping[str, Any]
) -> None:
    """Files first, each on the disk, then the manifest with their hashes, then the name."""
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_tensors(tensors, aside / TENSORS)
    write_json(aside / NUMBERS, numbers)
    _sync(aside / TENSORS)
    manifest = {"format": FORMAT, **entries, "files": files_of(aside)}
    write_json(aside / MANIFEST, manifest | {"own": own_hash(manifest)})
    _sync(aside)
    if final.exists():
        shutil.rmtree(final)
    os.replace(aside, final)
    _sync(final.parent)


def own_hash(manifest: Mapping[str, Any]) -> str:
    """Hash of a manifest's entries, so that an altered key is not taken for other settings."""
    return digest(json.dumps({k: v for k, v in manifest.items() if k != "own"}, sort_keys=True).encode())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(data: bytes) -> str:
    """sha256, in hex."""
    return hashlib.sha256(data).hexdigest()
