"""Cells of tables: text, save where a list or an object is expected and JSON or Python's notation of one is there."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from typing import Any

LISTS = frozenset(
    (
        *("messages", "conversations", "conversation", "dialogue", "history", "turns", "instances", "outputs"),
        *("responses", "answers", "completions", "candidates", "generations", "choices"),
        *("scores", "ranks", "rewards", "ratings", "annotators"),
        *("chosen_messages", "rejected_messages", "prompt_messages"),
    )
)
"""Columns that hold lists, which a table can only hold as the notation of one."""


class Blank(str):
    """The text of a cell in which nothing stands: a table cannot say whether it is empty or missing."""


BLANK = Blank()


def cell(key: str, value: str) -> Any:
    """The text of a cell, or the list or object that it writes down.

    A column that is a list by nature is read so; any other only where it holds a turn or a list of turns, for text
    may begin with a bracket too.
    """
    if value.lstrip()[:1] not in ("[", "{"):
        return value if value.strip() else BLANK
    loaded = _loaded(value.strip())
    if loaded is None:
        return value
    turns = loaded if isinstance(loaded, list) else [loaded]
    if turns and all(_is_turn(turn) for turn in turns):
        return loaded
    objects = isinstance(loaded, list) and loaded and all(isinstance(x, dict) for x in loaded)
    return loaded if objects or key in LISTS else value


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and any(k in value for k in ("role", "from")) and len(value) > 1


def _loaded(value: str) -> list[Any] | dict[str, Any] | None:
    for read in (json.loads, _python):
        try:
            loaded = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError, tokenize.TokenError):
            continue
        return loaded if isinstance(loaded, list | dict) else None
    return None


def _python(value: str) -> Any:
    """A literal as Python or numpy prints it: numpy leaves out the commas between the items of a list."""
    return ast.literal_eval(_with_commas(value))


def _with_commas(value: str) -> str:
    tokens = list(tokenize.generate_tokens(io.StringIO(value.replace("\n", " ")).readline))
    out = []
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        out.append(token.string)
        ends = token.type in (tokenize.STRING, tokenize.NUMBER) or token.string in ("}", "]")
        begins = following is not None and (
            following.type in (tokenize.STRING, tokenize.NUMBER) or following.string in ("{", "[")
        )
        out.append(", " if ends and begins else " ")
    return "".join(out).strip()
