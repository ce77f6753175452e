"""Rankings of four without a prompt, in Chinese: a base from scratch and a reward model on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward.card.accuracy import pair_accuracy
from reward.card.ngrams import ngram_scores
from tests.support.real_runs import assert_base_as_it_was, assert_measured, lines, metrics, need, run, some_of

pytestmark = pytest.mark.real_data
FILE = "data/raw/reviews_ranked4_zh.tsv"


def test_a_few_reviews_go_from_text_to_a_reward_model(shared: Path, tmp_path: Path) -> None:
    """Nothing but the file is needed: tokenizer, base and reward model come from its training rankings."""
    few = some_of(need(shared, FILE), lines(need(shared, FILE))[:120], tmp_path)
    pipeline = run(
        "reviews.yaml",
        [
            f"data.rankings={{path: {few}, header: false}}",
            "base.pretrain.steps=4",
            "base.pretrain.batch=8",
            "base.pretrain.model.context=64",
            "reward.epochs=0.25",
        ],
        tmp_path,
    )
    found = metrics(pipeline, "reward")
    corpus = pipeline.corpus
    assert (found["rankings"], found["held_out_rankings"]) == (
        len(corpus.rankings.train),
        len(corpus.rankings.held_out),
    )
    assert found["rankings"] + found["held_out_rankings"] == 120 and found["dropped"] == 0
    assert found["pairs"] == 6 * found["held_out_rankings"]  # four reviews, no ties
    assert_measured(found)
    training = {d.text for d in corpus.documents.train}
    assert not training & {a for r in corpus.rankings.held_out for a in r.answers}  # nor does the base know them
    assert_base_as_it_was(pipeline)


@pytest.mark.slow
def test_the_reward_model_is_within_a_point_of_counting_characters(shared: Path, tmp_path: Path) -> None:
    """On the same split."""
    pipeline = run("reviews.yaml", [f"data.rankings={{path: {need(shared, FILE)}, header: false}}"], tmp_path)
    found = metrics(pipeline, "reward")
    rankings = pipeline.corpus.rankings
    linear = pair_accuracy(
        ngram_scores(rankings.train, rankings.held_out, "char"), [r.ranks for r in rankings.held_out]
    )
    print(f"reviews: {found['pair_accuracy']:.3f} {found['pair_accuracy_ci95']}, character 1-2-grams {linear}")
    assert (found["rankings"], found["held_out_rankings"]) == (1853, 238)
    assert found["pair_accuracy_ci95"][0] > 0.80
    assert found["pair_accuracy"] > linear.estimate - 0.01


@pytest.mark.slow
def test_an_ensemble_is_better_than_counting_characters(shared: Path, tmp_path: Path) -> None:
    """On the same split, three members."""
    pipeline = run(
        "reviews.yaml", [f"data.rankings={{path: {need(shared, FILE)}, header: false}}", "reward.ensemble=3"], tmp_path
    )
    found = metrics(pipeline, "reward")
    rankings = pipeline.corpus.rankings
    linear = pair_accuracy(
        ngram_scores(rankings.train, rankings.held_out, "char"), [r.ranks for r in rankings.held_out]
    )
    print(f"reviews, three members: {found['pair_accuracy']:.3f} {found['pair_accuracy_ci95']}, 1-2-grams {linear}")
    assert found["pair_accuracy"] > linear.estimate
