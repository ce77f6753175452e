"""Texts that are not what somebody meant to write: misread, escaped twice, an empty cell's name, a prompt again, a
speaker's name or further turns inside one turn.

Each looks like data and is learnt as it stands. All are found by patterns, so what is said is a doubt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from data.counting import MANY
from data.doctor.entry import Entry, Finding, Places

ENOUGH = 20  # rows below which a share says nothing
LONG = 8  # characters of a prompt that a response does not repeat by chance
EMPTY = frozenset({"nan", "NaN", "None", "null", "NULL", "<NA>", "#N/A", "undefined"})
"""How programs write a cell that holds nothing."""

_MISREAD = re.compile(
    "Ã[\u0080-\u00bfƒ†‡ˆ‰Š‹ŒŽ•˜š›œžŸ]|Â[\u0080-\u00bf]|â€[\u0080-\u00bfœ™˜“”¦¢–—]|â‚¬|ðŸ[\u0080-\u00bf]|Ð[\u0080-\u00bf°-¿]Ñ"
)
"""UTF-8 that was read as Latin-1 or Windows's 1252: an accented letter, a quote, a dash, a euro, an emoji."""
_ESCAPED = re.compile(r"(?<!\\)\\(?:n(?!u\b|i\b|eq|abla|eg\b|ot\b|ewcommand|oindent|onumber|exists|mid)|t(?![a-z]))")
_OTHER = re.compile(r"\$|\b[A-Za-z]:\\")
"""Marks of formulas and of Windows's paths, in which a backslash is one."""

_SPEAKER = r"(?:Human|User|Assistant|AI|Bot|Chatbot|HUMAN|USER|ASSISTANT|BOT|ChatGPT|GPT|用户|助手|问|答)\s?[:：]"
_NAMED = re.compile(rf"\s*(?:#+ *)?{_SPEAKER}")
_FURTHER = re.compile(rf"\S\s*\n\s*(?:#+ *)?{_SPEAKER}|<\|(?:im_start|start_header_id|user|assistant)\|>|\[/?INST\]")


def misread(text: str) -> bool:
    """Whether a text's bytes were read in another encoding than they were written in."""
    return not text.isascii() and _MISREAD.search(text) is not None


def escaped(text: str) -> bool:
    r"""Whether a text has ``\n`` or ``\t`` as two characters, and no line break: one would be in code or a table."""
    if "\\" not in text or "\n" in text or _OTHER.search(text):
        return False
    return _ESCAPED.search(text) is not None


class Meant:
    """Rows with texts that are not what was meant."""

    def __init__(self) -> None:
        self.rows = 0
        self.misread, self.escaped, self.empty, self.repeats = Places(), Places(), Places(), Places()
        self.named, self.further = Places(), Places()

    def add(self, entry: Entry) -> None:
        """Look at all texts of a row."""
        self.rows += 1
        texts = entry.texts
        if any(map(misread, texts)):
            self.misread.add(entry.place)
        if any(map(escaped, texts)):
            self.escaped.add(entry.place)
        if any(answer.strip() in EMPTY for answer in entry.answers):
            self.empty.add(entry.place)
        asked = entry.messages[-1].content.strip() if entry.messages else ""
        if len(asked) >= LONG and any(a.lstrip().startswith(asked) and a.strip() != asked for a in entry.answers):
            self.repeats.add(entry.place)
        said = [*entry.answers, *(m.content for m in entry.messages if m.role in ("user", "assistant"))]
        if any(map(_NAMED.match, said)):
            self.named.add(entry.place)
        if any(map(_FURTHER.search, said)):
            self.further.add(entry.place)

    def merge(self, other: Meant) -> None:
        """Take over what follows."""
        self.rows += other.rows
        for name in ("misread", "escaped", "empty", "repeats", "named", "further"):
            getattr(self, name).merge(getattr(other, name))

    def findings(self) -> Iterator[Finding]:
        """What was found; of what some texts rightly hold where it is more than a few rows."""
        few = MANY * max(self.rows, ENOUGH)
        if self.misread.count:
            text = "text whose encoding was misread before (‘cafÃ©’ for ‘café’); data.clean.mojibake mends it"
            yield self.misread.finding("misread text", f"{self.misread.count:,} rows hold {text}")
        if self.empty.count:
            text = "is what programs write for an empty cell, such as ‘nan’ or ‘None’"
            yield self.empty.finding("empty cell", f"{self.empty.count:,} rows have a response that {text}")
        if self.escaped.count > few:
            text = "a backslash and an n (or a t) where a line break was meant: they were escaped once too often"
            yield self.escaped.finding(
                "escaped line breaks", f"{self.escaped.count:,} of {self.rows:,} rows hold {text}"
            )
        if self.repeats.count > few:
            text = "begin with their whole prompt again, which a model would learn to repeat"
            yield self.repeats.finding(
                "repeated prompt", f"responses of {self.repeats.count:,} of {self.rows:,} rows {text}"
            )
        if self.named.count > few:
            text = "begin a turn with a speaker's name, such as ‘User:’: the template says who speaks, take it out"
            yield self.named.finding("speaker's name", f"{self.named.count:,} of {self.rows:,} rows {text}")
        if self.further.count > few:
            text = "hold marks of further turns inside one turn, such as ‘User:’ on a line: a model learns to go on"
            yield self.further.finding("turns in a turn", f"{self.further.count:,} of {self.rows:,} rows {text}")

    def facts(self) -> dict[str, Any]:
        """Nothing besides."""
        return {}


class Specials:
    """Rows whose texts hold special tokens as they are written: they become the tokens themselves.

    Args:
        names: of the tokenizer's special tokens.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        longest_first = sorted(names, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self.places: dict[str, Places] = {}

    def add(self, entry: Entry) -> None:
        """Look for them in all texts of a row."""
        if self._names is None:
            return
        for name in {name for text in entry.texts for name in self._names.findall(text)}:
            self.places.setdefault(name, Places()).add(entry.place)

    def merge(self, other: Specials) -> None:
        """Take over what follows."""
        for name, places in other.places.items():
            self.places.setdefault(name, Places()).merge(places)

    def findings(self) -> Iterator[Finding]:
        """Each token by itself."""
        for name, places in sorted(self.places.items()):
            text = (
                f"{places.count:,} rows hold `{name}` in a text, which becomes that special token: it may part turns, "
            )
            yield places.finding("special token", text + "and a response ends where it is a stop")

    def facts(self) -> dict[str, Any]:
        """Nothing besides."""
        return {}
