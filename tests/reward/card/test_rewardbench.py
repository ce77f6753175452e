"""RewardBench 2's rules by hand, and the numbers that an evaluation gives of rankings in its shape."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data.records import Message
from pipelines.cli.main import main
from pipelines.report.reward_card import facts
from pipelines.run.pipeline import Pipeline
from pipelines.run.score import load_scorer
from reward.card.rewardbench import ScoredRow, in_words, rewardbench2, ties_score
from tests.conftest import tiny_lm, word_tokenizer


def row(name: str, subset: str, right: list[float], wrong: list[float]) -> ScoredRow:
    correct = [True] * len(right) + [False] * len(wrong)
    return ScoredRow(id=name, subset=subset, correct=correct, scores=[*right, *wrong])


MATH = [row("1", "Math", [3], [1, 2, 0]), row("2", "Math", [2], [2, 1, 0]), row("3", "Math", [0], [1, -1, -2])]
TIES = [
    row("tied:1", "Ties", [5, 4], [1, 0]),  # 3 above, and 1 apart
    row("ref:1", "Ties", [3], [1]),  # 2 above
    row("tied:2", "Ties", [5, 2], [1]),  # 1 above, and 3 apart
    row("ref:2", "Ties", [1], [2]),  # 1 below
]


def test_the_rules_by_hand() -> None:
    """Best of four: 1, one of two highest, 0. Ties: 0.3 + 0.3 / 2 + 0.2 / 2 + 0.2 / 2 and a hundredth of
    (tanh(2 / 1 - 1) + tanh(-1 / 3 - 1)) / 2."""
    found = rewardbench2([*MATH, *TIES])
    assert found["subsets"]["Math"] == {"score": 0.5, "n": 3}
    margin = (0.7615941559557649 - 0.8700616602227545) / 2
    assert found["ties"]["margin"] == pytest.approx(margin)
    parts = {name: found["ties"][name] for name in ("tied", "ref", "preferred", "preferred_hard")}
    assert parts == {"tied": 1.0, "ref": 0.5, "preferred": 0.5, "preferred_hard": 0.5}
    assert found["subsets"]["Ties"]["score"] == pytest.approx(0.65 + 0.01 * margin)
    assert found["score"] == pytest.approx((0.5 + 0.65 + 0.01 * margin) / 2)
    assert in_words(found) == "57.5 % (Math 50.0 %, Ties 64.9 %)"


@pytest.mark.parametrize(
    ("right", "wrong", "margin"),
    [([2, 2], [1], 1.0), ([2, 2], [2], 0.0), ([2, 2], [3], -1.0)],
    ids=["above", "level", "below"],
)
def test_correct_ones_that_are_all_alike(right: list[float], wrong: list[float], margin: float) -> None:
    """Above by any amount is infinitely more than nothing; level with the wrong one is neither."""
    found = ties_score([row("tied:1", "Ties", right, wrong), row("ref:1", "Ties", [9], [0])])
    assert found["margin"] == margin and found["preferred"] == float(margin > 0)
    assert found["tied"] == float(margin > 0)


def test_ties_without_pairs_have_no_score_and_are_left_out() -> None:
    found = rewardbench2([*MATH, TIES[0], TIES[3]])
    assert found["subsets"]["Ties"] == {"score": None, "n": 2} and found["score"] == 0.5
    assert in_words(found) == "50.0 % (Math 50.0 %)"
    assert in_words(rewardbench2([TIES[0]])) == ""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranked")
    tiny_lm().save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    ranked = [{"prompt": f"w{n}", "chosen": "w5 w7", "rejected": f"w6 w{n}"} for n in range(12)]
    shown = [{"prompt": f"w{n} w2", "completion": "w3 w4"} for n in range(12)]
    for name, rows in (("r", ranked), ("d", shown)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    recipe = {
        "base": str(folder / "base"),
        "template": "dialogue",
        "stages": ["sft", "reward"],
        "data": {
            "demonstrations": str(folder / "d.jsonl"),
            "rankings": str(folder / "r.jsonl"),
            "held_out": 0.25,
        },
        "adapter": {"rank": 4, "alpha": 8},
        "reward": {"learning_rate": 1e-2, "batch": 4, "max_tokens": 48, "calibration_samples": 8},
        "evaluation": {"max_new_tokens": 4, "bootstrap": 50, "systems": ["sft"]},
        "runtime": {"device": "cpu", "threads": 1, "dtype": "float32"},
    }
    Pipeline.from_recipe(recipe, run_dir=folder / "run").run()
    return folder / "run"


def test_an_evaluation_scores_rankings_in_its_shape(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against scores of `trivet score`'s own path, put together by other code."""
    texts = [f"w{n} w{n + 3}" for n in range(20)]
    rows: list[dict[str, Any]] = []
    for n in range(6):
        four = texts[n : n + 4]
        rows.append({"id": str(n), "subset": "Math", "prompt": f"w{n} w1", "chosen": four[:1], "rejected": four[1:]})
    for n in range(4):
        five = texts[n * 3 : n * 3 + 5]
        rows.append(
            {"id": f"tied:{n}", "subset": "Ties", "prompt": f"w{n} w4", "chosen": five[:3], "rejected": five[3:]}
        )
        rows.append(
            {"id": f"ref:{n}", "subset": "Ties", "prompt": f"w{n} w9", "chosen": five[:1], "rejected": five[3:]}
        )
    for one in rows:
        one |= {"num_correct": len(one["chosen"]), "num_rejected": len(one["rejected"])}
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    line = ["evaluate", str(run), "--rankings", str(tmp_path / "ranked.jsonl"), "--run-dir", str(tmp_path / "out")]
    assert main(line) == 0
    told = capsys.readouterr()
    card = json.loads((tmp_path / "out/evaluation/report_card.json").read_text())
    results = json.loads((tmp_path / "out/evaluation/results.json").read_text())
    scorer = load_scorer(run)

    def scores(one: dict[str, Any], name: str) -> list[float]:
        asked = [[Message(role="user", content=one["prompt"])]] * len(one[name])
        return list(scorer(asked, one[name], [True] * len(asked)))

    def gap(one: dict[str, Any]) -> float:
        return min(scores(one, "chosen")) - max(scores(one, "rejected"))

    def spread(one: dict[str, Any]) -> float:
        return max(scores(one, "chosen")) - min(scores(one, "chosen"))

    maths = sum(gap(one) > 0 for one in rows[:6]) / 6
    pairs = list(zip(rows[6::2], rows[7::2], strict=True))
    hard = sum(min(gap(a), gap(b)) > spread(a) for a, b in pairs) / 4
    ties = 0.3 * sum(gap(a) > 0 for a, _ in pairs) / 4 + 0.3 * sum(gap(b) > 0 for _, b in pairs) / 4
    ties += 0.2 * sum(gap(a) > spread(a) for a, _ in pairs) / 4 + 0.2 * hard
    ties += 0.01 * sum(math.tanh(min(gap(a), gap(b)) / spread(a) - 1) for a, b in pairs) / 4
    found = card["rewardbench2"]
    assert found["subsets"]["Math"]["score"] == pytest.approx(maths)
    assert found["subsets"]["Ties"]["score"] == pytest.approx(ties, abs=1e-5)
    assert found["score"] == pytest.approx((maths + ties) / 2, abs=1e-5)
    assert results["reward_card"]["rewardbench2"] == found
    assert f"RewardBench 2: {in_words(found)}" in told.out + told.err
    assert facts(card)["RewardBench 2"] == in_words(found)
