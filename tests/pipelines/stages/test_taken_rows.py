"""The rows that a plan says a stage takes: rankings that the run samples too, and of evaluation those held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.loading.load import load_recipe
from pipelines.run.pipeline import Pipeline
from pipelines.stages.taken_rows import taken_rows

RECIPE: dict[str, Any] = {
    "base": "gpt2",
    "data": {"demonstrations": "demo-task?rows=100", "prompts": "demo-task?rows=200", "held_out": 0.2},
    "rankings": {"annotator": "data.demo.task:gold", "prompts": 30, "held_out_prompts": 9, "answers": 3},
    "evaluation": {"prompts": 7},
}


def test_rankings_that_are_sampled_are_counted_by_their_prompts(tmp_path: Path) -> None:
    pipeline = Pipeline(load_recipe(RECIPE), tmp_path)
    corpus, recipe = pipeline.corpus, pipeline.recipe
    assert not corpus.rankings.train and len(corpus.prompts.train) > 30 and len(corpus.prompts.held_out) > 9
    assert taken_rows("rankings", recipe, corpus) == {"prompts": (30, "prompts")}
    assert taken_rows("reward", recipe, corpus) == {
        "rankings": (30, "rankings of 3 responses, sampled by the run"),
        "prompts": (len(corpus.prompts.train), "prompts"),
    }
    assert taken_rows("evaluate", recipe, corpus) == {
        "prompts": (7, "held-out prompts"),
        "demonstrations": (len(corpus.demonstrations.held_out), "held-out demonstrations"),
        "rankings": (9, "held-out rankings of 3 responses, sampled by the run"),
    }
    few = load_recipe(RECIPE | {"rankings": {"annotator": "data.demo.task:gold", "prompts": 10_000}})
    assert taken_rows("reward", few, corpus)["rankings"].rows == len(corpus.prompts.train)


def test_rankings_of_the_data_are_counted_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(f'{{"prompt": "q{i}", "chosen": "a", "rejected": "b"}}\n' for i in range(40)))
    settings = {**RECIPE, "rankings": None, "data": RECIPE["data"] | {"rankings": str(file)}}
    pipeline = Pipeline(load_recipe(settings), tmp_path)
    rankings = pipeline.corpus.rankings
    assert taken_rows("reward", pipeline.recipe, pipeline.corpus)["rankings"] == (len(rankings.train), "rankings")
    held_out = taken_rows("evaluate", pipeline.recipe, pipeline.corpus)["rankings"]
    assert held_out == (len(rankings.held_out), "held-out rankings") and 0 < held_out.rows < len(rankings.train)
