"""A reward that no stage has trained, asked by ids: each response gets the score of its text, and progress is told."""

from __future__ import annotations

from pathlib import Path

import torch

from data.records import Message, Prompt, RankedAnswers
from data.template import Renderer
from reward.card.of_terms import AT_ONCE, TermsAsked, card_of_terms
from reward.card.scored_once import silent
from reward.terms.composition import FunctionReward, WeightedSum
from tests.conftest import word_tokenizer


def test_responses_are_scored_by_their_texts_in_parts_that_are_told() -> None:
    reward = WeightedSum([("words", 2.0, lambda s: torch.tensor([float(len(text.split())) for text in s.texts]))])
    asked = TermsAsked(reward, Renderer(word_tokenizer(), template="dialogue"))
    count = 2 * AT_ONCE + 5
    texts = [" ".join(["w3"] * (i % 7 + 1)) for i in range(count)]
    prompts = [Prompt(messages=(Message(role="user", content=f"w{i % 9 + 1}"),), group="") for i in range(count)]
    rows = [asked.ids_of(*one) for one in zip(prompts, texts, strict=True)]
    queries, responses = [q for q, _ in rows], [a for _, a in rows]
    told: list[int] = []
    with asked.memory.reporting(told.append):
        scores = asked.score_ids(queries, responses)
    assert scores.tolist() == [2.0 * (i % 7 + 1) for i in range(count)]
    assert told == [AT_ONCE, AT_ONCE, 5]


def ranked(prompt: str, answers: tuple[str, ...], number: int, answer: str) -> RankedAnswers:
    asked = Prompt(
        messages=(Message(role="user", content=prompt),), group=prompt, columns={"answer": answer, "number": number}
    )
    return RankedAnswers(prompt=asked, answers=answers, ranks=tuple(range(len(answers))))


def test_each_ranking_is_scored_with_the_columns_of_its_own_row(tmp_path: Path) -> None:
    """Two rankings of each prompt, of opposite order and with opposite answers: a function that compares is right."""
    (tmp_path / "f.py").write_text(
        "def right(completions, answer):\n    return [float(a == c) for c, a in zip(completions, answer)]\n"
    )
    prompts = [f"w{i % 9} w{i // 9}" for i in range(30)]
    rankings = [
        ranked(p, ("w20", "w21") if a == "w20" else ("w21", "w20"), i, a)
        for i, (p, a) in enumerate((p, a) for p in prompts for a in ("w20", "w21"))
    ]
    reward = WeightedSum([("right", 1.0, FunctionReward("f.py:right", tmp_path))])
    renderer = Renderer(word_tokenizer(), template="dialogue")
    card = card_of_terms(reward, renderer, [], rankings, seed=0, phase=silent)
    assert card["accuracy"]["share"] == 1.0


def test_different_prompts_of_the_same_ids_are_scored_each_by_its_own_text(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(
        "def known(prompts, completions):\n    return [float(p == 'no word') for p in prompts]\n"
    )
    asked = TermsAsked(
        WeightedSum([("known", 1.0, FunctionReward("f.py:known", tmp_path))]),
        Renderer(word_tokenizer(), template="dialogue"),
    )
    prompts = [Prompt(messages=(Message(role="user", content=text),), group="") for text in ("no word", "is known")]
    rows = [asked.ids_of(prompt, "w3") for prompt in prompts]
    assert asked.score_ids([q for q, _ in rows], [a for _, a in rows]).tolist() == [1.0, 0.0]


def test_columns_that_no_function_reads_score_nothing_again(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("def one(completions, answer):\n    return [1.0] * len(completions)\n")
    asked = TermsAsked(
        WeightedSum([("one", 1.0, FunctionReward("f.py:one", tmp_path))]),
        Renderer(word_tokenizer(), template="dialogue"),
    )
    rows = [ranked("w1", ("w2", "w3"), number, answer).prompt for number, answer in ((0, "a"), (1, "a"), (2, "b"))]
    first, same, other = (asked.ids_of(row, "w2") for row in rows)
    assert first == same != other
