"""A recipe's functions are bound before the first stage: by plan as far as can be read, by run for all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from pipelines.run.binding import doubtful_columns
from pipelines.run.pipeline import Pipeline
from tests.support.recipes import RECIPE as LEAST

RECIPE: dict[str, Any] = LEAST
ROWS: list[dict[str, Any]] = [
    {"prompt": f"what is {i} + {i}?", "completion": str(2 * i), "level": i} for i in range(40)
]


def pipeline(tmp_path: Path, code: str, **settings: Any) -> Pipeline:
    (tmp_path / "own.py").write_text(code)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = dict(RECIPE, data={"demonstrations": str(tmp_path / "rows.jsonl"), "held_out": 0.3}, **settings)
    return Pipeline.from_recipe(recipe, run_dir=tmp_path / "run")


def own(tmp_path: Path, name: str = "f") -> str:
    return f"{tmp_path / 'own.py'}:{name}"


@pytest.mark.parametrize("stage", ["rankings", "ppo", "gold", "metrics"])
def test_a_function_that_cannot_be_bound_is_refused_before_the_first_stage(tmp_path: Path, stage: str) -> None:
    settings: dict[str, Any] = {
        "rankings": {"rankings": RECIPE["rankings"] | {"annotator": own(tmp_path)}},
        "ppo": {"ppo": RECIPE["ppo"] | {"reward": [own(tmp_path)]}},
        "gold": {"evaluation": RECIPE["evaluation"] | {"gold": own(tmp_path)}},
        "metrics": {"evaluation": RECIPE["evaluation"] | {"metrics": [own(tmp_path)]}},
    }[stage]
    made = pipeline(tmp_path, "def f(completions, lvel):\n    return [1.0] * len(completions)\n", **settings)
    for call in (made.plan, made.run):
        with pytest.raises(UserError, match=r"no column is called 'lvel'\. Did you mean 'level'.*on offer are"):
            call()
    assert not list(tmp_path.glob("run/pretrain*"))
    decorated = "import functools\nf = functools.partial(lambda completions, lvel, n: [n] * len(completions), n=1.0)\n"
    made = pipeline(tmp_path, decorated, **settings)
    made.plan()  # runs no code, so it cannot know
    with pytest.raises(UserError, match="no column is called 'lvel'"):
        made.run()
    assert not list(tmp_path.glob("run/pretrain*"))
    fine = "def f(completions, level, completion):\n    return [1.0] * len(completions)\n"
    pipeline(tmp_path, fine, **settings).plan()


def test_columns_that_some_rows_lack_or_that_are_misspelt_are_told(tmp_path: Path, monkeypatch) -> None:
    code = "def f(completions, level, hint, levels=None, mode=1):\n    return [1.0] * len(completions)\n"
    lacking = [row | ({"hint": "a"} if row["level"] % 4 else {}) for row in ROWS]
    monkeypatch.setattr(f"{__name__}.ROWS", lacking)
    made = pipeline(tmp_path, code, ppo=RECIPE["ppo"] | {"reward": [own(tmp_path)]})
    assert list(doubtful_columns(made.recipe, made.corpus, ["ppo"])) == [
        f"{own(tmp_path)}: its parameter 'levels' keeps its default; the column is called 'level'",
        f"{own(tmp_path)}: 10 of 40 prompts have no 'hint'; it gets None for them",
    ]
    assert not list(doubtful_columns(made.recipe, made.corpus, ["sft"]))


def test_a_changed_column_makes_only_stages_with_functions_stale(tmp_path: Path) -> None:
    code = "def f(completions, level):\n    return [float(x) for x in level]\n"
    settings = {"ppo": RECIPE["ppo"] | {"reward": [own(tmp_path)]}}
    before = {s.name: s.described for s in pipeline(tmp_path, code, **settings).states()}
    ROWS[3]["level"] = -1
    try:
        after = {s.name: s.described for s in pipeline(tmp_path, code, **settings).states()}
    finally:
        ROWS[3]["level"] = 3
    assert before["pretrain"] == after["pretrain"] and before["sft"] == after["sft"]
    assert before["ppo"]["columns"] != after["ppo"]["columns"]
