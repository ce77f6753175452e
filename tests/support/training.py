"""Contexts for SFT and the reward stage on tiny bases, with rankings that can be learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from data.records import Demonstration, Document, RankedAnswers
from data.splits import Corpus, Split
from stages.stage import StageContext
from tests.conftest import make_base, randomise
from tests.support.ppo import make_context, make_prompt

DEMONSTRATIONS = tuple(
    Demonstration(prompt=make_prompt(f"w{i}"), answer=f"w{i} w{i + 1} w{i + 2}", finished=i != 3) for i in range(12)
)


def sft_context(tmp_path, base=None, **kwargs):
    base = base or make_base(**kwargs)
    return make_context(base, tmp_path, Corpus(demonstrations=Split(train=DEMONSTRATIONS, held_out=DEMONSTRATIONS[:2])))


def rankings(count=24, flip=False):
    """Answers with more of the word w20 are better."""
    out = []
    for i in range(count):
        answers = [f"w{i % 9} w20 w20", f"w{i % 9} w20 w3", f"w{i % 9} w4 w3"]
        ranks = (2, 1, 0) if flip else (0, 1, 2)
        out.append(RankedAnswers(prompt=make_prompt(f"w{i % 12}"), answers=tuple(answers), ranks=ranks))
    return tuple(out)


def reward_context(tmp_path, flip=False, **kwargs):
    base = make_base(**kwargs)
    corpus = Corpus(
        rankings=Split(train=rankings(flip=flip), held_out=rankings(7)),
        prompts=Split(train=tuple(make_prompt(f"w{i}") for i in range(20))),
    )
    context = make_context(base, tmp_path, corpus)
    base.add_role("sft", context.adapter)
    randomise(base, "sft", 3, scale=0.1)
    return context


RANKINGS = tuple(
    RankedAnswers(
        prompt=make_prompt(f"w{i} w{i + 1}"),
        answers=tuple(" ".join([f"w{j}"] * (j + 1)) for j in range(2 + i % 3)),
        ranks=tuple(reversed(range(2 + i % 3))),
        finished=tuple(j != 1 for j in range(2 + i % 3)),
    )
    for i in range(6)
)


def context_for(tmp_path, **kwargs):
    tmp_path.mkdir(exist_ok=True)
    base = make_base(**kwargs)
    corpus = Corpus(rankings=Split(train=RANKINGS), prompts=Split(train=tuple(make_prompt(f"w{i}") for i in range(12))))
    context = make_context(base, tmp_path, corpus)
    base.add_role("sft", context.adapter)
    randomise(base, "sft", 3, scale=0.1)
    return context


def no_base() -> Any:
    """Pretraining stands on no base."""
    raise AssertionError("this stage has no base to stand on")


def pretrain_context(out: Path, train: list[str], held_out: list[str], **changes: Any) -> StageContext:
    def documents(texts: list[str]) -> tuple[Document, ...]:
        return tuple(Document(text=text, group=text) for text in texts)

    corpus = Corpus(documents=Split(train=documents(train), held_out=documents(held_out)))
    context = make_context(None, out, corpus)  # type: ignore[arg-type]
    return replace(context, open_base=no_base, **changes)
