"""What of a conversation is supervised, and the proof that it is the response: its text is among the supervised ids.

Pure functions of texts; it knows nothing of templates and tokenizers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from data.counting import Fitted

IGNORE = -100
"""The label that no loss counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One conversation: ``labels`` equal ``ids`` where they are supervised and -100 elsewhere (same length).

    ``cut`` says that the response did not fit and lost its end, stop token included; ``fitted`` is what was counted.
    """

    ids: list[int]
    labels: list[int]
    cut: bool = False
    fitted: Fitted | None = None


def carries(supervised: str, answer: str) -> bool:
    """Whether the text of the supervised ids holds the response.

    White space, Unicode composition and the marks of unknown tokens aside, since tokenizers change those; a tokenizer
    that drops or merges characters is judged by what its own rendering of the response decodes to. White space is
    compared in the rendered text (``changed_spaces``).
    """
    return _bare(answer) in _bare(supervised)


def spells(supervised: str, shorter: str, body: str) -> bool:
    """Whether the text of supervised ids is ``body`` and no more than the rest of the last token that it needs.

    Args:
        supervised: their text.
        shorter: their text without the last id.
        body: what they have to say, compared as in ``carries``.
    """
    found, wanted = _bare(supervised), _bare(body)
    return found == wanted or (bool(wanted) and found.startswith(wanted) and not _bare(shorter).startswith(wanted))


def changed_spaces(rendered: str, answer: str) -> str:
    """A place of the response whose white space the rendered text has lost or changed; empty without one.

    White space at the ends and around markup (``<think>``) aside, which templates set as they like, and a response
    that the text does not carry at all.
    """
    text, said = _spaced(rendered), _spaced(answer)
    if said in text or not carries(rendered, answer):
        return ""
    parts = re.split(r"(\s+)", said)
    places = (parts[i - 1][-20:] + parts[i] + parts[i + 1][:20] for i in range(1, len(parts), 2))
    return next((place for place in places if place not in text), said[:60])


def missing_in_order(text: str, parts: Sequence[str]) -> list[int]:
    """The first part that a text does not carry behind those before it, as a list of its number; empty without one."""
    whole, at = _bare(text), 0
    for number, part in enumerate(map(_bare, parts)):
        found = whole.find(part, at)
        if found < 0:
            return [number]
        at = found + len(part)
    return []


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


_MARKUP = re.compile(r"\s*(</?[^<>\s]+>|\[/?[A-Z_]+\])\s*")


def _spaced(text: str) -> str:
    return _MARKUP.sub(r"\1", unicodedata.normalize("NFKC", text)).strip()


def end_of_content(text: str, at: int, content: str) -> int | None:
    """Where a turn's content ends that begins at ``at``, behind nothing but white space or markup (``<think>...>``)."""
    for spelled in (content, content.strip()):
        found = text.find(spelled, at)
        between = text[at:found].strip()
        if found >= 0 and (not between or (between[0] == "<" and between[-1] == ">")):
            return found + len(spelled)
    return None


def around(prompt: str, whole: str) -> str:
    """Where two texts part, for messages."""
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
    return f"they part at character {at}: {prompt[at : at + 20]!r} and {whole[at : at + 20]!r}"
