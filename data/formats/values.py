"""Single values of a row: texts, numbers, labels, lists, with the reason where they are none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.formats.rows import Reject, quoted


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DECIMAL = re.compile(r"[-+]?\d+,(\d{1,2}|\d{4,})")
"""A number with a comma before its decimals; three digits behind one may be thousands."""

LARGEST = 1e300  # of a number that stands where text is expected

_LIKED = words(
    "1 +1 true yes y good like liked up thumbs_up desirable chosen positive accept accepted approve approved helpful "
    "safe correct right 👍 ✓ ✔ ✅"
)
_NOT_LIKED = words(
    "0 -1 false no n bad dislike disliked down thumbs_down undesirable rejected reject negative declined unhelpful "
    "unsafe incorrect wrong 👎 ✗ ✘ ❌"
)


def string(value: Any, name: str) -> str:
    if isinstance(value, str):
        if "\x00" in value:
            raise Reject(f"{name} holds a NUL character")
        if not encodable(value):
            raise Reject(f"{name} holds half of a surrogate pair, which no text file can hold")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Reject(f"{name} is {kind(value)}, not text")
    if not abs(value) <= LARGEST:
        raise Reject(f"{name} is not text, nor a number of a usual size")
    return str(value)


def encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def number(value: Any, name: str) -> float:
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = value.replace(",", ".")
    try:
        found = float("nan") if isinstance(value, bool) else float(value)  # tables without types hold "0.5"
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not math.isfinite(found):
        too_large = isinstance(value, int) and not isinstance(value, bool)
        shown = repr(value)[:60] if isinstance(value, str | float) else "too large" if too_large else kind(value)
        raise Reject(f"{name} is {shown}, not a finite number")
    return found


def whole(value: Any, name: str) -> int:
    found = number(value, name)
    if not found.is_integer():
        raise Reject(f"{name} is {found}, not a whole number")
    return int(found)


def liked(value: Any, name: str) -> bool:
    """Whether a label says that a response is wanted: true, 1, "good" and the like, or false, 0, -1, "bad"."""
    word = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if word in _LIKED:
        return True
    if word in _NOT_LIKED:
        return False
    if re.fullmatch(r"-?\d+(\.\d+)?", word):
        raise Reject(
            f"{name} is {word[:60]}: neither liked (true, 1, good) nor not (false, 0, -1, bad); if it is a score, "
            f"write `columns: {{score: {quoted(name)}}}`"
        )
    raise Reject(f"{name} is {word[:60]!r}: neither liked (true, 1, good) nor not (false, 0, -1, bad)")


def kind(value: Any) -> str:
    names = {str: "text", dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    names |= {bytes: "bytes", int: "a number", float: "a number"}
    return "text" if isinstance(value, str) else names.get(type(value), f"a {type(value).__name__}")


def listed(value: Any, name: str) -> list[Any]:
    """A list, also one that a table holds as its JSON."""
    if isinstance(value, str) and value[:1] == "[":
        value = parsed(value, name)
    if not isinstance(value, list):
        raise Reject(f"{name} is {kind(value)}, not a list")
    return value


def parsed(value: str, name: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Reject(f"{name} is no JSON: {value[:60]!r}") from None


def first_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the columns that the row has."""
    for name in names:  # a generator takes twice as long, and every row asks
        if name in row:
            return name
    return None


def blank(value: Any) -> bool:
    """Whether nothing is lost without it: null, a blank text, an empty list or object."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})
