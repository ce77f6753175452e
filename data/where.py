"""``where``: which rows of a source are used, as a small expression over its columns.

``score > 3 and lang in ['en', 'de']``: comparisons of columns with each other or with values, joined by ``and``, ``or``
and ``not``. A column whose name is no word is ``row['its name']``. Nothing of it is run as code: it is parsed, every
part must be one of those named here, and then it is walked.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
LONGEST = 1000
FALSE = frozenset(("", "false", "0", "no", "off", "null", "none"))
"""Texts that a column which stands alone does not hold for."""


class WhereError(ValueError):
    """An expression that cannot be used; the message says what is wrong with it."""


class Where:
    """A checked expression; ``columns`` are those that it names.

    Raises:
        WhereError: it is no expression of the kind that this module describes.
    """

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise WhereError(f"it is longer than {LONGEST} characters")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            what = error.msg if isinstance(error, SyntaxError) else error
            raise WhereError(f"{text!r} is no expression ({what}); write e.g. score > 3 and lang == 'en'") from error
        self.text = text
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(_check(self._tree)))
        if not self.columns:
            raise WhereError(f"{text!r} names no column; write e.g. score > 3 and lang == 'en'")

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is used; a column that it lacks is null, which no order holds for."""
        return _true(_value(self._tree, row))


@lru_cache(maxsize=256)
def where(text: str) -> Where:
    """The checked expression of a text, the same object for the same text."""
    return Where(text)


def _check(node: ast.AST) -> list[str]:
    """The columns that an expression names."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
        return []
    if isinstance(node, ast.Name):
        return [] if node.id in CONSTANTS else [node.id]
    if isinstance(node, ast.Subscript) and (name := _subscript(node)) is not None:
        return [name]
    if isinstance(node, ast.BoolOp):
        return [c for value in node.values for c in _check(value)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        return _check(node.operand)
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [c for value in node.elts for c in _check(value)]
    if isinstance(node, ast.Compare):
        return [c for value in (node.left, *node.comparators) for c in _check(value)]
    raise WhereError(
        f"{ast.unparse(node)[:60]!r} is not allowed; there are columns, texts, numbers, lists, comparisons, in, and, "
        "or, not"
    )


def _subscript(node: ast.Subscript) -> str | None:
    named = isinstance(node.value, ast.Name) and node.value.id == "row" and isinstance(node.slice, ast.Constant)
    return node.slice.value if named and isinstance(node.slice.value, str) else None  # type: ignore[attr-defined]


def _value(node: ast.AST, row: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return CONSTANTS[node.id] if node.id in CONSTANTS else row.get(node.id)
    if isinstance(node, ast.Subscript):
        return row.get(_subscript(node) or "")
    if isinstance(node, ast.BoolOp):
        every = isinstance(node.op, ast.And)
        return (all if every else any)(_true(_value(value, row)) for value in node.values)
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, row)
        return (
            (not _true(value)) if isinstance(node.op, ast.Not) else -value if isinstance(value, int | float) else None
        )
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_value(value, row) for value in node.elts]
    assert isinstance(node, ast.Compare)
    values = [_value(value, row) for value in (node.left, *node.comparators)]
    return all(_holds(op, a, b) for op, a, b in zip(node.ops, values, values[1:], strict=False))


def _holds(op: ast.cmpop, a: Any, b: Any) -> bool:
    if isinstance(op, ast.In | ast.NotIn):
        inside = b is not None and _inside(a, b)
        return inside is isinstance(op, ast.In)
    if isinstance(op, ast.Eq | ast.Is):
        return _equal(a, b)
    if isinstance(op, ast.NotEq | ast.IsNot):
        return not _equal(a, b)
    a, b = _numbers(a, b)
    if isinstance(a, bool) or isinstance(b, bool):
        return False
    kinds = (str, str) if isinstance(a, str) else (int | float, int | float)
    return isinstance(a, kinds[0]) and isinstance(b, kinds[1]) and ORDERS[type(op)](a, b)


def _inside(a: Any, b: Any) -> bool:
    if isinstance(b, str):
        return isinstance(a, str) and a in b
    return isinstance(b, list | tuple | dict) and any(_equal(a, x) for x in b)


def _equal(a: Any, b: Any) -> bool:
    a, b = _alike(a, b)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Text next to a number or a truth value is read as one: tables without types hold nothing but text."""
    if isinstance(a, str) and isinstance(b, bool | int | float):
        return _typed(a, b), b
    if isinstance(b, str) and isinstance(a, bool | int | float):
        return a, _typed(b, a)
    return a, b


def _numbers(a: Any, b: Any) -> tuple[Any, Any]:
    """``_alike``, and two texts that are both numbers as those: '10' is more than '9'."""
    if isinstance(a, str) and isinstance(b, str):
        one, other = _typed(a, 0), _typed(b, 0)
        return (a, b) if isinstance(one, str) or isinstance(other, str) else (one, other)
    return _alike(a, b)


def _true(value: Any) -> bool:
    """Whether a value that stands alone holds: a table without types writes its truth values as words."""
    return value.strip().lower() not in FALSE if isinstance(value, str) else bool(value)


def _typed(text: str, kind: Any) -> Any:
    if isinstance(kind, bool):
        return {"true": True, "false": False, "1": True, "0": False}.get(text.strip().lower(), text)
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
