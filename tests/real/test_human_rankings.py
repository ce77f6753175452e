"""Human rankings of two to ten answers, the reward stage on a real pretrained base."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pipelines.run.pipeline import Pipeline
from tests.support.real_runs import EXAMPLES, assert_base_as_it_was, assert_measured, lines, metrics, need, run, some_of

pytestmark = pytest.mark.real_data

FILES = {  # rows, and how many answers they have
    "oasst1_zh": (635, {2, 3, 4, 5, 8, 10}),
    "oasst_en_100": (179, {2, 3, 4, 5, 6, 8, 9}),
    "pandalm_human": (65, {3, 4, 5}),
}
BASES = {"oasst1_zh": "stories260K", "oasst_en_100": "TinyStories-656K", "pandalm_human": "stories260K"}


def few_of_each_k(rows: list[str], each: int) -> list[str]:
    """The first rows of every number of answers."""
    seen: Counter[int] = Counter()
    kept = []
    for row in rows:
        k = len(json.loads(row)["responses"])
        seen[k] += 1
        if seen[k] <= each:
            kept.append(row)
    return kept


@pytest.mark.parametrize("name", FILES)
def test_every_human_ranking_is_read(shared: Path, tmp_path: Path, name: str) -> None:
    path = need(shared, f"data/ready/ranked/{name}.train.jsonl.gz")
    pipeline = Pipeline.from_recipe(EXAMPLES / "rankings_human.yaml", [f"data.rankings={path}"], run_dir=tmp_path)
    rankings = pipeline.corpus.rankings
    rows, sizes = FILES[name]
    assert (len(rankings), len(pipeline.corpus.rejected)) == (rows, 0)
    assert len(rankings.held_out) > 0
    assert {len(r.answers) for r in (*rankings.train, *rankings.held_out)} == sizes


@pytest.mark.parametrize("name", FILES)
def test_reward_stage_on_human_rankings(shared: Path, tmp_path: Path, name: str) -> None:
    rows = few_of_each_k(lines(need(shared, f"data/ready/ranked/{name}.train.jsonl.gz")), 5)
    path = some_of(Path(f"{name}.jsonl"), rows, tmp_path)
    settings = [
        f"data.rankings={path}",
        "data.held_out=0.3",
        f"base={need(shared, 'models/' + BASES[name])}",
        "reward.max_tokens=192",
        "reward.batch=8",
    ]
    pipeline = run("rankings_human.yaml", settings, tmp_path)
    found, corpus = metrics(pipeline, "reward"), pipeline.corpus
    assert found["rankings"] + found["dropped"] == len(corpus.rankings.train)
    assert found["held_out_rankings"] <= len(corpus.rankings.held_out)
    # every ordered pair counts, except of answers that are the same once they are cut
    assert 0 < found["pairs"] <= sum(len(r.pairs) for r in corpus.rankings.held_out)
    assert_measured(found)
    assert_base_as_it_was(pipeline)
