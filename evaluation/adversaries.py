"""Responses that deserve nothing, judged as the systems are: a judge that prefers one of them is unreliable."""

from __future__ import annotations

from collections.abc import Sequence

CONSTANT = "Thank you for the question. I am happy to help with this. Here is a good, complete and correct answer."


def adversaries(prompts: Sequence[str], answers: Sequence[str]) -> dict[str, list[str]]:
    """One response a prompt from each adversary, by name.

    Args:
        prompts: what was asked.
        answers: those of the system that they are compared with. Its longest one (the first of equals) is given to
            every prompt: a judge that prefers it does not read the prompt.
    """
    rows = len(prompts)
    return {
        "longest_answer": [max(answers, key=len)] * rows,
        "empty_answer": [""] * rows,
        "constant_answer": [CONSTANT] * rows,
        "repeated_prompt": list(prompts),
    }


def named(adversary: str) -> str:
    """As sentences call it."""
    return "prompt repeated" if adversary == "repeated_prompt" else adversary.replace("_answer", " response")
