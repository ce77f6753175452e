"""A reward that no stage has trained, asked by ids: each response gets the score of its text, and progress is told."""

from __future__ import annotations

import torch

from data.records import Message
from data.template import Renderer
from reward.card.of_terms import AT_ONCE, TermsAsked
from reward.terms.composition import WeightedSum
from tests.conftest import word_tokenizer


def test_responses_are_scored_by_their_texts_in_parts_that_are_told() -> None:
    reward = WeightedSum([("words", 2.0, lambda s: torch.tensor([float(len(text.split())) for text in s.texts]))])
    asked = TermsAsked(reward, Renderer(word_tokenizer(), template="dialogue"), [])
    count = 2 * AT_ONCE + 5
    texts = [" ".join(["w3"] * (i % 7 + 1)) for i in range(count)]
    prompts = [(Message(role="user", content=f"w{i % 9 + 1}"),) for i in range(count)]
    queries, responses = asked.encoded(prompts, texts, [True] * count)
    told: list[int] = []
    with asked.memory.reporting(told.append):
        scores = asked.score_ids(queries, responses)
    assert scores.tolist() == [2.0 * (i % 7 + 1) for i in range(count)]
    assert told == [AT_ONCE, AT_ONCE, 5]
