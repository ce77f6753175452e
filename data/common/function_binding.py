"""Which columns a user's function is given: by the names of its parameters, never by their order.

It works on signatures alone, of a loaded function or of a definition that was only read, and knows nothing of files.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from data.common.errors import UserError, nearest

OFFERED = ("prompts", "completions", "finished", "messages", "categories")
"""Columns that every function is offered, one value a row; the data's other columns come with them."""

ALIASES = {"responses": "completions"}
P = inspect.Parameter
CLOSE = 0.8  # similarity of two names that may be one misspelt


@dataclass(frozen=True, slots=True)
class Binding:
    """How a function is called.

    ``positional`` are columns for parameters without a keyword, in order; ``named`` those given by name; ``rest``
    says that it takes every other column as well.
    """

    positional: tuple[str, ...]
    named: tuple[str, ...]
    rest: bool
    fixed: frozenset[str] = frozenset()


def bind(
    parameters: Collection[inspect.Parameter], offered: Collection[str], name: str, fixed: Collection[str] = ()
) -> Binding:
    """Decide which of the columns on offer a function gets.

    Args:
        parameters: of its signature.
        offered: names of the columns on offer.
        name: of the function, for messages.
        fixed: parameters that ``functools.partial`` has set by name: they keep their value.

    Raises:
        UserError: a parameter without a default is not on offer, or no parameter takes a column.
    """
    known = {*offered, *(alias for alias, column in ALIASES.items() if column in offered)}
    rest = any(p.kind is P.VAR_KEYWORD for p in parameters)
    missing = [p.name for p in parameters if _is_required(p) and p.name not in known and p.name not in fixed]
    if missing:
        close = "".join(nearest(m, sorted(known)) for m in missing[:1])
        raise UserError(
            f"function {name!r}: no column is called {', '.join(map(repr, missing))}.{close} Its parameters are given "
            f"by name; on offer are {', '.join(sorted(known))}"
        )
    positional: list[str] = []
    for p in (p for p in parameters if p.kind is P.POSITIONAL_ONLY):
        if p.name not in known:
            break  # it and all that follow have defaults, or would be missing
        positional.append(p.name)
    usual = (P.POSITIONAL_OR_KEYWORD, P.KEYWORD_ONLY)
    named = tuple(p.name for p in parameters if p.kind in usual and p.name in known and p.name not in fixed)
    late = [p.name for p in parameters if p.kind is P.POSITIONAL_ONLY and _is_required(p) and p.name not in positional]
    starred = any(p.kind is P.VAR_POSITIONAL for p in parameters)
    if late or not (positional or named or (rest and not starred)):
        hint = "; a decorator's wrapper needs functools.wraps" if starred else ""
        raise UserError(
            f"function {name!r}: no parameter of it has the name of a column{hint}. On offer are "
            f"{', '.join(sorted(known))}, for example `def f(prompts, completions)` or `def f(completions, **kwargs)`"
        )
    return Binding(tuple(positional), named, rest, frozenset(fixed))


def _is_required(p: inspect.Parameter) -> bool:
    return p.default is P.empty and p.kind not in (P.VAR_KEYWORD, P.VAR_POSITIONAL)


def bind_function(fn: Callable[..., Any], offered: Collection[str], name: str) -> Binding:
    """``bind`` for a loaded function.

    Raises:
        UserError: as ``bind``, or the function's parameters have no names that can be read.
    """
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # some builtins have none
        raise UserError(
            f"function {name!r}: the names of its parameters cannot be read; call it from a function of yours, "
            "`def f(prompts, completions): ...`"
        ) from None
    fixed: set[str] = set()
    inner: Any = fn
    while isinstance(inner, functools.partial):
        fixed |= set(inner.keywords)
        inner = inner.func
    found = bind(parameters, offered, name, fixed)
    _check_wrapper(fn, found, name)
    return found


def _check_wrapper(fn: Callable[..., Any], found: Binding, name: str) -> None:
    """Refuse a decorator's wrapper that has the wrapped function's signature by ``functools.wraps`` and takes less.

    Raises:
        UserError: it cannot be called so.
    """
    try:
        outer = inspect.signature(fn, follow_wrapped=False)
        outer.bind(*found.positional, **dict.fromkeys(found.named))
    except ValueError:  # no signature of its own
        return
    except TypeError as error:
        raise UserError(
            f"function {name!r}: its decorator's wrapper cannot be called by the names of the columns ({error}); let "
            "the wrapper take `*args, **kwargs` and pass them on"
        ) from None


def overlooked(parameters: Collection[inspect.Parameter], offered: Collection[str]) -> list[tuple[str, str]]:
    """Parameters that keep their default though a column on offer has nearly their name, each with that column."""
    known = {*offered, *ALIASES}
    kept = [p.name for p in parameters if p.default is not P.empty and p.name not in known]
    near = [(name, difflib.get_close_matches(name, sorted(known), n=1, cutoff=CLOSE)) for name in kept]
    return [(name, found[0]) for name, found in near if found]


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives something to await instead of numbers."""
    inner: Any = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner)
    call = getattr(type(inner), "__call__", None)  # noqa: B004
    return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (fn, inner, call))


def parameters_of(node: ast.FunctionDef) -> list[inspect.Parameter]:
    """The parameters of a definition that was read and not run; defaults are there or not, without their value."""
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    first_default = len(plain) - len(a.defaults)
    out = []
    for i, arg in enumerate(plain):
        kind = P.POSITIONAL_ONLY if i < len(a.posonlyargs) else P.POSITIONAL_OR_KEYWORD
        out.append(P(arg.arg, kind, default=None if i >= first_default else P.empty))
    if a.vararg:
        out.append(P(a.vararg.arg, P.VAR_POSITIONAL))
    for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
        out.append(P(arg.arg, P.KEYWORD_ONLY, default=P.empty if default is None else None))
    if a.kwarg:
        out.append(P(a.kwarg.arg, P.VAR_KEYWORD))
    return out
