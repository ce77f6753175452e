"""A preference written as a function: a story in which somebody is kind and that comes to an end.

Named in a recipe as ``kindness.py:kindness``: as the annotator that ranks sampled stories, as a reward, as the gold
judge. It knows words, not meaning: a story in which somebody says "help" only in a lie counts as well.
"""

from __future__ import annotations

import re

KIND = re.compile(
    r"\b(help(ed|s|ing)|shar(e|ed|es|ing)|hug(s|ged|ging)?|kind(ly|ness)?|thank(ed|s|ful)?|comfort(ed|s)?"
    r"|gave (him|her|them|it) an?|forg[ai]ve|gentl[ey]|took care|let me help|can help)\b",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"[.!?][\"']?(?=\s|$)")
SHORTEST = 3  # sentences: what is over sooner is no story


def is_kind(story: str) -> bool:
    """Whether somebody helps, shares, thanks, hugs or comforts."""
    return KIND.search(story) is not None


def comes_to_an_end(story: str, finished: bool) -> bool:
    """Whether the storyteller stopped by itself, behind a whole sentence, with something told."""
    text = story.rstrip()
    ends = [match.end() for match in SENTENCE.finditer(text)]
    return finished and len(ends) >= SHORTEST and ends[-1] == len(text)


def kindness(prompts: list[str], completions: list[str], finished: list[bool]) -> list[float]:
    """One point for kindness, one for an end: 0, 1 or 2 for each story."""
    return [
        float(is_kind(story) + comes_to_an_end(story, done)) for story, done in zip(completions, finished, strict=True)
    ]
