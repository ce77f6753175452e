"""Weights as safetensors files: written with the file's name in what fails."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.backbone.artifacts import naming

LONGEST = 100_000_000  # bytes of a header, as the library has it
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
    """Put a file's metadata in the order of their names: the library writes several in another one each time.

    The sorted header has the same entries in as many bytes, which the library pads with spaces. One that a library
    writes at greater length is left: the file is whole, and its bytes alone differ from one writing to the next.
    """
    header, size = _header(path)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) <= size:
        with path.open("r+b") as file:
            file.seek(8)
            file.write(text.ljust(size))


def header_of(path: Path) -> dict[str, str]:
    """What a file says of itself beside its tensors."""
    with safe_open(path, framework="pt") as opened:
        return opened.metadata() or {}


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors of floating point numbers."""
    return {name: tuple(one["shape"]) for name, one in _floats(path)[0].items()}


def read_rows(path: Path, name: str, rows: Sequence[int]) -> Tensor:
    """Some rows of one matrix of floating point numbers, (len(rows), width).

    Only these are read: the library maps a whole file for writing, for which a large one needs as much free memory.

    Raises:
        OSError: the file ends before one of the rows.
        SafetensorError: the file's header is none.
    """
    found, start = _floats(path)
    dtype, (_, width), (first, _) = FLOATS[found[name]["dtype"]], found[name]["shape"], found[name]["data_offsets"]
    size = width * dtype.itemsize
    out = bytearray()
    with path.open("rb") as file:
        for row in rows:
            file.seek(start + first + row * size)
            out += file.read(size)
    if len(out) != size * len(rows):
        raise OSError(f"{path}: ends before a row of {name}")
    return torch.frombuffer(out, dtype=dtype).view(len(rows), width)


def _floats(path: Path) -> tuple[dict[str, Any], int]:
    """Dtype, shape and place of each tensor of floating point numbers, and where in the file places begin."""
    header, size = _header(path)
    tensors = {name: one for name, one in header.items() if name != "__metadata__" and one["dtype"] in FLOATS}
    return tensors, 8 + size


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A file's header, and how many bytes it takes behind the eight that say so.

    Raises:
        SafetensorError: it is none.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size)) if size <= LONGEST else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise SafetensorError(f"{path}: no header of a safetensors file")
    return header, size


def readable(path: Path) -> None:
    """Give a file, or the files of a folder, the mode that a new file has here: safetensors makes its own 0600."""
    os.umask(mask := os.umask(0o077))
    for file in [path, *path.glob("**/*.safetensors")] if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~mask)
