"""Which language and script a text is in: languages by ``py3langid``, whose model comes with it, scripts by Unicode."""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections import Counter
from functools import cache
from typing import Any

import regex

from data.common.errors import UNWRITABLE

TOO_SHORT = 16
"""Letters below which a language is a guess; a character of a script without spaces counts as four."""
LONGEST = 2_000
"""Characters of a text that are looked at."""

SCRIPTS = (
    *("Latin", "Han", "Hiragana", "Katakana", "Hangul", "Arabic", "Devanagari", "Cyrillic", "Greek", "Hebrew", "Thai"),
    *("Bengali", "Tamil", "Telugu", "Gujarati", "Gurmukhi", "Kannada", "Malayalam", "Georgian", "Armenian", "Ethiopic"),
    *("Khmer", "Lao", "Myanmar", "Sinhala"),
)
_LETTERS = regex.compile(r"[\p{L}\p{M}]")
_WIDE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_CODE = regex.compile(r"```.*?(```|\Z)|https?://\S+", regex.DOTALL)
_SCRIPT = {name: regex.compile(rf"\p{{Script={name}}}") for name in SCRIPTS}
_ASCII, _ASCII_LETTER = re.compile(r"[\x00-\x7f]+"), re.compile("[A-Za-z]")
_EMOJI = regex.compile(r"\p{Extended_Pictographic}|\p{Regional_Indicator}")


def language_of(text: str) -> str | None:
    """ISO 639-1 code of a text's language, blocks of code left out; None where it has too few letters to tell."""
    words = _CODE.sub(" ", unicodedata.normalize("NFKC", text[:LONGEST]))
    if len(_LETTERS.findall(words)) + 3 * len(_WIDE.findall(words)) < TOO_SHORT:
        return None
    return str(_identifier().classify(words)[0])


def load_model() -> None:
    """Have the model in memory, where it takes 60 MB; unpacking it takes 110 MB for a moment."""
    _identifier()


@cache
def known_languages() -> frozenset[str]:
    """The codes that ``language_of`` can give."""
    return frozenset(map(str, _identifier().labels))


@cache
def _identifier() -> Any:
    from py3langid import langid

    try:
        return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    except OSError as error:  # it unpacks its model into a temporary file, and does not name it
        if error.filename is not None or error.errno not in UNWRITABLE:
            raise
        raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error


def script_of(text: str) -> str:
    """The script of most of a text's letters; ``Japanese`` for Han with kana; ``emoji``, ``none`` without letters."""
    part = text[:LONGEST]
    latin, wide = len(_ASCII_LETTER.findall(part)), _ASCII.sub("", part)
    counts = Counter({name: len(found) for name, each in _SCRIPT.items() if (found := each.findall(wide))})
    counts["Latin"] += latin
    kana = counts["Hiragana"] + counts["Katakana"]
    if kana and 8 * kana >= counts["Han"]:
        counts["Japanese"] = kana + counts["Han"]
        counts["Han"] = counts["Hiragana"] = counts["Katakana"] = 0
    if counts.total():
        return counts.most_common(1)[0][0]
    if _LETTERS.search(part):
        return "other"
    return "emoji" if _EMOJI.search(part) else "none"
