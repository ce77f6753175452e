"""What every reader yields: a place and a row, or why there is none, or a note to the user about the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

TextUnit = Literal["auto", "paragraph", "line", "file"]
CELLS = "(cells)"
"""The key under which a reader hands over the cells of a line that has no header."""
NOT_READ = "not read"
"""What remarks say of parts of a file that no row has."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line or row that could not be read."""

    reason: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something found out about a file that decides how it is read, such as its encoding."""

    text: str


Row = dict[str, Any] | list[Any] | str
Raw = tuple[str, Row | BadLine | Remark]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a file is read where the recipe says so; the defaults find out.

    ``header`` is whether tables have a header line, or the names of the columns of one that has none. ``split``
    chooses among several lists of one JSON file, or sheets; ``names`` are columns that keep their capitals.
    """

    text_unit: TextUnit = "auto"
    encoding: str | None = None
    delimiter: str | None = None
    header: bool | tuple[str, ...] = True
    split: str | None = None
    names: tuple[str, ...] = ()


@dataclass(slots=True)
class Names:
    """Keys of one JSON object that came twice, collected while it is parsed."""

    twice: list[str] = field(default_factory=list)

    def once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The hook of ``json.loads``: a dict, and a note of the keys that it cannot hold twice."""
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            self.twice += [name for name in out if names.count(name) > 1]
        return out


def known_encoding(name: str) -> bool:
    """Whether Python can decode text of this encoding."""
    try:
        return b"a".decode(name) is not None
    except (LookupError, UnicodeDecodeError) as error:
        return isinstance(error, UnicodeDecodeError)  # a wide encoding, of which one byte is half a character
