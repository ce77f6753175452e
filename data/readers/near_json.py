"""Text that is nearly JSON: with comments and commas behind the last item, or a line as Python prints a dictionary."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from typing import Any

COMMENTS = "comments are left out: JSON has none"
COMMAS = "comments, and commas behind a last item, are left out: JSON has none"
PYTHON = "lines that are no JSON, but what Python prints of a dictionary or a list, are read as that: {:,}"

_COMMENT = r"//[^\n]*|/\*.*?\*/"
_COMMENTS = re.compile(rf'"(?:[^"\\\n]|\\.)*"|{_COMMENT}', re.DOTALL)
_COMMAS = re.compile(rf"{_COMMENTS.pattern}|,(?=(?:\s|{_COMMENT})*[}}\]])", re.DOTALL)


def without_comments(text: str, commas: bool = False) -> str:
    """The text with blanks in place of comments, so that all else keeps its place.

    Args:
        commas: whether commas behind a last item go as well; on a line of its own one is more likely damage.
    """

    def blanked(found: re.Match[str]) -> str:
        token = found[0]
        return token if token[0] == '"' else re.sub(r"[^\n]", " ", token)

    return (_COMMAS if commas else _COMMENTS).sub(blanked, text)


def printed_by_python(text: str) -> Any:
    """What Python prints as this text, a dictionary or a list; None where it prints nothing like it.

    What is not word for word what Python prints is damage, and stays so.
    """
    bare = text.strip()
    if bare[:1] not in ("{", "["):
        return None
    try:
        value = ast.literal_eval(bare)
        return json.loads(json.dumps(value)) if value and repr(value) == bare else None  # tuples are lists
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def remark_on_python(text: str) -> str:
    """What to say of text that looks like a dictionary of Python's and cannot be read as one; empty of other text."""
    quoted = re.match(r"\s*[\[{(]*'[^'\n]{1,99}'\s*:", text)
    return " (it looks like a dictionary of Python's with more than plain values: write rows by json.dumps)" * bool(
        quoted
    )


def remarks(mended: Counter[str]) -> list[str]:
    """What was mended in a file, a sentence for each kind."""
    return [text.format(mended[text]) for text in (COMMENTS, PYTHON) if mended[text]]
