"""JSON that others may have written: text and objects from regular files of bounded size, or one clear error.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from data.common.errors import UserError

LARGEST = 64 << 20


def read_object(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: as ``read_text``; not JSON, a key given twice, nested too deeply, or no object.
    """
    return object_of(read_text(path, largest), str(path))


def read_text(path: Path, largest: int) -> str:
    """The text of a file.

    Raises:
        UserError: missing, no regular file (a device would never end), larger than ``largest`` bytes, or not UTF-8.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: is not a regular file")
        if found.st_size > largest:
            raise UserError(f"{path}: {found.st_size:,} bytes are too many (at most {largest:,})")
        with path.open("rb") as file:
            return file.read(largest + 1).decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged (not UTF-8 text, byte {error.start})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def object_of(text: str, name: str) -> dict[str, Any]:
    """The object that a text holds; ``name`` is for messages.

    Raises:
        UserError: as ``read_object``.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: damaged (not JSON: {error.msg}, line {error.lineno})") from error
    except (ValueError, RecursionError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
        raise UserError(f"{name}: damaged ({text})") from error
    if not isinstance(value, dict):
        raise UserError(f"{name}: damaged (holds a {type(value).__name__}, not an object)")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} is given twice")
    return out
