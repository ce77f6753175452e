"""Regular expressions of users, searched for in texts of models: Python's syntax, with a limit on time.

``re`` cannot be stopped once it backtracks, so the ``regex`` library runs them; what only that library would read as
something else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from data.common.errors import StageError

SECONDS = 2.0  # of CPU time a text
_ONLY_THEIRS = re.compile(r"(?<!\\)(?:\{[a-zA-Z]|\[\[:)")  # fuzzy matching and POSIX classes


@lru_cache(maxsize=64)
def compiled(pattern: str) -> Any:
    """The pattern, ready to be handed to ``occurrences``.

    Raises:
        ValueError: it is no regular expression, with the reason.
    """
    import regex

    try:
        re.compile(pattern)
        found = _ONLY_THEIRS.search(pattern)
        if found:
            raise ValueError(f"write \\{found[0]} for the characters {found[0]}")
        return regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None


def occurrences(pattern: str, text: str, what: str) -> Iterator[Any]:
    """Matches in ``text``, from left to right, without overlaps.

    Args:
        pattern: as ``compiled`` takes it.
        text: of a model.
        what: the setting that the pattern comes from, for the message.

    Raises:
        StageError: the search takes longer than ``SECONDS``.
    """
    try:
        yield from compiled(pattern).finditer(text, timeout=SECONDS)
    except TimeoutError:
        raise StageError(
            f"{what}: searching for {pattern[:80]!r} took more than {SECONDS:g} seconds in a text of {len(text):,} "
            "characters; write the pattern without repetitions inside repetitions, such as (a+)+"
        ) from None
