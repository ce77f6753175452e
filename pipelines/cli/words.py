"""The words of a command line before anything reads them: names that cannot be meant, and the home folder's sign."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data.common.errors import UserError

MAY_BE_EMPTY = frozenset({"--system"})
"""Options whose value is a text, and no name."""

_HOME = re.compile(r"(--[\w-]+=)?(~/.*|~)", re.DOTALL)
_OPTION = re.compile(r"--[\w-]+")


def plain_words(given: Sequence[str]) -> list[str]:
    """The words with ``~/`` as the home folder, which a shell leaves as it is behind ``=`` and in quotes.

    Raises:
        UserError: one is empty (as that of a variable that is not set: a path would be the folder that one is in), or
            its bytes are no text, which no recipe, manifest or report could hold.
    """
    out: list[str] = []
    for i, word in enumerate(given):
        if any("\ud800" <= character <= "\udfff" for character in word):
            name = word.encode("utf-8", "backslashreplace").decode()
            raise UserError(f"{name}: its bytes are no UTF-8 text; rename the file or folder, and name it anew")
        option, equals, value = word.partition("=")
        empty = not word or (bool(equals) and not value and _OPTION.fullmatch(option) is not None)
        before = option if word else (given[i - 1] if i else "")
        if empty and before not in MAY_BE_EMPTY:
            where = f"{before}: its value" if before.startswith("--") else f"argument {i + 1}"
            raise UserError(f"{where} is empty; give one (is a variable of the shell not set?)")
        home = _HOME.fullmatch(word)
        out.append(f"{home[1] or ''}{Path(home[2]).expanduser()}" if home else word)
    return out
