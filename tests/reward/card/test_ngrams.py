"""The n-gram model: on made-up rankings, and on real ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.records import Prompt, RankedAnswers, group_of
from reward.card.accuracy import pair_accuracy
from reward.card.ngrams import ngram_scores

REVIEWS = Path(__file__).parents[3].parent / "shared" / "data" / "raw" / "reviews_ranked4_zh.tsv"


def _ranking(*answers: str, ranks: tuple[int, ...] | None = None) -> RankedAnswers:
    prompt = Prompt(messages=(), group=group_of((), answers))
    return RankedAnswers(prompt=prompt, answers=answers, ranks=ranks or tuple(range(len(answers))))


def _accuracy(train, held_out, analyzer):
    return pair_accuracy(ngram_scores(train, held_out, analyzer), [r.ranks for r in held_out])


@pytest.mark.parametrize("analyzer", ["char", "word"])
def test_ngrams_learn_a_good_word_whatever_the_length(analyzer):
    rng = random.Random(0)
    filler = [f"w{i}" for i in range(30)]

    def made() -> RankedAnswers:
        good, bad = ([*rng.choices(filler, k=rng.randint(2, 9)), word] for word in ("kind", "rude"))
        return _ranking(" ".join(good), " ".join(bad))

    found = _accuracy([made() for _ in range(150)], [made() for _ in range(60)], analyzer)
    assert found.estimate > 0.95 and found.n == 60


def test_one_pair_is_enough_to_learn_from():
    found = ngram_scores([_ranking("kind words", "rude words")], [_ranking("so kind", "so rude")], "word")
    assert found[0][0] > 0 > found[0][1]


def test_errors():
    with pytest.raises(UserError, match="differ in rank"):
        ngram_scores([_ranking("a", "b", ranks=(0, 0))], [_ranking("a", "b")], "char")


@pytest.mark.real_data
def test_characters_rank_real_reviews():
    if not REVIEWS.exists():
        pytest.skip(f"{REVIEWS.name} is not beside the checkout")
    rows = [line.split("\t") for line in REVIEWS.read_text(encoding="utf-8").splitlines()]
    rankings = [_ranking(*row) for row in rows if len(row) == 4]
    assert len(rankings) > 2000
    held_out = [r for r in rankings if int(r.prompt.group, 16) % 5 == 0]
    train = [r for r in rankings if int(r.prompt.group, 16) % 5]
    found = _accuracy(train, held_out, "char")
    assert 0.83 < found.estimate < 0.90
    by_length = pair_accuracy([[float(len(a)) for a in r.answers] for r in held_out], [r.ranks for r in held_out])
    assert by_length.high is not None and by_length.high < found.estimate
