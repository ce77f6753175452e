"""The study of over-optimisation: its fits and its driver (the study itself: benchmarks/over_optimisation.py)."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pipelines import Pipeline

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # the driver imports it by this name
    spec.loader.exec_module(made)
    return made


forms = module("gao_forms")


@pytest.mark.parametrize("form", list(forms.FORMS))
def test_fits_find_the_numbers_that_made_the_data(form: str):
    d = np.linspace(0.0, 4.0, 30)
    positive = d[d > 0]
    gain = {"best of n": positive * (1.7 - 0.4 * positive), "PPO": positive * (1.7 - 0.4 * np.log(positive))}[form]
    a, b, r2 = forms.fit(d, [0.0, *gain], form)
    assert (a, b, r2) == pytest.approx((1.7, 0.4, 1.0))
    assert forms.curve(positive, a, b, form) == pytest.approx(gain)
    noisy = gain + 0.05 * np.random.default_rng(0).standard_normal(len(gain))
    a, b, r2 = forms.fit(positive, noisy, form)
    assert (a, b) == pytest.approx((1.7, 0.4), abs=0.05)
    assert 0.9 < r2 < 1.0


def test_the_wrong_form_fits_worse():
    d = np.linspace(0.1, 4.0, 30)
    gain = d * (1.0 - 0.5 * np.log(d))
    assert forms.fit(d, gain, "best of n")[2] < forms.fit(d, gain, "PPO")[2] - 1e-3


def test_best_of_n_is_the_mean_over_all_choices():
    rng = np.random.default_rng(0)
    proxy, true = rng.standard_normal((3, 6)), rng.standard_normal((3, 6))
    for n in range(1, 7):
        by_hand = [
            row[max(some, key=lambda i: p[i])]
            for p, row in zip(proxy, true, strict=True)
            for some in itertools.combinations(range(6), n)
        ]
        assert forms.best_of_n(proxy, true, n) == pytest.approx(np.mean(by_hand))
    assert forms.best_of_n_kl(1) == 0
    assert forms.best_of_n_kl(4) == pytest.approx(1.3862944 - 0.75)


def row(seed: int, arm: str, gold: list[float], chosen: int = 0) -> dict[str, Any]:
    evaluations = [
        {"update": i, "kl": float(i), "gold": g, "proxy": float(i), "watcher": g} for i, g in enumerate(gold)
    ]
    return {"seed": seed, "arm": arm, "looks": evaluations, "chosen": chosen, "gold_spread": 1.0}


def test_tables_pair_the_seeds_and_leave_out_unfinished_ones():
    rows = []
    for seed, shift in ((1, 0.0), (2, 10.0)):
        rows += [
            row(seed, "best_of_n", [shift, shift + 1, shift + 1.5]),
            row(seed, "single", [shift, shift + 2, shift - 1], chosen=1),
            row(seed, "ensemble", [shift, shift + 2, shift + 1], chosen=2),
            row(seed, "kl", [shift, shift + 1.5, shift + 1.5], chosen=1),
        ]
    rows.append(row(3, "single", [0.0, 99.0, 99.0], chosen=1))
    text = forms.tables(rows)
    assert "seeds 1, 2 with" in text
    assert "| ensemble | +2.00 ± 0.00 | +2.00, +2.00 |" in text
    assert "| KL control | +2.50 ± 0.00 | +2.50, +2.50 |" in text
    assert "| checkpoint choice by the watcher | +3.00 ± 0.00 | +3.00, +3.00 |" in text
    assert "99" not in text


class FakeStudy:
    """What the driver asks of a study; notes which arms were run."""

    ran: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, run: Path, *_: Any) -> None:
        self.run = run

    def accuracies(self) -> dict[str, float]:
        return {"accuracy": 0.7}

    def best_of_n(self) -> dict[str, Any]:
        return self.ppo("best_of_n")

    def ppo(self, arm: str) -> dict[str, Any]:
        self.ran.append((self.run.name, arm))
        if (self.run.name, arm) == ("b", "ensemble") and len(self.ran) < 8:
            raise KeyboardInterrupt
        return {k: v for k, v in row(0, arm, [0.0, 1.0, 2.0]).items() if k not in ("seed", "arm")}


def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study, results = module("over_optimisation"), tmp_path / "results.jsonl"
    monkeypatch.setattr(study, "Study", FakeStudy)
    for seed, name in enumerate("ab", 7):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"seed": seed}), encoding="utf-8")
    command = ["study", str(tmp_path / "a"), str(tmp_path / "b"), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(KeyboardInterrupt):
        study.main()
    assert len(results.read_text(encoding="utf-8").splitlines()) == 6
    FakeStudy.ran.clear()
    FakeStudy.ran.extend([("", "")] * 8)
    study.main()
    assert FakeStudy.ran[8:] == [("b", "ensemble"), ("b", "kl")]
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [(r["seed"], r["arm"]) for r in rows] == [
        (seed, arm) for seed in (7, 8) for arm in ("best_of_n", "single", "ensemble", "kl")
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--updates", "3"])  # other settings: nothing of that counts
    FakeStudy.ran.clear()
    FakeStudy.ran.extend([("", "")] * 8)
    study.main()
    assert len(FakeStudy.ran[8:]) == 8


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path
    small = [
        "base.pretrain.steps=5", "base.pretrain.model.width=32", "data.documents=demo-task?rows=300",
        "data.demonstrations=demo-task?rows=32", "data.prompts=demo-task?rows=60", "rankings.prompts=16",
        "rankings.held_out_prompts=4", "rankings.max_new_tokens=8", "ppo.max_new_tokens=8", "ppo.rollouts=8",
        "seed=5",
    ]  # fmt: skip
    recipe = BENCHMARKS.parent / "examples/tiny.yaml"
    Pipeline.from_recipe(recipe, small, folder / "run").run(until="rankings")
    return folder


@pytest.mark.slow
def test_the_driver_runs_every_arm_once_and_goes_on(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    study = module("over_optimisation")
    results, page = tiny / "results.jsonl", tiny / "page.md"
    page.write_text(f"before\n{study.START}\nstale\n{study.END}\nafter\n", encoding="utf-8")
    small = {"rankings": 12, "answers": 3, "epochs": 1, "updates": 2, "every": 1, "held-out": 3, "most": 4}
    command = ["study", str(tiny / "run"), "--work", str(tiny / "work"), "--results", str(results)]
    command += [word for name, value in small.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [*command, "--write", str(page)])
    study.main()
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [(r["seed"], r["arm"]) for r in rows] == [(5, a) for a in ("best_of_n", "single", "ensemble", "kl")]
    one, many, kl = rows[1:]
    assert [evaluation["update"] for evaluation in one["looks"]] == [0, 1, 2]
    assert one["looks"][0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert one["looks"][0]["gold"] == many["looks"][0]["gold"] == kl["looks"][0]["gold"]  # the SFT model, same draws
    assert one["looks"][2]["kl"] != 0.0
    assert one["looks"][0]["proxy"] == kl["looks"][0]["proxy"] != many["looks"][0]["proxy"]
    assert one["chosen"] in (0, 1, 2)
    page_text = page.read_text(encoding="utf-8")
    assert page_text.startswith("before") and page_text.endswith("after\n") and "stale" not in page_text

    results.write_text("".join(json.dumps(r) + "\n" for r in (rows[0], rows[1], rows[3])), encoding="utf-8")
    study.main()  # stopped: only what is missing is run, and comes out the same
    again = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [r["arm"] for r in again] == ["best_of_n", "single", "kl", "ensemble"]
    assert again[3] | {"cpu_seconds": 0} == many | {"cpu_seconds": 0}
