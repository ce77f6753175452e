"""Values inside objects and lists of a row, by paths such as ``request.messages`` or ``choices.0.text``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

ALTERNATIVES = frozenset({"answer", "answers", "output", "response", "target", "targets", "references"})
"""Names of lists of which each item is right."""

DEEPEST = 5
"""Steps of a path."""


def lifted(row: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """The row with what stands at each path under the path's name, and no longer inside.

    A path that leads nowhere is not there. The row itself is not changed.
    """
    out = dict(row)
    for path in paths:
        found, out = _taken(out, path.split("."))
        if found is not None:
            out[path] = found
            if not _holds(out[root := path.partition(".")[0]]):
                out.pop(root)
    return out


def _holds(value: Any) -> bool:
    """Whether anything is left in it."""
    if isinstance(value, Mapping):
        return any(_holds(inner) for inner in value.values())
    if isinstance(value, list):
        return any(_holds(inner) for inner in value)
    return value is not None


def _taken(container: Any, steps: list[str]) -> tuple[Any, Any]:
    """What stands at the end of the steps, and a copy of the container without it."""
    key: Any = steps[0]
    if isinstance(container, list):
        if not key.isdigit() or int(key) >= len(container):
            return None, container
        key, out = int(key), list[Any](container)
    elif isinstance(container, Mapping) and key in container:
        out = dict(container)  # type: ignore[assignment]
    else:
        return None, container
    if len(steps) == 1:
        found, out[key] = out[key], None
        return found, out
    found, out[key] = _taken(out[key], steps[1:])
    return found, out


def paths_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Values inside the row's objects by their paths; of a list only its first item."""
    return {path: value for path, value in _walk(row, "", DEEPEST) if "." in path}


def _walk(value: Any, path: str, left: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and left and not {"role", "from"} & set(value):
        for key, inner in value.items():
            if "." not in str(key):
                yield from _walk(inner, f"{path}.{key}" if path else str(key), left - 1)
        return
    if isinstance(value, list) and value and path and left:
        one_of = len(value) == 1 or path.partition(".")[0] in ALTERNATIVES
        plain = (one_of and isinstance(value[0], str)) or (len(value) == 1 and isinstance(value[0], Mapping))
        if plain and not (isinstance(value[0], Mapping) and {"role", "from"} & set(value[0])):
            yield from _walk(value[0], f"{path}.0", left - 1)
            return
    yield path, value
