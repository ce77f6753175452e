"""Responses damaged in ways that anybody would notice: what a reward model must see without a label.

Pure functions of text. A probe that does not apply to a response (nothing to cut, no sentence) gives None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SENTENCE = re.compile(r".*?[.!?。！？]+(?=\s|$|[^\s.!?])\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ProbedAnswer:
    """A finished response to a prompt. ``prompt`` identifies the prompt; it is empty where there is none."""

    prompt: str
    text: str


Damaged = tuple[str, bool]  # text, and whether an end token follows


def cut_short(answer: ProbedAnswer, others: Sequence[ProbedAnswer]) -> Damaged | None:
    """The first half of the words (of the characters, where there are fewer than four words), then the end token."""
    words = list(re.finditer(r"\S+", answer.text))
    if len(words) >= 4:
        return answer.text[: words[len(words) // 2 - 1].end()], True
    text = answer.text.strip()
    return (text[: len(text) // 2], True) if len(text) >= 4 else None


def sentences_repeated(answer: ProbedAnswer, others: Sequence[ProbedAnswer]) -> Damaged | None:
    """Every sentence twice."""
    text = answer.text.rstrip()
    sentences = SENTENCE.findall(text)
    rest = text[sum(map(len, sentences)) :]
    parts = [*sentences, rest] if rest else sentences
    if not "".join(parts).strip():
        return None
    twice = [part if part[-1:].isspace() or " " not in text else part + " " for part in parts for _ in range(2)]
    return "".join(twice).rstrip(), True


def answer_to_another_prompt(answer: ProbedAnswer, others: Sequence[ProbedAnswer]) -> Damaged | None:
    """A good response to something else."""
    other = next((o for o in others if o.prompt != answer.prompt and o.text != answer.text), None)
    return (other.text, True) if other is not None and answer.prompt else None


def no_end_token(answer: ProbedAnswer, others: Sequence[ProbedAnswer]) -> Damaged | None:
    """The whole response without the token that ends it."""
    return answer.text, False


def empty_response(answer: ProbedAnswer, others: Sequence[ProbedAnswer]) -> Damaged | None:
    """Nothing but the end token."""
    return ("", True) if answer.text.strip() else None


PROBES: dict[str, Callable[[ProbedAnswer, Sequence[ProbedAnswer]], Damaged | None]] = {
    "cut short": cut_short,
    "sentences repeated": sentences_repeated,
    "answer to another prompt": answer_to_another_prompt,
    "end token missing": no_end_token,
    "empty response": empty_response,
}


def damage(answers: Sequence[ProbedAnswer]) -> dict[str, list[tuple[int, Damaged]]]:
    """Every probe's damaged responses with the numbers of the whole ones; probes that apply to none are left out."""
    out: dict[str, list[tuple[int, Damaged]]] = {name: [] for name in PROBES}
    for i, answer in enumerate(answers):
        others = [answers[(i + 1 + j) % len(answers)] for j in range(min(8, len(answers) - 1))]
        for name, probe in PROBES.items():
            if (made := probe(answer, others)) is not None:
                out[name].append((i, made))
    return {name: rows for name, rows in out.items() if rows}
