"""What can be checked of a response without asking anybody: rules of format and length, in the manner of IFEval.

Named in a recipe as ``rules.py:FUNCTION``: as a reward, as the gold judge, as a metric. ``followed`` checks the rule
that ``constraints.py`` wrote beside each prompt (columns ``rule`` and ``value``); the others hold for any response.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
END = re.compile(r"[.!?](?=[\"'”’)\]]*(?:\s|$))")  # of a sentence; what stands within a number is none
WHOLE = re.compile(r"(?:[.!?:;]|```|\d|[\"'”’)\]*}>])\s*$")
BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)
LEFTOVER = re.compile(r"<\|[^|]*\|>|^\s*(?:user|human|assistant|system)\s*:", re.IGNORECASE | re.MULTILINE)
PLAIN_WORDS = 80  # more is no short answer


def words(text: str) -> int:
    """Words of a text; a number is one, punctuation is none."""
    return len(WORD.findall(text))


def sentences(text: str) -> int:
    """Sentences of a text: ends of sentences, and what stands behind the last one."""
    rest = END.split(text)[-1]
    return len(END.findall(text)) + bool(WORD.search(rest))


def bullets(text: str) -> int:
    """Lines that begin with a bullet."""
    return len(BULLET.findall(text))


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "at_most_words": lambda text, value: 0 < words(text) <= int(value),
    "at_least_words": lambda text, value: words(text) >= int(value),
    "sentences": lambda text, value: sentences(text) == int(value),
    "bullets": lambda text, value: bullets(text) == int(value),
    "lowercase": lambda text, value: bool(WORD.search(text)) and text == text.lower(),
    "uppercase": lambda text, value: bool(WORD.search(text)) and text == text.upper(),
    "no_comma": lambda text, value: bool(WORD.search(text)) and "," not in text,
    "ends_with": lambda text, value: text.rstrip().endswith(value),
    "quoted": lambda text, value: len(text.strip()) > 2 and text.strip()[0] == text.strip()[-1] == '"',
}
"""Rules by name: from a response and the rule's value to whether the response follows it."""


def _near(found: int, asked: int) -> float:
    return 1 / (1 + abs(found - asked))


def _tail(text: str, value: str) -> float:
    """The share of a text's asked end that it ends with; half at least where it stands somewhere."""
    shared = next((i for i in range(len(value), 0, -1) if text.rstrip().endswith(value[-i:])), 0)
    return max(shared / len(value), 0.5 * (value in text))


DEGREES: dict[str, Callable[[str, str], float]] = {
    "at_most_words": lambda text, value: min(1.0, int(value) / max(1, words(text))),
    "at_least_words": lambda text, value: min(1.0, words(text) / int(value)),
    "sentences": lambda text, value: _near(sentences(text), int(value)),
    "bullets": lambda text, value: _near(bullets(text), int(value)),
    "lowercase": lambda text, value: _near(sum(c.isupper() for c in text), 0),
    "uppercase": lambda text, value: _near(sum(c.islower() for c in text), 0),
    "no_comma": lambda text, value: _near(text.count(","), 0),
    "ends_with": _tail,
    "quoted": lambda text, value: (text.lstrip()[:1] == '"') / 2 + (text.rstrip()[-1:] == '"') / 2,
}
"""How nearly a rule is followed: 1 where it is, less the more is missing."""

UNFINISHED = 0.5  # of the degree; as it stands it follows nothing


def nearly(
    completions: Sequence[str], rule: Sequence[str], value: Sequence[str], finished: Sequence[bool]
) -> list[float]:
    """1 where ``followed`` is, else how much of the rule is followed, below 1: something to climb where a model never
    follows a rule as it is."""
    out = []
    for text, name, given, done in zip(completions, rule, value, finished, strict=True):
        degree = DEGREES[name](text, given) * (1.0 if done else UNFINISHED) if WORD.search(text) else 0.0
        out.append(degree)
    return out


def followed(
    completions: Sequence[str], rule: Sequence[str], value: Sequence[str], finished: Sequence[bool]
) -> list[float]:
    """1 for a response that came to its end and follows its prompt's rule, else 0."""
    return [
        float(done and CHECKS[name](text, given))
        for text, name, given, done in zip(completions, rule, value, finished, strict=True)
    ]


def whole(completions: Sequence[str], finished: Sequence[bool]) -> list[float]:
    """1 for a response that came to its end, not inside a sentence."""
    return [float(done and bool(WHOLE.search(text))) for text, done in zip(completions, finished, strict=True)]


def brief(completions: Sequence[str]) -> list[float]:
    """1 for a response of some words, but of no more than 80."""
    return [float(0 < words(text) <= PLAIN_WORDS) for text in completions]


def unrepeated(completions: Sequence[str]) -> list[float]:
    """1 for a response in which no sentence or line of four words or more occurs twice."""
    found = []
    for text in completions:
        parts = [" ".join(WORD.findall(part)).lower() for part in re.split(r"\n|(?<=[.!?])\s", text)]
        long = [part for part in parts if part.count(" ") >= 3]
        found.append(float(bool(WORD.search(text)) and len(long) == len(set(long))))
    return found


def clean(completions: Sequence[str]) -> list[float]:
    """1 for a response without marks of a chat template or turns of somebody else."""
    return [float(not LEFTOVER.search(text)) for text in completions]
