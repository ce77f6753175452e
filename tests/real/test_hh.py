"""Pairs of real dialogues: a base pretrained on the training dialogues, and a reward model on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reward.card.accuracy import pair_accuracy
from reward.card.ngrams import ngram_scores
from tests.support.real_runs import assert_measured, metrics, need, run

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


def test_hh_pairs_with_a_base_from_their_own_text(shared: Path, tmp_path: Path) -> None:
    """A reward model of 400,000 parameters learns little from 1,500 pairs (docs/measurements/real_data.md).

    What must hold: every pair is used, nothing held out was seen, and it is measured beside a linear model.
    """
    pipeline = run("hh.yaml", [f"data.rankings={need(shared, 'data/raw/hh_harmless_base.jsonl.gz')}"], tmp_path)
    base, found = metrics(pipeline, "pretrain"), metrics(pipeline, "reward")
    rankings = pipeline.corpus.rankings
    linear = pair_accuracy(
        ngram_scores(rankings.train, rankings.held_out, "word"), [r.ranks for r in rankings.held_out]
    )
    print(f"hh: {found['pair_accuracy']:.3f} {found['pair_accuracy_ci95']}, word 1-2-grams {linear}")
    assert found["rankings"] + found["dropped"] == len(rankings.train) == 1504
    assert found["held_out_rankings"] <= len(rankings.held_out) == 404
    assert base["documents"] == len(pipeline.corpus.documents.train)
    assert base["held_out_nll"] < 6.0  # ln 2048 = 7.6 is what knowing nothing costs
    assert_measured(found)
    assert found["pair_accuracy_ci95"][1] > 0.5  # not worse than chance
