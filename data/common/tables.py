"""Tables of what can be named in a recipe: an entry's code loaded when it is called, a name checked against its table.

So a table can be read without the libraries that its entries need.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from data.common.errors import nearest


def late(reference: str) -> Callable[..., Any]:
    """The function or class ``module:name``, imported at its first call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        module, _, name = reference.partition(":")
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call


def in_table(table: Mapping[str, Any]) -> Callable[[str], str]:
    """A check for pydantic: the value is a name in ``table``.

    Raises:
        ValueError: it is not; all names and the nearest are given.
    """

    def check(name: str) -> str:
        if name not in table:
            known = ", ".join(f"'{n}'" for n in table)
            raise ValueError(f"must be one of {known}, not {name!r}.{nearest(name, table)}".removesuffix("."))
        return name

    return check
