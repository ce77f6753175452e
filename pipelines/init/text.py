"""The text of a recipe: one table of lines, each a setting with its value and why, as YAML with comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from data.common.redaction import printable
from pipelines.recipe.yaml_source import read_text

WIDTH, COLUMN = 116, 32
PLAIN = re.compile(r"[A-Za-z0-9_./~][\w./~-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A setting.

    ``why`` becomes its comment; ``written`` is False for one that is shown with the value that it has anyway, behind a
    ``#``.
    """

    key: str
    value: Any
    why: str = ""
    written: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Settings under one key, or at the top where it is '', with sentences above them."""

    key: str
    lines: Sequence[Line]
    about: Sequence[str] = ()


def recipe_text(groups: Iterable[Group]) -> str:
    """The recipe; groups without a line that is written are comments as a whole."""
    return "\n\n".join(text for group in groups if (text := _group(group))) + "\n"


def _group(group: Group) -> str:
    out = [line for text in group.about for line in comment(text)]
    shown = any(line.written for line in group.lines)
    if group.key and group.lines:
        out.append(f"{'' if shown else '# '}{group.key}:")
    indent = "  " if group.key else ""
    for line in group.lines:
        out += _line(line, indent, commented=not (line.written and shown))
    return "\n".join(out)


def _line(line: Line, indent: str, commented: bool) -> list[str]:
    mark = "# " if commented else ""
    values = [f"{line.key}: {value(line.value)}"]
    if isinstance(line.value, Sequence) and not isinstance(line.value, str) and len(line.value) > 1:
        values = [f"{line.key}:", *(f"  - {value(item)}" for item in line.value)]
    rows = [f"{mark}{indent}{text}" for text in values]
    if not line.why:
        return rows
    trailing = f"{rows[0]:<{COLUMN}}  # {one_line(line.why)}"
    if len(rows) == 1 and len(trailing) <= WIDTH:
        return [trailing]
    return [*comment(line.why, indent), *rows]


def comment(text: str, indent: str = "") -> list[str]:
    """A sentence as lines of comments."""
    start = f"{indent}# "
    return textwrap.wrap(
        one_line(text),
        WIDTH,
        initial_indent=start,
        subsequent_indent=start,
        break_long_words=False,  # paths
        break_on_hyphens=False,
    ) or ["#"]


def one_line(text: str) -> str:
    """A text without line ends and control codes, which would end a comment."""
    return " ".join(printable(text).split())


def value(found: Any) -> str:
    """A value as YAML on one line; a text is quoted wherever a reader could take it for something else."""
    if isinstance(found, Mapping):
        return "{" + ", ".join(f"{value(k)}: {value(v)}" for k, v in found.items()) + "}"
    if isinstance(found, Sequence) and not isinstance(found, str):
        return "[" + ", ".join(map(value, found)) + "]"
    if found is None:
        return "null"
    if isinstance(found, float):
        return f"{found:.1e}" if found and abs(found) < 1e-3 else f"{found:g}"  # short, as 0.003 and 4.3e-04
    if isinstance(found, str) and not (PLAIN.fullmatch(found) and _reads_as_text(found)):
        quoted = yaml.safe_dump(found, default_style='"', allow_unicode=True, width=10**9)
        return quoted.removesuffix("\n").removesuffix("\n...")
    return str(found).lower() if isinstance(found, bool) else str(found)


def _reads_as_text(found: str) -> bool:
    return read_text(f"key: {found}\n", "text").data["key"] == found
