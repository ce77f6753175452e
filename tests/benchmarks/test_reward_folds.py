"""Folds of rankings: nobody is in two of them, and accuracies and paired differences are those worked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.reward_folds import MODEL, baselines, deal, outcomes_of, run_fold, table, together, write_folds
from data.records import Message, Prompt, RankedAnswers
from tests.support.recipes import RECIPE


def ranking(group: str, ranks: tuple[int, ...]) -> RankedAnswers:
    prompt = Prompt(messages=(Message(role="user", content=group),), group=group)
    return RankedAnswers(prompt=prompt, answers=tuple("abcd"[: len(ranks)]), ranks=ranks)


def test_every_group_is_in_one_fold_and_the_order_of_rows_is_no_matter() -> None:
    groups = [f"prompt {i}" for i in range(13)]
    folds = deal([*groups, *groups[:4]], 5)
    assert sorted(group for fold in folds for group in fold) == sorted(groups)
    assert sorted(map(len, folds)) == [2, 2, 3, 3, 3]
    assert deal(reversed(groups), 5) == folds
    with pytest.raises(ValueError, match="2 folds of 1 prompts"):
        deal(["one", "one"], 2)


def test_outcomes_by_pair() -> None:
    rankings = [ranking("x", (0, 1)), ranking("y", (0, 1, 1))]
    found = outcomes_of(rankings, {MODEL: [[2.0, 1.0], [0.0, 1.0, 0.0]], "longest": [[1.0, 1.0], [3.0, 2.0, 1.0]]})
    assert found == {"prompt": ["x", "y", "y"], MODEL: [1.0, 0.0, 0.5], "longest": [0.5, 1.0, 1.0]}


def test_the_paired_difference_is_that_of_pairs_and_its_interval_that_of_prompts() -> None:
    """100 prompts of one pair: the model alone is right on 15, the other alone on 5, both on 50, neither on 30.

    By hand: 0.65 against 0.55, a difference of +0.10. Its interval by Wilson's on (d + 1) / 2, whose effective number
    follows from the variance of d (0.19, with one imagined pair of each extreme): [0.01, 0.19] within a rounding.
    """
    won = [(1.0, 0.0)] * 15 + [(0.0, 1.0)] * 5 + [(1.0, 1.0)] * 50 + [(0.0, 0.0)] * 30
    rows: list[dict[str, Any]] = [{"prompt": [f"p{i}"], MODEL: [m], "words": [w]} for i, (m, w) in enumerate(won)]
    parts = [{k: [row[k][0] for row in rows[i::2]] for k in rows[0]} for i in range(2)]
    found = together(parts)
    assert (found["folds"], found["pairs"], found["prompts"]) == (2, 100, 100)
    assert found[MODEL]["accuracy"]["mean"] == pytest.approx(0.65)
    assert found["words"]["accuracy"]["mean"] == pytest.approx(0.55)
    gain = found["words"]["model's less this"]
    assert gain["mean"] == pytest.approx(0.10)
    half = 1.96 * math.sqrt((0.20 - 0.01) / 100)  # of a normal distribution: 0.085
    assert gain["ci95"] == pytest.approx([0.10 - half, 0.10 + half], abs=0.01)
    unpaired = 1.96 * math.sqrt((0.65 * 0.35 + 0.55 * 0.45) / 100)
    assert gain["ci95"][1] - gain["ci95"][0] < 1.5 * unpaired  # 2 x 0.136 without the pairing
    assert "| words | 0.550" in table(found) and "+0.100 [+0.0" in table(found)


def test_pairs_of_one_prompt_are_one_unit() -> None:
    """The same outcomes ten times over for each prompt know no more than once."""
    won = [1.0] * 18 + [0.0] * 12
    once = together([{"prompt": [f"p{i}" for i in range(30)], MODEL: won}])
    ten = together(
        [{"prompt": [f"p{i}" for i in range(30) for _ in range(10)], MODEL: [x for x in won for _ in range(10)]}]
    )
    widths = [b - a for a, b in (x[MODEL]["accuracy"]["ci95"] for x in (once, ten))]
    assert ten["pairs"] == 300 and widths[1] > 0.9 * widths[0]


def test_baselines_alone_have_no_difference() -> None:
    found = together([{"prompt": [f"p{i}" for i in range(40)], "longest": [1.0] * 30 + [0.0] * 10}])
    assert found["longest"]["accuracy"]["mean"] == 0.75 and set(found["longest"]) == {"accuracy"}
    assert table(found).splitlines()[-1].endswith("|  |")


def test_linear_models_by_folds_of_a_recipe(tmp_path: Path) -> None:
    """Every pair is scored once by models that did not see it; "good" is learnt from the other folds."""
    rows = [{"prompt": f"ask {i}", "chosen": f"good {i % 7}", "rejected": f"bad thing {i % 5}"} for i in range(30)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    pretrain = "{pretrain: {steps: 1, model: {layers: 1, width: 8, heads: 1}}}"
    recipe.write_text(f"base: {pretrain}\ndata: {{rankings: r.jsonl, held_out: 0.2}}\nstages: [pretrain, reward]\n")
    files = write_folds(recipe, [], tmp_path / "folds", 3)
    asked = [json.loads(line)["prompt"][0]["content"] for file in files for line in file.read_text().splitlines()]
    assert sorted(asked) == sorted(row["prompt"] for row in rows)
    parts = [baselines(recipe, [], file) for file in files]
    found = together(parts)
    assert (found["pairs"], found["prompts"], [len(p["prompt"]) for p in parts]) == (30, 30, [10, 10, 10])
    assert found["word n-grams"]["accuracy"]["mean"] == 1 and found["longest"]["accuracy"]["mean"] == 0


def test_a_prompt_in_two_folds_is_refused() -> None:
    part: dict[str, Any] = {"prompt": ["x"], MODEL: [1.0]}
    with pytest.raises(ValueError, match="in two folds"):
        together([part, part])


@pytest.mark.slow
def test_a_reward_model_a_fold_and_none_is_trained_twice(tmp_path: Path) -> None:
    rows = [{"prompt": f"ask {i}", "chosen": f"good {i % 7}", "rejected": f"bad thing {i % 5}"} for i in range(30)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {key: RECIPE[key] for key in ("name", "base", "template", "adapter", "reward", "runtime")}
            | {"data": {"documents": "demo-task?rows=200", "rankings": "r.jsonl", "held_out": 0.2}}
        )
    )
    files = write_folds(recipe, [], tmp_path / "folds", 3)
    parts = []
    for k, file in enumerate(files):
        run_fold(recipe, [], file, folder := tmp_path / f"fold_{k}")
        parts.append(json.loads((folder / "outcomes.json").read_text()))
        assert len(parts[-1][MODEL]) == 10 and parts[-1]["training"] == 20
    before = (tmp_path / "fold_0/outcomes.json").stat().st_mtime_ns
    run_fold(recipe, [], files[0], tmp_path / "fold_0")
    assert (tmp_path / "fold_0/outcomes.json").stat().st_mtime_ns == before
    found = together([{k: v for k, v in part.items() if isinstance(v, list)} for part in parts])
    assert found["pairs"] == 30 and MODEL in table(found)
