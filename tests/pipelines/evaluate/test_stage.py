"""``trivet evaluate`` on the smallest real run: systems of every kind, answers kept, models of no run."""

from __future__ import annotations

import html
import json
import math
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pipelines.cli.main as cli
from data.common.errors import UserError
from data.records import Message, Prompt
from data.template import Renderer
from evaluation.held_out import Evaluator
from models.sampling.fast import FastEngine
from pipelines.evaluate.stage import optimised_judge, unread
from pipelines.run.pipeline import Pipeline
from reward.model import TextsRead
from reward.terms.server import serving
from tests.support.recipes import RECIPE


@pytest.fixture(scope="module")
def run(least_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: evaluations are written into it."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(least_run, folder)
    return folder


def evaluate(run: Path | str, out: Path, *options: str) -> dict[str, Any]:
    assert cli.main(["evaluate", str(run), "--run-dir", str(out), *options]) == 0
    return json.loads((out / "evaluation" / "results.json").read_text(encoding="utf-8"))


def answers(out: Path, decoding: str, system: str) -> list[str]:
    rows = map(json.loads, (out / "evaluation" / "samples.jsonl").read_text(encoding="utf-8").splitlines())
    return [r["systems"][system]["response"] for r in rows if r["decoding"] == decoding]


def test_what_was_said_is_not_said_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first = json.loads((run / "evaluation" / "results.json").read_text())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an answer was made again")

    monkeypatch.setattr(FastEngine, "__call__", refuse)
    again = evaluate(run, tmp_path / "a", "--set", "evaluation.gold=null", "evaluation.bootstrap=60")
    assert again["settings"] == first["settings"] and again["judge"] == "reward"
    for name, system in again["systems"].items():
        assert system["generation"] == first["systems"][name]["generation"]
        assert system["length"]["mean"] == first["systems"][name]["length"]["mean"]
    other = ["evaluate", str(run), "--run-dir", str(tmp_path / "b"), "--systems", "sft", "--set", "evaluation.seed=5"]
    assert cli.main(other) == 3 and "made again" in capsys.readouterr().err


def test_checkpoints_adapters_and_exports_say_what_the_stage_says(run: Path, tmp_path: Path):
    exported = tmp_path / "merged"
    assert cli.main(["export", str(run), "--stage", "ppo", "--to", str(exported), "--merge"]) == 0
    systems = f"sft,ppo,ppo@1,ppo@2,path:{run / 'ppo'},path:{exported}"
    found = evaluate(run, tmp_path / "out", "--systems", systems)
    assert list(found["systems"]) == ["sft", "ppo", "ppo@1", "ppo@2", "path:ppo", "path:merged"]
    for system in ("ppo@2", "path:ppo", "path:merged"):
        for decoding in ("sampled", "greedy"):
            assert answers(tmp_path / "out", decoding, system) == answers(tmp_path / "out", decoding, "ppo"), system
    ppo = found["systems"]["ppo"]
    rewards = [round(found["systems"][name]["reward"]["mean"], 4) for name in ("ppo", "path:merged")]
    assert rewards[0] == rewards[1], "the same ids, whose base they were sampled from"
    for system in ("ppo@2", "path:ppo"):
        same = {k: v for k, v in found["systems"][system].items() if k != "generation"}
        assert same == {k: v for k, v in ppo.items() if k != "generation"}
    assert found["systems"]["ppo@1"]["generation"] != ppo["generation"] and "kl" not in found["systems"]["path:merged"]
    assert found["systems"]["sft"]["kl"]["mean"] == 0 == found["systems"]["sft"]["kl_exact"]["mean"]


def test_ids_are_taken_as_sampled_where_they_are_the_runs_own(run: Path) -> None:
    """Whoever's base a system stands on, by tokenizer, prompts and stops: else its text is rendered again."""
    renderer = Pipeline.from_recipe(run / "recipe.yaml", run_dir=run).loaded.renderer()
    prompts = [Prompt(messages=(Message(role="user", content=text),), group=text) for text in ("a", "b c")]
    evaluator = SimpleNamespace(
        renderer=renderer, prompts=prompts, queries=[renderer.prompt_ids(p.messages) for p in prompts]
    )

    def alike(asking: Any = None, **changes: Any) -> bool:
        stop = {"stop": renderer.stop_ids, "template": renderer.template} | changes
        system = SimpleNamespace(renderer=Renderer(renderer.tokenizer, **stop), asking=asking)
        return Evaluator._rendered_alike(evaluator, system)  # type: ignore[arg-type]

    assert alike() and not alike(asking=object())
    assert not alike(template="text") and not alike(stop_strings=["."]) and not alike(stop=[*renderer.stop_ids, 3])


def test_the_judge_is_what_ppo_optimised_only_where_it_is(run: Path, tmp_path: Path) -> None:
    """Not without a policy, nor with another reward model than the one that paid, nor where a rule alone paid."""
    shutil.copytree(run / "reward", tmp_path / "reward")
    manifest = tmp_path / "reward" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"key": "another"}))

    def paid(kind: str = "model", **inputs: Path) -> bool:
        reward = [SimpleNamespace(kind=kind)]
        loaded = SimpleNamespace(recipe=SimpleNamespace(ppo=SimpleNamespace(reward=reward)))
        return optimised_judge(SimpleNamespace(inputs=inputs), loaded)  # type: ignore[arg-type]

    assert paid(ppo=run / "ppo", reward=run / "reward")
    assert not paid(reward=run / "reward") and not paid(ppo=run / "ppo", reward=tmp_path / "reward")
    assert not paid("length", ppo=run / "ppo", reward=run / "reward")


def test_any_reward_chooses_the_best_of_n(run: Path, tmp_path: Path):
    """A rule, a function, a remote scorer and what PPO optimises, among the same samples as the reward model."""
    (tmp_path / "own.py").write_text("def f(prompts, completions):\n    return [-len(c) for c in completions]\n")
    own = "short: [{source: length, max_length: 0, unit: characters}]"
    with serving(lambda rows: [-float(len(r["completion"])) for r in rows]) as address:
        own = f"evaluation.best_of_by={{{own}, own: '{tmp_path}/own.py:f', far: '{address}'}}"
        names = ["best_of_3", *(f"best_of_3:{by}" for by in ("short", "own", "far", "ppo.reward"))]
        found = evaluate(run, tmp_path / "o", "--systems", ",".join(["sft", *names]), "--set", own)
    assert list(found["systems"]) == ["sft", *names]
    said = {name: answers(tmp_path / "o", "sampled", name) for name in ("sft", *names)}
    tries = [said["sft"]]
    for file in sorted((run / "generations").glob("*.jsonl")):
        head, *rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        tries += [[row["text"] for row in rows]] if head["settings"]["stream"] in ("1", "2") else []
    lengths = [min(map(len, texts)) for texts in zip(*tries, strict=True)]
    assert len(tries) == 3 and lengths != [len(a) for a in said["sft"]]
    for by in ("short", "own", "far"):
        assert [len(a) for a in said[f"best_of_3:{by}"]] == lengths
        assert found["systems"][f"best_of_3:{by}"]["kl"]["mean"] == pytest.approx(math.log(3) - 2 / 3)
    rewards = {name: found["systems"][name]["reward"]["mean"] for name in ("best_of_3", "best_of_3:short")}
    assert rewards["best_of_3"] > rewards["best_of_3:short"]
    assert "Best of 3 by short" in (tmp_path / "o" / "report.html").read_text(encoding="utf-8")


def test_without_sft_the_best_are_chosen_of_the_bases_samples(run: Path, tmp_path: Path) -> None:
    """Of the default systems those that are there; one that is named and is not there is refused."""
    inputs = {stage: str(run / stage) for stage in ("pretrain", "reward")}

    def evaluated(name: str, **settings: Any) -> Pipeline:
        asked = {"prompts": 6, "bootstrap": 50, "greedy": False} | settings
        recipe = {k: v for k, v in RECIPE.items() if k != "rankings"} | {"stages": ["evaluate"], "evaluation": asked}
        return Pipeline.from_recipe(recipe, run_dir=tmp_path / name, inputs=inputs)

    evaluated("default").run()
    found = json.loads((tmp_path / "default" / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert [*found["systems"]] == ["base", "best_of_4"] and found["against"] == "base"
    base, best = (found["systems"][name] for name in ("base", "best_of_4"))
    assert base["kl"]["mean"] == base["kl_exact"]["mean"] == 0  # to itself, since it is the reference
    assert best["reward"]["mean"] > base["reward"]["mean"] and best["kl"]["mean"] == pytest.approx(math.log(4) - 3 / 4)
    with pytest.raises(UserError, match=r"systems: ppo: there is no ppo stage in this run; .*: \[base, best_of_2\]"):
        evaluated("named", systems=["base", "best_of_2", "ppo"]).run()
    assert not (tmp_path / "named" / "evaluation").exists()


def test_a_reward_model_from_elsewhere_is_an_untested_judge_everywhere(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder says nothing of held-out pairs: so the results, the terminal, the report and a model card say."""
    rewarder, to = tmp_path / "rewarder", tmp_path / "exported"
    assert cli.main(["export", str(run), "--stage", "reward", "--to", str(rewarder)]) == 0
    inputs = {"pretrain": str(run / "pretrain"), "sft": str(run / "sft"), "reward": str(rewarder)}
    asked = {k: v for k, v in RECIPE.items() if k != "rankings"}
    asked |= {"stages": ["ppo", "evaluate"], "evaluation": {"prompts": 6, "bootstrap": 50, "greedy": False}}
    out = tmp_path / "out"
    (tmp_path / "recipe.yaml").write_text(json.dumps(asked), encoding="utf-8")
    given = [f"{stage}={folder}" for stage, folder in inputs.items()]
    command = ["run", str(tmp_path / "recipe.yaml"), "--run-dir", str(out)]
    assert cli.main([*command, *(part for one in given for part in ("--input", one))]) == 0
    told = "The judge is untested: no held-out pairs tested it, so that nothing shows it to be better than a coin."
    assert f"warning: {told}" in " ".join(capsys.readouterr().out.split())
    found = json.loads((out / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert found["judges"]["reward"]["accuracy"] == {"share": None, "ci95": None, "n": 0}
    assert found["judges"]["reward"]["reliable"] is not True and told in found["warnings"]
    assert told in html.unescape((out / "report.html").read_text(encoding="utf-8"))
    assert cli.main(["export", str(out), "--stage", "ppo", "--to", str(to)]) == 0
    assert f"- {told}" in (to / "README.md").read_text(encoding="utf-8")


def test_a_reward_model_of_other_prompts_judges_beside_the_one_that_ppo_optimised(run: Path, tmp_path: Path):
    """Where ``reward.holdout`` made one: its scores are its own, and it judges first; and the base's perplexity."""
    asked = RECIPE | {
        "reward": RECIPE["reward"] | {"holdout": 0.4, "gate": "off"},  # type: ignore[operator]
        "evaluation": {"prompts": 6, "bootstrap": 50, "greedy": False, "metrics": ["base_perplexity"]},
    }
    inputs = {stage: str(run / stage) for stage in ("pretrain", "sft", "rankings")}
    pipeline = Pipeline.from_recipe(asked, run_dir=tmp_path / "two", inputs=inputs)
    pipeline.run()
    found = json.loads((tmp_path / "two" / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert found["judge"] == "held_out_reward" and set(found["judges"]) == {"held_out_reward", "reward"}
    own = json.loads((tmp_path / "two" / "reward" / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    for judge, measured in (("reward", own), ("held_out_reward", own["watcher"])):
        known = found["judges"][judge]["accuracy"]
        assert [known["share"], known["n"]] == [measured["pair_accuracy"], measured["pairs"]]
        assert known["ci95"] == measured.get("pair_accuracy_ci95") and known["n"] > 0
    assert [c["by"] for c in found["comparisons"] if c["a"] == "ppo"] == ["held_out_reward", "reward"]
    rows = [json.loads(r) for r in (tmp_path / "two" / "evaluation" / "samples.jsonl").read_text().splitlines()]
    cells = [row["systems"]["ppo"] for row in rows]
    said = tmp_path / "two" / "generations" / f"{found['systems']['ppo']['generation']}.jsonl"
    ids = [json.loads(line)["ids"] for line in said.read_text(encoding="utf-8").splitlines()[1:]]
    renderer, stage = pipeline.loaded.renderer(), tmp_path / "two" / "reward"
    queries = [renderer.prompt_ids([Message(role="user", content=row["prompt"])]) for row in rows]
    pipeline.loaded.clear()
    for name, model in (
        ("held_out_reward", pipeline.loaded.load_holdout_model(stage)),
        ("reward", pipeline.loaded.load_reward(stage)),
    ):
        assert model is not None
        assert [c[name] for c in cells] == pytest.approx(model.score_ids(queries, ids).tolist(), abs=1e-4), name
    assert [c["held_out_reward"] for c in cells] != pytest.approx([c["reward"] for c in cells], abs=1e-3)
    ppo = found["systems"]["ppo"]["metrics"]
    assert ppo["base_perplexity"] > 1 and ppo["nats_under_base"]["mean"] > 0
    assert cells[0]["metrics"]["nats_under_base"] > 0
    assert {c["metric"] for c in found["metric_comparisons"]} == {"nats_under_base"}
    chosen = ["--set", "ppo.keep=best", "ppo.holdout_every=1"]  # PPO's checkpoint is chosen by it: no stranger any more
    assert evaluate(tmp_path / "two", tmp_path / "chosen", *chosen)["judge"] == "reward"


def test_other_ways_of_asking(run: Path, tmp_path: Path):
    declared = "evaluation.prompted={mine: {model: sft, system: answer, shots: 1, answer: '(\\w+)'}}"
    options = ["--systems", "sft,prompted:mine,prompted:zero-shot", "--set", declared]
    found = evaluate(run, tmp_path, *options, "evaluation.max_new_tokens=8")
    assert list(found["systems"]) == ["sft", "prompted:mine", "prompted:zero_shot"]
    mine = found["systems"]["prompted:mine"]
    assert mine["extracted"] > 0 and "kl" not in mine and mine["length"]["mean"] <= 3
    rows = [json.loads(line) for line in (tmp_path / "evaluation/samples.jsonl").read_text().splitlines()]
    cell = rows[0]["systems"]["prompted:mine"]
    assert cell["response"] in cell["raw"] and "raw" not in rows[0]["systems"]["sft"]


def test_a_model_of_no_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    exported = tmp_path / "adapter"
    assert cli.main(["export", str(run), "--stage", "sft", "--to", str(exported)]) == 0
    prompts = tmp_path / "new.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"tell me a story about {n}"}) + "\n" for n in range(20)))
    options = ["--prompts", str(prompts), "--set", "evaluation.max_new_tokens=6"]
    found = evaluate("adapter", tmp_path / "out", *options)
    assert list(found["systems"]) == ["base", "path:adapter"] and found["prompts"] == 20
    assert found["judge"] is None and found["comparisons"] == []
    assert any("described, not compared" in w for w in found["warnings"])
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("systems", "words"),
    [
        ("ppo@7", "that policy was not kept (kept: ppo@1, ppo@2)"),
        ("path:nowhere", "no such folder"),
        ("path:.", "no config.json there"),
        ("best-of-3:shorter", "no reward 'shorter' to choose by"),
    ],
)
def test_systems_that_cannot_be_are_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], systems, words
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", str(run), "--run-dir", str(tmp_path / "o"), "--systems", systems]) == 2
    assert words in capsys.readouterr().err


def test_a_model_needs_prompts(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["evaluate", str(run / "pretrain" / "model" / ".." / "model")]) == 2
    assert "--prompts FILE" in capsys.readouterr().err


def test_metrics_against_a_files_answers_and_the_reward_models_card(run: Path, tmp_path: Path):
    rows = [{"prompt": f"tell me a story about {n}", "completion": f"once upon a time {n}"} for n in range(4)]
    prompts, rankings = tmp_path / "answered.jsonl", tmp_path / "ranked.jsonl"
    prompts.write_text("".join(json.dumps(r) + "\n" for r in rows))
    ranked = [{"prompt": f"tell {n}", "responses": ["a fox and a dog .", "no", f"{n}"]} for n in range(6)]
    rankings.write_text("".join(json.dumps(r) + "\n" for r in ranked))
    options = ["--prompts", str(prompts), "--rankings", str(rankings), "--metrics", "exact_match,perplexity"]
    settings = ["--set", "evaluation.max_new_tokens=6", "evaluation.bootstrap=50", "evaluation.gold=null"]
    found = evaluate(run, tmp_path / "out", "--systems", "base,sft", *options, *settings)
    metrics = {name: system["metrics"] for name, system in found["systems"].items()}
    assert metrics["sft"]["exact_match"]["mean"] == 0 and metrics["sft"]["references_n"] == 4
    assert 1 < metrics["sft"]["perplexity"] != metrics["base"]["perplexity"] > 1
    assert "perplexity" not in found["greedy"]["sft"]["metrics"]
    assert 0 <= found["reward_card"]["pair_accuracy"] <= 1
    card = json.loads((tmp_path / "out" / "evaluation" / "report_card.json").read_text())
    assert card["accuracy"]["share"] == found["reward_card"]["pair_accuracy"]
    counts = {"rows": 6, "used": 6, "cut": 0, "cut_answers": 0, "cut_prompts": 0, "dropped": 0}
    assert {name: card["counts"][name] for name in counts} == counts
    own = json.loads((run / "reward" / "report_card.json").read_text())
    assert json.loads((run / "evaluation" / "report_card.json").read_text()) == own


def test_rankings_that_the_reward_models_limit_cuts_are_counted_and_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the terminal, the card, the results and the report, with the limit that would keep them."""
    limit = json.loads((run / "reward" / "manifest.json").read_text())["metrics"]["counts"]["limit"]
    long = {"prompt": "tell a story", "responses": ["a fox " * limit, "a dog", "no"]}
    ranked = [long, *({"prompt": f"tell {n}", "responses": ["a fox and a dog .", f"{n}"]} for n in range(3))]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ranked))
    found = evaluate(run, tmp_path / "out", "--systems", "sft", "--rankings", str(tmp_path / "ranked.jsonl"))
    card = json.loads((tmp_path / "out" / "evaluation" / "report_card.json").read_text())
    assert [card["counts"][name] for name in ("rows", "cut", "cut_answers", "limit")] == [4, 1, 1, limit]
    told = f"reward model's card: of 4 rankings 1 cut to {limit:,} tokens"
    assert [w.startswith(told) for w in found["warnings"] if "card" in w] == [True]
    assert told in " ".join(capsys.readouterr().out.split())
    assert told in html.unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_what_metrics_and_tasks_need_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}\n')
    common = ["evaluate", str(run), "--run-dir", str(tmp_path / "o"), "--systems", "sft"]
    assert cli.main([*common, "--prompts", str(tmp_path / "p.jsonl"), "--metrics", "rouge"]) == 2
    assert "rouge needs references" in capsys.readouterr().err
    assert cli.main([*common, "--metrics", "hub:bleu"]) == 2
    assert "--allow-hub-metrics" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    short = ["--set", "evaluation.prompts=2", "evaluation.greedy=false", "evaluation.max_new_tokens=2"]
    assert cli.main([*common, "--lm-eval", "arc_easy", *short]) == 2
    assert "pip install 'trivet[lm-eval]'" in capsys.readouterr().err


def test_numbers_of_the_harness_are_made_simple():
    from pipelines.evaluate.lm_eval import simplified

    results = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A"}
    found = simplified({"results": {"t": results}, "n-samples": {"t": {"original": 9, "effective": 4}}})
    assert found == {"t": {"acc": {"value": 0.5, "stderr": 0.1}, "em (strict)": {"value": 1.0, "stderr": None}, "n": 4}}


@pytest.mark.slow
def test_the_harness_runs_local_tasks_on_the_exported_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'trivet[lm-eval]'")
    rows = [{"question": "tell a story", "choices": ["cat", "dog"], "answer": n % 2} for n in range(8)]
    (tmp_path / "pets.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    task = {
        "task": "pets",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "pets.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "pets.yaml").write_text(json.dumps(task))
    monkeypatch.setattr(socket.socket, "connect", _refuse)
    options = ["--lm-eval", "pets", "--tasks-dir", str(tmp_path), "--systems", "sft"]
    short = ["--set", "evaluation.prompts=2", "evaluation.greedy=false", "evaluation.lm_eval.systems=[sft, ppo]"]
    found = evaluate(run, tmp_path / "out", *options, *short)["lm_eval"]
    assert set(found["systems"]) == {"sft", "ppo"}
    pets = found["systems"]["ppo"]["pets"]
    assert pets["n"] == 8 and pets["acc"]["value"] == 0.5  # one answer to every question is right half the time
    assert "pets" in (tmp_path / "out" / "report.html").read_text()
    assert not list((tmp_path / "out").glob(".harness-*"))


def _refuse(*_: Any) -> None:
    raise AssertionError("network")


def test_a_reward_model_on_another_base_that_cannot_read_the_responses_is_told() -> None:
    def model(takes_ids: bool, cut: int, unknown: int) -> Any:
        return SimpleNamespace(takes_ids=takes_ids, texts=TextsRead(rows=100, cut=cut, tokens=1000, unknown=unknown))

    few, many = model(False, 5, 50), model(False, 6, 51)
    assert unread(SimpleNamespace(reward=few, held_out_reward=None)) == []  # type: ignore[arg-type]
    assert unread(SimpleNamespace(reward=None, held_out_reward=model(True, 90, 900))) == []  # type: ignore[arg-type]
    told = unread(SimpleNamespace(reward=few, held_out_reward=many))  # type: ignore[arg-type]
    assert told == [
        "the held-out reward model, on a base of its own: of 6 of 100 responses only a part is scored "
        "(reward.max_tokens); 51 of 1,000 tokens stand for text that the tokenizer does not know"
    ]
