"""A run that the gate stops: its report, its status everywhere, the remedy; and a verdict that no switch changes."""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import GateStopped
from models.backbone.artifacts import publish
from pipelines.cli import main as cli
from pipelines.loading.load import load_recipe
from pipelines.report.page import view
from pipelines.report.run_files import read_run
from reward.card.gate import failures, remedies, require
from reward.settings import GateConfig
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.finished_run import report_card
from tests.support.recipes import RECIPE

GOOD = {"share": 0.8, "ci95": [0.75, 0.85]}


def card(**changes: Any) -> dict[str, Any]:
    return {
        "rankings": 40,
        "accuracy": GOOD,
        "baselines": {"longest answer": {"share": 0.6}, "n-grams": {"share": 0.9}},
        "probes": {"empty response": {"share": 1.0, "ci95": [0.9, 1.0]}},
        "samples": {"std": 1.0, "of": "sft samples"},
    } | changes


BAD = [
    card(accuracy={"share": 0.55, "ci95": [0.49, 0.61]}, baselines={"longest answer": {"share": 0.5}}),
    card(accuracy={"share": 0.55, "ci95": [0.4, 0.61]}, baselines={"longest answer": {"share": 0.5}}),
    card(baselines={"longest answer": {"share": 0.81}}),
    card(probes={"empty response": {"share": 0.257, "ci95": [0.1, 0.3]}}),
    card(samples={"std": 1e-5, "of": "sft samples"}),
    card(
        accuracy={"share": 0.5, "ci95": [0.301, 0.61]},
        probes={"empty response": {"share": 0.0, "ci95": [0.0, 0.3]}},
        samples={"std": 0.0, "of": "sft samples"},
    ),
]


def gate_with(options: str) -> GateConfig:
    base = {"base": "tiny-gpt2", "data": {"rankings": "r.jsonl"}, "stages": ["reward"]}
    return load_recipe(base, [w for w in shlex.split(options) if w != "--set"]).reward.gate


@pytest.mark.parametrize("bad", BAD)
def test_the_remedy_names_what_failed_and_lets_it_pass(bad: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report_card.json").write_text(json.dumps(bad))
    lines = failures(bad, GateConfig())
    with pytest.raises(GateStopped) as stopped:
        require(tmp_path, GateConfig())
    assert list(stopped.value.lines) == lines
    named = set(re.findall(r"reward\.gate\.(\w+)=", str(stopped.value)))
    assert named == {line.partition(":")[0] for line in lines}
    assert failures(bad, gate_with(" ".join(remedies(bad, lines)))) == []


@pytest.mark.parametrize(
    "more, told",
    [
        ({}, True),
        ({"negatives": ["empty response"]}, False),  # taught already
        ({"samples": {"std": 1e-5, "of": "sft samples"}}, False),  # not the empty response alone
    ],
)
def test_where_empty_responses_alone_fail_it_says_how_to_teach_them(
    more: dict[str, Any], told: bool, tmp_path: Path
) -> None:
    bad = card(probes={"empty response": {"share": 0.09, "ci95": [0.05, 0.1]}}, **more)
    (tmp_path / "report_card.json").write_text(json.dumps(bad))
    with pytest.raises(GateStopped) as stopped:
        require(tmp_path, GateConfig())
    text = str(stopped.value)
    assert ("reward.negatives: [" in text) is told and ("Check that the rankings" in text) is not told
    if told:
        line = text[text.index("reward.negatives: ") :].partition(")")[0].removeprefix("reward.negatives: ")
        recipe = {"base": "tiny-gpt2", "data": {"rankings": "r.jsonl"}, "stages": ["reward"]}
        assert len(load_recipe(recipe, [f"reward.negatives={line}"]).reward.negatives) == 3


def test_a_line_that_nothing_passes_has_no_remedy_but_the_switch(tmp_path: Path) -> None:
    bad = card(accuracy={"share": 0.1, "ci95": [0.0, 0.2]}, baselines={})
    (tmp_path / "report_card.json").write_text(json.dumps(bad))
    with pytest.raises(GateStopped, match=r"switch the gate off \(--set reward.gate=off\)") as stopped:
        require(tmp_path, GateConfig())
    assert "reward.gate.accuracy=" not in str(stopped.value)


@pytest.mark.parametrize("skill", [0.0, 0.3, 3.0])
def test_the_verdict_is_the_same_with_the_gate_on_off_lowered_or_not_there(skill: float, run: Path, tmp_path: Path):
    import shutil

    folder = Path(shutil.copytree(run, tmp_path / "demo"))
    made = report_card(skill=skill) if skill else report_card(skill=0.0)
    (folder / "reward/report_card.json").write_text(json.dumps(made))
    seen = set()
    lowered = "{enabled: true, accuracy: 0.0, beat_longest: false, empty_response: 0, score_std: 0}"
    raised = "{enabled: true, accuracy: 0.95, beat_ngrams: true, empty_response: 1, score_std: 100}"
    states = {}
    for gate in ("{enabled: true}", "{enabled: false}", "off", lowered, raised, raised.replace("true", "false", 1), ""):
        for reward in ("", "  reward: [{source: length}]\n"):
            text = "name: demo\nseed: 0\n" + (f"reward:\n  gate: {gate}\n" if gate else "")
            (folder / "recipe.yaml").write_text(text + "ppo:\n  kl_coef: 0.1\n" + reward)
            found = view(read_run(folder))
            trust = found["questions"][2]
            seen.add((trust["short"], trust["tone"], found["card"]["tone"], found["card"]["text"]))
            states[gate, reward] = (found["card"]["gate"] or {}).get("state"), trust["text"]
    assert len(seen) == 1
    assert (next(iter(seen))[:3] == ("No", "bad", "bad")) == bool(failures(made, GateConfig()))
    assert states[lowered, ""][0] == "passed" and states[raised, ""][0] == "failed"
    assert "The gate before PPO failed. " in states[raised, ""][1]


def test_the_remedy_for_an_accuracy_lies_below_its_interval() -> None:
    strict = GateConfig(accuracy=0.999, empty_response=1.0)
    for low in [n / 1000 for n in range(1000)]:
        bad = card(
            accuracy={"share": 0.999, "ci95": [low, 1.0]}, probes={"empty response": {"share": low, "ci95": [0.0, 1.0]}}
        )
        options = dict(re.findall(r"reward\.gate\.(\w+)=(\S+)", " ".join(remedies(bad, failures(bad, strict)))))
        left = failures(bad, GateConfig.model_validate({name: float(value) for name, value in options.items()}))
        assert [line.partition(":")[0] for line in left] == ([] if low else ["accuracy"])


@pytest.mark.parametrize(
    "bad",
    [
        card(accuracy={"share": float("nan"), "ci95": [float("nan")] * 2}, baselines={}),
        card(baselines={"longest answer": {"share": float("nan")}}),
        card(probes={"empty response": {"share": float("nan"), "ci95": [0.0, 1.0]}}),
        card(samples={"std": float("nan"), "of": "sft samples"}),
    ],
)
def test_what_is_not_a_number_passes_no_line(bad: dict[str, Any]) -> None:
    assert len(failures(bad, GateConfig())) == 1


def test_what_the_gate_cannot_judge_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    require(tmp_path, GateConfig(), said.append)
    (tmp_path / "report_card.json").write_text(json.dumps(card(accuracy={"share": 0.9, "ci95": None})))
    require(tmp_path, GateConfig(), said.append)
    assert "holds no report card" in said[0] and "fewer than 20 prompts" in said[1] and len(said) == 2
    require(tmp_path, GateConfig(enabled=False), said.append)
    (tmp_path / "report_card.json").write_text(json.dumps(card()))
    require(tmp_path, GateConfig(), said.append)
    assert len(said) == 2


@pytest.fixture
def stopped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose reward stage is finished with a bad card, and the command that stops at it."""
    recipe = copy.deepcopy(RECIPE) | {"stages": ["reward", "ppo"]}
    tiny_lm("gpt2").save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    recipe["base"], recipe["data"] = "./base", {"rankings": "r.jsonl", "prompts": "p.jsonl"}
    del recipe["rankings"]
    rows = [{"prompt": f"p{n}", "chosen": "a b", "rejected": f"c{n}"} for n in range(20)]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": f"q{n}"}) for n in range(20)) + "\n")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.chdir(tmp_path)
    from pipelines.run import pipeline as runner

    monkeypatch.setattr(runner.Pipeline, "base_key", "base")
    pipeline = runner.Pipeline.from_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run")
    described = next(iter(pipeline.states())).described
    part = tmp_path / "run/.reward.partial"
    part.mkdir(parents=True)
    (part / "report_card.json").write_text(json.dumps(BAD[0]))
    from pipelines.stages.keys import hash_of

    publish(part, tmp_path / "run/reward", {"stage": "reward", "key": hash_of(described), "described": described})
    return tmp_path


def test_a_run_that_stops_at_the_gate_says_so_everywhere(stopped_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stopped_run / "run"
    assert cli.main(["run", "recipe.yaml", "--run-dir", "run"]) == 3
    told = capsys.readouterr()
    assert "--set reward.gate.accuracy=0.48" in " ".join(told.err.split())
    entry = json.loads((run / "run.json").read_text())["stages"]["ppo"]
    assert entry["status"] == "stopped at the gate" and entry["lines"][0].startswith("accuracy: ")
    found = view(read_run(run))
    assert found["headline"]["text"] == "Stopped at the gate before PPO" and found["headline"]["tone"] == "bad"
    assert "0.550 [0.490, 0.610]" in found["headline"]["detail"]
    assert {s["name"]: s["status"] for s in found["stages"]}["ppo"] == "stopped at the gate"
    assert "Stopped at the gate before PPO" in (run / "report.html").read_text()
    for folder in (run, stopped_run):
        assert cli.main(["ls", str(folder)]) == 0
        assert "stopped at the gate" in capsys.readouterr().out


def test_plan_and_who_asks_for_the_policy_are_told_of_the_gate(
    stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", "recipe.yaml", "--run-dir", "run", "--json"]

    def why(*more: str) -> str:
        capsys.readouterr()
        assert cli.main([*plan, *more]) == 0
        return next(s["why"] for s in json.loads(capsys.readouterr().out)["stages"] if s["name"] == "ppo")

    assert "reward.gate will stop it (accuracy: held-out pair accuracy is 0.550 [0.490, 0.610]" in why()
    assert "gate" not in why("--set", "reward.gate=off") + why("--set", "reward.gate.accuracy=0.48")
    assert cli.main(["run", "recipe.yaml", "--run-dir", "run"]) == 3
    assert "reward.gate will stop it" in why()
    capsys.readouterr()
    for command in (["export", "run", "--stage", "ppo", "--to", "out"], ["chat", "run", "--stage", "ppo"]):
        assert cli.main(command) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "stopped at the gate before ppo (accuracy: held-out pair accuracy is 0.550" in said


def test_a_reward_model_that_is_given_is_judged_as_one_of_the_runs_own(
    stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped_run / "given").mkdir()
    (stopped_run / "given/report_card.json").write_text(json.dumps(report_card(skill=0.0)))
    assert cli.main(["run", "recipe.yaml", "--run-dir", "run", "--input", "reward=given"]) == 3
    found = view(read_run(stopped_run / "run"))
    assert found["headline"]["text"] == "Stopped at the gate before PPO"
    trust = next(card for card in found["questions"] if card["question"] == "May I trust the reward?")
    assert (trust["short"], found["card"]["tone"]) == ("No", "bad")


def test_another_reward_model_is_not_stopped_by_the_gate_of_before(tmp_path: Path) -> None:
    from models.backbone.processes import Processes
    from pipelines.workspace.run_folder import RunFolder, read_run

    folder = RunFolder(tmp_path, Processes("cpu"))
    for status in ("running", "done"):
        folder.stage("reward", status="done", key="a")
        folder.stage("ppo", status="stopped at the gate", key="b", lines=["accuracy: low"])
        folder.stage("evaluate", status="done", key="c")
        assert read_run(tmp_path)["stages"]["ppo"]["lines"] == ["accuracy: low"]
        folder.stage("reward", status=status, key="d")
        assert ("ppo" in read_run(tmp_path)["stages"]) == (status == "running")
        assert "evaluate" in read_run(tmp_path)["stages"]
