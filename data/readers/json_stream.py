"""One JSON value that is large, row by row: what is held in memory is a window of its text and one row.

It is read twice: once to see that it is whole JSON and what its parts are, and once for its rows. What is damaged, or
is one row, is left to ``json_rows``, which reads it whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from data.readers.decoding import Encoding
from data.readers.packed import PACKED, Content
from data.readers.rows import Names
from data.storage.digests import digest

LARGE = 1 << 22
"""Bytes from which on a file is read so."""

CHUNK = 1 << 20
"""Characters that are read at a time, at least."""

MAX_KEYS = 1000
"""Keys of an object that are told apart; with more of them it can only be rows by their id."""

_BLANK = re.compile(r"[ \t\r\n]*")


class NotJson(Exception):
    """The text is not one whole JSON value."""


class Window:
    """The text of a file, which is read on as it is used."""

    def __init__(self, content: Content, encoding: Encoding) -> None:
        self._chunks = _decoded(content, encoding)
        self._text, self._at, self._ended = "", 0, False
        self._before = 0  # characters that are dropped
        self._line, self._counted = 1, 0
        self.fill()

    def fill(self) -> bool:
        """Read on, about as much as is held; whether there was more."""
        self.line()
        self._text, self._before = self._text[self._at :], self._before + self._at
        self._at = self._counted = 0
        parts, size, wanted = [self._text], 0, max(CHUNK, len(self._text))
        while size < wanted and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
            size += len(chunk)
        self._ended = size < wanted
        self._text = "".join(parts)
        return size > 0

    def line(self) -> int:
        """The number of the line that is read."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    @property
    def place(self) -> int:
        """Characters before what is read."""
        return self._before + self._at

    def skip_to(self, place: int) -> None:
        """Go on at a place that was met before."""
        while self._before + len(self._text) < place:
            self._at = len(self._text)
            self.fill()
        self._at = place - self._before

    def next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            found = _BLANK.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self.fill():
                return ""

    def take(self, *wanted: str) -> str:
        """Go past one of these characters.

        Raises:
            NotJson: another one stands there.
        """
        found = self.next()
        if found not in wanted or not found:
            raise NotJson
        self._at += 1
        return found

    def value(self, names: Names | None = None) -> Any:
        """The value that begins here.

        Raises:
            NotJson: there is none.
        """
        if not self.next():
            raise NotJson
        decoder = _PLAIN if names is None else json.JSONDecoder(object_pairs_hook=names.once)
        seen: tuple[str, int] | None = None
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                found = error.msg, self._before + error.pos
                if self._ended or (found == seen and "string" not in error.msg):
                    raise NotJson from error  # it is no matter of what follows
                seen = found
            except (ValueError, RecursionError) as error:
                raise NotJson from error
            self.fill()


_PLAIN = json.JSONDecoder()


def _decoded(content: Content, encoding: Encoding) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding.name)()
    first = True
    with content.open() as stream:
        for chunk in content.bounded(stream):
            text = decoder.decode(chunk)
            if encoding.ends == b"\r":
                text = text.replace("\r", "\n")
            yield text.removeprefix("\ufeff") if first else text
            first = first and not text
        yield decoder.decode(b"", final=True)


# ---- what there is ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Part:
    """A list or object: where its first item begins, how many there are, and what they all are."""

    kind: str  # "list", "object" or "other"
    place: int = 0
    count: int = 0
    rows: bool = True  # objects or lists
    lists: bool = True
    texts: bool = True
    viewed: bool = True  # objects with a row inside
    distinct: bool = True  # each begins on a line of its own
    digits: bool = True  # keys of an object
    keys: int = 0  # a hash of them, in order
    first: str = ""


@dataclass(slots=True)
class Layout:
    """What one JSON value is made of: a list, or an object with parts by their keys."""

    whole: Part | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    count: int = 0
    by_id: bool = True  # rows as the values of one object
    columnar: bool = True  # a column a key, its cells by their numbers
    first: str = ""


def is_large(content: Content) -> bool:
    """Whether a file is read row by row."""
    packed = bool(content.member) or content.path.suffix.lower() in PACKED
    return content.path.stat().st_size >= (LARGE // 64 if packed else LARGE)


def layout_of(opened: Callable[[], Window]) -> Layout | None:
    """The layout of a file; None where it is no whole JSON, no list or object, or names a key twice."""
    try:
        window = opened()
        out = Layout()
        if window.next() == "[":
            out.whole = _part(window)
        elif window.next() == "{":
            _object(window, out)
        else:
            return None
        return None if window.next() else out
    except (NotJson, UnicodeDecodeError):
        return None


def _object(window: Window, out: Layout) -> None:
    for key in _keys(window):
        part = _part(window)
        if key in out.parts:
            raise NotJson
        out.first = part.first if not out.count else out.first
        out.count += 1
        out.by_id = out.by_id and part.kind == "object" and part.count > 0 and part.first == out.first
        out.columnar = out.columnar and part.kind == "object" and part.count > 0 and part.digits
        if out.count <= MAX_KEYS:
            out.parts[key] = part
        elif not out.by_id:
            raise NotJson


def _keys(window: Window) -> Iterator[str]:
    """The keys of the object that begins here, each when its value is to be read."""
    window.take("{")
    if window.next() == "}":
        window.take("}")
        return
    while True:
        if window.next() != '"':
            raise NotJson
        key = window.value()
        window.take(":")
        yield key
        if window.take(",", "}") == "}":
            return


def _items(window: Window) -> Iterator[None]:
    """Stop before each item of the list that begins here."""
    window.take("[")
    if window.next() == "]":
        window.take("]")
        return
    while True:
        window.next()
        yield
        if window.take(",", "]") == "]":
            return


def _part(window: Window) -> Part:
    begins = window.next()
    if begins not in ("[", "{") or not begins:
        window.value()
        return Part("other")
    part, line = Part("list" if begins == "[" else "object", window.place), 0
    if begins == "{":
        for key in _keys(window):
            window.value()
            part.first = key if not part.count else part.first
            part.digits = part.digits and key.isdigit()
            part.keys = digest(f"{part.keys} {key}")
            part.count += 1
        return part
    for _ in _items(window):
        part.distinct = part.distinct and window.line() > line
        line = window.line()
        item = window.value()
        part.rows = part.rows and isinstance(item, dict | list)
        part.lists = part.lists and isinstance(item, list)
        part.texts = part.texts and isinstance(item, str)
        part.viewed = part.viewed and isinstance(item, dict) and "row" in item
        part.count += 1
    return part


# ---- its rows --------------------------------------------------------------------------------------------------------


def listed(window: Window, part: Part) -> Iterator[tuple[int, Any, Names]]:
    """The items of a list, each with its line and the keys that it names twice."""
    window.skip_to(part.place)
    for _ in _items(window):
        names, line = Names(), window.line()
        yield line, window.value(names), names


def paired(window: Window, part: Part | None = None) -> Iterator[tuple[str, Any, Names]]:
    """The keys and values of an object, of the whole one where no part is given."""
    if part is not None:
        window.skip_to(part.place)
    for key in _keys(window):
        names = Names()
        yield key, window.value(names), names


def alike(parts: list[Part]) -> bool:
    """Whether parts have equally many items, and objects the same keys in the same order."""
    return all(one.count == other.count and one.keys == other.keys for one, other in pairwise(parts))
