"""Weights as safetensors files: written with the file's name in what fails."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.backbone.artifacts import naming


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors into a file.

    Raises:
        OSError: the disk is full or cannot be written; names the file.
    """
    with naming(path):
        save_file(dict(tensors), path, metadata=metadata)
        if metadata is not None and len(metadata) > 1:
            _sort_metadata(path)
    readable(path)


def _sort_metadata(path: Path) -> None:
    """Put a file's metadata in the order of their names: the library writes several in another one each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def header_of(path: Path) -> dict[str, str]:
    """What a file says of itself beside its tensors."""
    with safe_open(path, framework="pt") as opened:
        return opened.metadata() or {}


def readable(path: Path) -> None:
    """Give a file, or the files of a folder, the mode that a new file has here: safetensors makes its own 0600."""
    os.umask(mask := os.umask(0o077))
    for file in [path, *path.glob("**/*.safetensors")] if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~mask)
