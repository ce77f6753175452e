"""The whole pipeline at its smallest: skipping, staleness, byte equality, single stages, exports, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.common.errors import UserError
from models.backbone.artifacts import read_artifact
from pipelines.cli.main import main
from pipelines.report.page import view
from pipelines.report.run_files import read_run as files_of_run
from pipelines.run.pipeline import Pipeline
from pipelines.workspace.run_folder import read_run
from tests.support.recipes import RECIPE, ROOT, STAGES, metrics, results

PROMISED = {
    "objective/kl",
    "objective/scores",
    "objective/rlhf_reward",
    "objective/entropy",
    "ppo/policy/approxkl",
    "ppo/policy/clipfrac",
    "ppo/policy/ratio",
    "ppo/value/explained_variance",
    "ppo/loss/policy",
    "ppo/loss/value",
    "rollout/length",
    "rollout/truncated_fraction",
    "time/rollout",
    "time/score",
    "time/update",
    "time/total",
    "tokens/response",
    "memory/peak",
}


@pytest.fixture(scope="module")
def run(least_run) -> Path:
    return least_run


def test_every_stage_leaves_what_the_interface_says(run):
    names = set(results(run))
    assert {"sft/adapter/adapter_model.safetensors", "reward/head.safetensors", "ppo/value/head.safetensors"} <= names
    assert {
        "ppo/value/adapter/adapter_model.safetensors",
        "evaluation/results.json",
        "evaluation/samples.jsonl",
    } <= names
    assert (run / "recipe.yaml").is_file() and (run / "run.json").is_file()
    assert not [f for f in run.rglob("*") if f.suffix in (".pt", ".pth", ".bin", ".pkl")]
    found = json.loads((run / "evaluation/results.json").read_text())
    assert list(found["systems"]) == ["base", "sft", "best_of_4", "ppo"]
    assert {"reward", "gold", "length", "distinct_2", "truncated"} <= set(found["systems"]["ppo"])
    ppo = [json.loads(line) for line in (run / "ppo/metrics.jsonl").read_text().splitlines()]
    assert len(ppo) == 2 and set(ppo[0]) >= PROMISED


def test_a_second_run_does_nothing_and_the_base_is_unchanged(run):
    before = {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file() and f.parent.name in STAGES}
    pipeline = Pipeline.from_recipe(RECIPE, run_dir=run)
    assert {p.status for p in pipeline.plan()} == {"cached"}
    pipeline.run()
    assert before == {f: f.stat().st_mtime_ns for f in before}
    prints = {read_artifact(run / s).manifest["base_fingerprint"] for s in STAGES[1:]}
    assert len(prints) == 1 and prints == {pipeline.loaded.base().base_fingerprint()}


def test_a_stage_whose_process_died_before_it_was_noted_is_noted_by_the_next_run(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    noted = json.loads((copy / "run.json").read_text())
    noted["stages"]["sft"] = {"status": "running", "key": noted["stages"]["sft"]["key"]}
    (copy / "run.json").write_text(json.dumps(noted))
    Pipeline.from_recipe(RECIPE, run_dir=copy).run()
    found = json.loads((copy / "run.json").read_text())["stages"]
    assert {entry["status"] for entry in found.values()} == {"done"}
    assert found["sft"] == {"status": "done", "key": read_artifact(copy / "sft").key, "artifact": "sft"}
    assert found["ppo"] == noted["stages"]["ppo"]


def test_the_same_recipe_gives_the_same_bytes(run, tmp_path):
    torch.manual_seed(123)
    Pipeline.from_recipe(RECIPE, run_dir=tmp_path / "second").run()
    assert results(run) == results(tmp_path / "second")
    assert metrics(run) == metrics(tmp_path / "second")
    assert [read_artifact(run / s).key for s in STAGES] == [read_artifact(tmp_path / "second" / s).key for s in STAGES]


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ("ppo.kl_coef=0.2", ["ppo", "evaluate"]),
        ("reward.epochs=2", ["reward", "ppo", "evaluate"]),
        ("evaluation.prompts=5", ["evaluate"]),
        ("sft.learning_rate=0.001", ["sft", "rankings", "reward", "ppo", "evaluate"]),
        ("seed=1", ["pretrain", "sft", "rankings", "reward", "ppo", "evaluate"]),
        ("name=other", []),
    ],
)
def test_a_change_makes_exactly_the_dependent_stages_stale(run, change, stale):
    plan = Pipeline.from_recipe(RECIPE, [change], run_dir=run).plan()
    assert [p.name for p in plan if p.status == "stale"] == stale
    assert all(p.reason.startswith("changed: ") for p in plan if p.status == "stale")


def test_altered_bytes_are_noticed_by_name(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    file = copy / "reward/head.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    plan = {p.name: p for p in Pipeline.from_recipe(RECIPE, run_dir=copy).plan()}
    assert plan["reward"].status == "stale" and "head.safetensors: altered" in plan["reward"].reason
    assert plan["sft"].status == "cached"
    with pytest.raises(UserError, match="altered"):
        Pipeline.from_recipe(RECIPE, run_dir=copy).run(only=["ppo"], fresh=True)


def test_stages_alone_give_the_bytes_of_the_chain(run, tmp_path):
    """From the run's own stages, and PPO from exported plain PEFT as well."""
    alone = tmp_path / "alone"
    given = {"pretrain": str(run / "pretrain")}
    inputs = {
        "sft": given,
        "rankings": given | {"sft": str(run / "sft")},
        "reward": given | {"sft": str(run / "sft"), "rankings": str(run / "rankings")},
        "ppo": given | {"sft": str(run / "sft"), "reward": str(run / "reward")},
        "evaluate": given | {s: str(run / s) for s in ("sft", "reward", "ppo")},
    }
    for stage, folders in inputs.items():
        Pipeline.from_recipe(RECIPE, run_dir=alone, inputs=folders).run(only=[stage])
    chain = {k: v for k, v in results(run).items() if not k.startswith("pretrain")}
    assert results(alone) == chain


def test_ppo_from_an_exported_plain_peft_folder_gives_the_same_bytes(run, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from pipelines.export.stage import export_stage

    plain = export_stage(run, "sft", tmp_path / "plain")
    lm = AutoModelForCausalLM.from_pretrained(run / "pretrain/model")
    assert PeftModel.from_pretrained(lm, plain) is not None
    inputs = {"pretrain": str(run / "pretrain"), "sft": str(plain), "reward": str(run / "reward")}
    Pipeline.from_recipe(RECIPE, run_dir=tmp_path / "alone", inputs=inputs).run(only=["ppo"])
    ours = {k: v for k, v in results(run).items() if k.startswith("ppo")}
    assert results(tmp_path / "alone") == ours


def test_merged_export_is_the_policy(run, tmp_path):
    """P10: merged weights in a copy; logits equal those of the adapter, and the base is untouched."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines.export.stage import export_stage
    from pipelines.run.open_run import open_run

    merged = export_stage(run, "ppo", tmp_path / "merged", merge=True)
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    assert tokenizer.chat_template
    pipeline = open_run(run)
    base = pipeline.loaded.base()
    pipeline.loaded.load("ppo", "policy", run / "ppo")
    ids = torch.arange(4, 20)[None]
    with base.role("policy") as view, torch.no_grad():
        ours = view.logits(view.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))
        torch.testing.assert_close(lm(ids).logits, ours, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="exists already"):
        export_stage(run, "ppo", tmp_path / "merged")
    with pytest.raises(UserError, match="Did you mean 'ppo'"):
        export_stage(run, "pppo", tmp_path / "x")


def test_scoring_a_file_gives_the_rewards_of_evaluation(run, tmp_path):
    from pipelines.recipe.derived import response_limit
    from pipelines.run.score import score_file

    samples = [json.loads(line) for line in (run / "evaluation/samples.jsonl").read_text().splitlines()]
    # this small model samples special tokens, which text leaves out: only answers whose every token is a word
    limit = response_limit(Pipeline.from_recipe(RECIPE).recipe)
    rows = [r for r in samples if len(r["systems"]["sft"]["response"].split()) == limit]
    assert rows
    file = tmp_path / "answers.jsonl"
    file.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": r["prompt"],
                    "completion": r["systems"]["sft"]["response"],
                    "finished": r["systems"]["sft"]["finished"],
                }
            )
            + "\n"
            for r in rows
        )
    )
    out = tmp_path / "scored.jsonl"
    assert score_file(run, file, out) == len(rows)
    found = [json.loads(line)["reward"] for line in out.read_text().splitlines()]
    assert found == pytest.approx([r["systems"]["sft"]["reward"] for r in rows], abs=1e-3)
    from pipelines.export.stage import export_stage

    score_file(export_stage(run, "reward", tmp_path / "exported"), file, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == out.read_text()


def test_verify_finds_nothing_and_then_the_broken_link(run, tmp_path):
    from pipelines.workspace.verify import verify_run

    assert verify_run(run) == []
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    manifest = json.loads((copy / "sft/manifest.json").read_text())
    (copy / "sft/manifest.json").write_text(json.dumps(manifest | {"key": "0" * 64}))
    (copy / "ppo/adapter/adapter_model.safetensors").unlink()
    wrong = verify_run(copy)
    assert any("adapter_model.safetensors: missing" in w for w in wrong)
    assert sum("made from another sft" in w for w in wrong) == 4


def test_an_adapter_of_another_base_is_refused(run, tmp_path):
    """P11."""
    other = Pipeline.from_recipe(RECIPE, ["seed=5"], run_dir=tmp_path / "other")
    other.run(only=["pretrain"])
    inputs = {"sft": str(run / "sft"), "reward": str(run / "reward")}
    with pytest.raises(UserError, match="another base"):
        Pipeline.from_recipe(RECIPE, ["seed=5"], run_dir=tmp_path / "other", inputs=inputs).run(only=["ppo"])


def test_a_run_folder_has_one_holder(run):
    from models.backbone.processes import Processes
    from pipelines.workspace.run_folder import RunFolder

    refused = pytest.raises(UserError, match=f"process {os.getpid()}")
    with RunFolder(run, Processes("cpu")).held(), refused, RunFolder(run, Processes("cpu")).held():
        raise AssertionError("two holders")
    with RunFolder(run, Processes("cpu")).held():
        assert (run / ".lock").is_file()


def test_a_reward_of_functions_needs_no_reward_model(run, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def short(prompts, completions):\n    return [-len(c.split()) / 10 for c in completions]\n"
    )
    changes = [f"ppo.reward=[{tmp_path / 'mine.py'}:short]", "ppo.value.init=sft", "ppo.value.head=zero"]
    inputs = {"pretrain": str(run / "pretrain"), "sft": str(run / "sft")}
    pipeline = Pipeline.from_recipe(RECIPE, changes, run_dir=tmp_path / "run", inputs=inputs)
    pipeline.run(only=["ppo"])
    rows = [json.loads(line) for line in (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["objective/scores"] < 0 and any(
        k.startswith("reward/") and k.endswith("mine.py:short") for k in rows[0]
    )


def test_a_reward_model_on_another_base_with_its_own_tokenizer(run, tmp_path):
    """M11: responses pass as text, everything else is the same."""
    other = dict(
        RECIPE,
        name="small",
        base={"pretrain": RECIPE["base"]["pretrain"] | {"tokenizer": "bpe", "vocabulary": 320, "steps": 3}},
    )
    Pipeline.from_recipe(other, run_dir=tmp_path / "other").run(only=["pretrain"])
    changes = [f"reward.base={tmp_path / 'other/pretrain/model'}"]
    inputs = {"pretrain": str(run / "pretrain"), "sft": str(run / "sft"), "rankings": str(run / "rankings")}
    Pipeline.from_recipe(RECIPE, changes, run_dir=tmp_path / "run", inputs=inputs).run(only=["reward"])
    inputs = {"pretrain": str(run / "pretrain"), "sft": str(run / "sft")}
    Pipeline.from_recipe(RECIPE, changes, run_dir=tmp_path / "run", inputs=inputs).run(only=["ppo"])
    assert read_artifact(tmp_path / "run/ppo").metrics["updates"] == 2


def test_another_run_takes_finished_stages_from_the_store(run, tmp_path, capsys):
    store, second = tmp_path / "store", tmp_path / "second"
    Pipeline.from_recipe(RECIPE, run_dir=run, store=store).run()  # nothing to do but to share
    left = second / ".sft.partial"
    left.mkdir(parents=True)
    changed = Pipeline.from_recipe(RECIPE, ["ppo.kl_coef=0.2"], run_dir=second, store=store)
    assert [p.status for p in changed.plan()] == ["stored"] * 4 + ["new"] * 2
    capsys.readouterr()
    Pipeline.from_recipe(RECIPE, run_dir=second, store=store).run()
    assert results(run) == results(second) and not left.exists()
    assert capsys.readouterr().out.count("taken from the store") == len(STAGES)
    assert {p.status for p in Pipeline.from_recipe(RECIPE, run_dir=second).plan()} == {"cached"}
    assert json.loads((second / "run.json").read_text())["stages"]["ppo"]["status"] == "done"


def test_a_store_that_cannot_be_written_stops_no_run(run, tmp_path, capsys, monkeypatch):
    def full(self, artifact):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.workspace.store.Store.put", full)
    Pipeline.from_recipe(RECIPE, run_dir=run, store=tmp_path / "store").run(only=["sft"])
    assert "not shared" in " ".join(capsys.readouterr().out.split())


def test_run_json_has_the_tokens_of_every_stage(run):
    noted, rows = json.loads((run / "run.json").read_text())["stages"], metrics(run)
    for stage, key in (("pretrain", "tokens"), ("reward", "tokens"), ("ppo", "tokens/response")):
        assert noted[stage]["tokens"] == sum(r[key] for r in rows[stage]) > 0
    assert noted["sft"]["tokens"] == rows["sft"][-1]["num_tokens"] > rows["sft"][0]["num_tokens"] > 0
    assert noted["rankings"]["tokens"] > 0 and noted["evaluate"]["tokens"] > 0


def test_tracking_writes_tensorboard_events_and_changes_nothing_else(run, tmp_path):
    inputs = {"pretrain": str(run / "pretrain"), "sft": str(run / "sft"), "reward": str(run / "reward")}
    Pipeline.from_recipe(RECIPE, run_dir=tmp_path, inputs=inputs).run(only=["ppo"])
    assert [f for f in (tmp_path / "tensorboard/ppo").iterdir() if f.name.startswith("events.")]
    assert results(tmp_path) == {k: v for k, v in results(run).items() if k.startswith("ppo")}


def test_full_fine_tuning_runs_the_chain(run, tmp_path):
    changes = ["adapter={method: full}", "sft.learning_rate=1e-3", "ppo.learning_rate=1e-4", "evaluation.prompts=4"]
    Pipeline.from_recipe(RECIPE, changes, run_dir=tmp_path, inputs={"pretrain": str(run / "pretrain")}).run(start="sft")
    from pipelines.export.stage import export_stage

    plain = export_stage(tmp_path, "sft", tmp_path.parent / "plain")
    assert (plain / "model.safetensors").is_file() and (plain / "tokenizer.json").is_file()
    inputs = {"pretrain": str(run / "pretrain"), "sft": str(plain), "reward": str(tmp_path / "reward")}
    alone = tmp_path.parent / "alone"
    Pipeline.from_recipe(RECIPE, changes, run_dir=alone, inputs=inputs).run(only=["ppo"])
    assert results(alone) == {k: v for k, v in results(tmp_path).items() if k.startswith("ppo")}
    assert (tmp_path / "ppo/model/model.safetensors").is_file() and (
        tmp_path / "ppo/value/model/model.safetensors"
    ).is_file()


def test_two_processes_take_different_prompts_and_end_with_equal_parameters(tmp_path):
    """D7, D8: torchrun on CPU; every stage runs, each process writes its own trace."""
    script = ROOT / "tests/support/two_processes.py"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        str(script),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=280, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert first["world"] == second["world"] == 2
    assert first["prompts"] and not set(first["prompts"]) & set(second["prompts"])
    assert first["hashes"] == second["hashes"] and len(first["hashes"]) == 3
    assert results(tmp_path / "run")["ppo/adapter/adapter_model.safetensors"]


def test_a_file_that_a_function_opens_is_part_of_what_a_stage_was_made_with(least_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(least_run, tmp_path / "run"))
    code = "    extra = len(open(HERE / 'lexicon.txt').read())\n    return [len(c) + extra for c in completions]\n"
    head = "from pathlib import Path\nHERE = Path(__file__).parent\n"
    (tmp_path / "gold.py").write_text(f"{head}def gold(completions):\n{code}")
    made = json.loads(json.dumps(RECIPE))
    made["evaluation"] |= {"gold": "gold.py:gold", "greedy": False, "systems": ["sft", "ppo"]}
    (tmp_path / "r.json").write_text(json.dumps(made))

    def evaluated(text: str) -> tuple[str, str, float]:
        (tmp_path / "lexicon.txt").write_text(text)
        pipeline = Pipeline.from_recipe(tmp_path / "r.json", run_dir=run)
        plan = next(p for p in pipeline.plan() if p.name == "evaluate")
        pipeline.run(only=["evaluate"])
        manifest = json.loads((run / "evaluation/manifest.json").read_text())
        assert manifest["files_read"] == {"lexicon.txt": hashlib.sha256(text.encode()).hexdigest()}
        mean = json.loads((run / "evaluation/results.json").read_text())["systems"]["sft"]["gold"]["mean"]
        return plan.status, plan.reason, mean

    first = evaluated("12")
    status, reason, again = evaluated("12345")
    assert (status, reason) == ("stale", "changed: lexicon.txt, which code of yours opened")
    assert again == pytest.approx(first[2] + 3)
    assert evaluated("12345")[0] == "cached" and evaluated("12345")[2] == again
    from pipelines.workspace.verify import verify_run

    assert not [problem for problem in verify_run(run) if "evaluation" in problem]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--from ppo --until sft", ("--from ppo", "--until sft")),
        ("--only sft --from ppo", ("--only sft", "--from ppo")),
        ("--only sft ppo --from reward", ("--only sft", "--from reward")),
        ("--only ppo --until sft", ("--only ppo", "--until sft")),
        ("--from sft --until sft --input sft=given", ("--input sft",)),
    ],
)
def test_flags_that_leave_each_other_nothing_are_refused_by_name(
    flags: str, named: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    (tmp_path / "r.json").write_text(json.dumps(RECIPE))
    assert main(["run", "r.json", "--run-dir", "new", *flags.split()]) == 2
    told = capsys.readouterr()
    assert all(name in told.err for name in named) and not (tmp_path / "new").exists()


def test_flags_that_agree_choose_what_they_name() -> None:
    chosen = Pipeline.from_recipe(RECIPE).chosen
    assert chosen(["reward", "sft"], "sft", "reward") == ["sft", "reward"]
    assert chosen([], "reward", "reward") == ["reward"] and chosen(["ppo"], "sft", None) == ["ppo"]


def test_a_fault_of_the_users_code_within_a_stage_is_that_stages_failure(
    least_run: Path, tmp_path: Path, capsys
) -> None:
    run, code = Path(shutil.copytree(least_run, tmp_path / "run")), tmp_path / "own.py"
    made = json.loads(json.dumps(RECIPE))
    made["ppo"] |= {"reward": [{"source": "own.py:kind"}], "value": {"init": "sft"}}
    (tmp_path / "r.json").write_text(json.dumps(made))
    command = ["ppo", str(tmp_path / "r.json"), "--run-dir", str(run)]

    def status() -> str:
        capsys.readouterr()
        assert main(["ls", str(run.parent)]) == 0
        return re.findall(r"ppo \(([^)]*)\)", capsys.readouterr().out)[0]

    code.write_text("def other(completions):\n    return 0\n")
    assert main(command) == 2 and not (run / "error.log").exists()  # found before the stage: nothing has failed
    assert read_run(run)["stages"]["ppo"]["status"] == "done"

    code.write_text("def kind(completions):\n    raise RuntimeError('my scorer is broken')\n")
    capsys.readouterr()
    assert main(command) == 2
    told = capsys.readouterr()
    message = told.err.strip().removeprefix("trivet: ")
    assert "my scorer is broken" in message and f"the log is {run / 'error.log'}" in told.out
    assert read_run(run)["stages"]["ppo"]["lines"] == message.splitlines() and status() == "failed"
    assert "RuntimeError: my scorer is broken" in (run / "error.log").read_text()
    seen = view(files_of_run(run))["headline"]
    assert seen["text"] == "PPO failed" and "my scorer is broken" in seen["detail"]
    assert "The log is error.log" in seen["detail"]

    assert main(["sft", *command[1:]]) == 0 and not (run / "error.log").exists()  # which says nothing of PPO
    seen = view(files_of_run(run))["headline"]
    assert seen["text"] == "PPO failed" and "my scorer is broken" in seen["detail"] and status() == "failed"
    assert "The log is error.log" not in seen["detail"]

    code.write_text("def kind(completions):\n    return [float(len(c)) for c in completions]\n")
    assert main(command) == 0 and not (run / "error.log").exists()
    assert read_run(run)["stages"]["ppo"]["status"] == "done" and "lines" not in read_run(run)["stages"]["ppo"]
