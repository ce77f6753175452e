"""How much distillation has to do: prompts that the teacher responds to, and rows. Light: planning reads it."""

from __future__ import annotations

from data.splits import Corpus
from stages.settings import DistilConfig

BLOCK = 256
"""Prompts that are answered between two safe points, with a table of random numbers of their own."""


def learnt_on(config: DistilConfig, corpus: Corpus) -> int:
    """Rows that the student is trained on."""
    if config.responses == "demonstrations":
        return len(corpus.demonstrations.train)
    return len(corpus.prompts.train[: config.prompts])


def asked(config: DistilConfig, corpus: Corpus) -> int:
    """Prompts that the teacher responds to, held-out ones included."""
    if config.responses == "demonstrations":
        return 0
    return learnt_on(config, corpus) + len(corpus.prompts.held_out[: config.held_out_prompts])


def blocks(config: DistilConfig, corpus: Corpus) -> int:
    """Blocks of these prompts."""
    return -(-asked(config, corpus) // BLOCK)
