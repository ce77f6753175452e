"""Model cards: the hub's client reads them, their numbers are the run's, and their programs run as they stand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from data.common.errors import UserError
from data.records import Message
from models.backbone.artifacts import read_manifest
from models.hub.catalogue import BASE_MODELS
from models.sampling.generate import CachedEngine, SamplingParams
from pipelines.cli import main as cli
from pipelines.export.model_card import Exported, write_card
from pipelines.export.stage import export_stage
from pipelines.run.open_run import open_run
from pipelines.run.pipeline import Pipeline
from pipelines.run.score import load_scorer
from pipelines.workspace.run_folder import read_run
from tests.conftest import tiny_lm, word_tokenizer

HELLO = [Message(role="user", content="Hello")]


def card_of(folder: Path) -> Any:
    return ModelCard.load(folder / "README.md")


def section(card: ModelCard, title: str) -> str:
    found = re.search(rf"(?ms)^## {title}\n(.*?)(?=^## |\Z)", card.text)
    assert found, title
    return found[1]


def program_of(card: ModelCard) -> str:
    found = re.search(r"(?s)```python\n(.*?)\n```", section(card, "Load it"))
    assert found
    return found[1]


def run_program(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the card's program prints, run in the export's folder without a change."""
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(program_of(card_of(folder)), "README.md", "exec"), {})
    return capsys.readouterr().out.strip()


def stated(args: dict[str, Any]) -> dict[str, Any]:
    """The hub's client leaves out what is None: too few prompts for an interval."""
    return {k: v for k, v in args.items() if v is not None}


def greedy_of_the_run(run: Path, stage: str) -> str:
    pipeline = open_run(run)
    role, folder = ("ppo", run / "ppo") if stage == "ppo" else ("sft", run / "sft")
    pipeline.loaded.load(stage, role, folder)
    renderer = pipeline.loaded.renderer()
    query = renderer.prompt_ids(HELLO)
    with pipeline.loaded.base().role(role) as view:
        params = SamplingParams(max_new_tokens=64, stop_ids=renderer.stop_ids)
        made = CachedEngine()(view, [query], params=params, noise=None)
    return renderer.tokenizer.decode(made.ids[0], skip_special_tokens=True)


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_the_program_of_a_policy_s_card_gives_the_run_s_greedy_response(
    least_run: Path, tmp_path: Path, stage: str, merge: bool, monkeypatch, capsys
) -> None:
    folder = export_stage(least_run, stage, tmp_path / "out", merge=merge)
    assert run_program(folder, monkeypatch, capsys) == greedy_of_the_run(least_run, stage)


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_the_program_of_a_reward_s_card_gives_the_run_s_score(
    least_run: Path, tmp_path: Path, merge: bool, monkeypatch, capsys
) -> None:
    folder = export_stage(least_run, "reward", tmp_path / "out", merge=merge)
    expected = load_scorer(least_run)([HELLO], ["Hi"], [True])[0]
    assert float(run_program(folder, monkeypatch, capsys)) == pytest.approx(expected, abs=1e-4)


def test_a_policy_s_numbers_are_those_of_the_evaluation(least_run: Path, tmp_path: Path) -> None:
    card = card_of(export_stage(least_run, "ppo", tmp_path / "out"))
    results = json.loads((least_run / "evaluation/results.json").read_text())
    compared = [c for c in results["comparisons"] if c["a"] == "ppo"]
    stored: Any = card.data.eval_results
    assert compared and len(stored) == len(compared)
    for c, found in zip(compared, stored, strict=True):
        assert found.metric_value == c["win_rate"]
        assert found.metric_args == stated({"ci95": c["ci95"], "n": c["n"]})
        assert f"{c['wins']} wins, {c['ties']} ties, {c['losses']} losses" in card.text
        assert f"`ppo` against `{c['b']}` by {c['by']}, {c['decoding']}: wins {100 * c['win_rate']:.1f} %" in card.text
    length = results["systems"]["ppo"]["length"]["mean"]
    assert f"| tokens | sampled | {length:.2f} |" in card.text
    assert f"On {results['prompts']} held-out prompts" in card.text


def test_a_reward_s_numbers_are_those_of_its_report_card(least_run: Path, tmp_path: Path) -> None:
    card = card_of(export_stage(least_run, "reward", tmp_path / "out"))
    found = json.loads((least_run / "reward/report_card.json").read_text())
    stored: Any = card.data.eval_results
    assert stored[0].metric_value == found["accuracy"]["share"]
    assert stored[0].metric_args == stated({"ci95": found["accuracy"]["ci95"], "n": found["accuracy"]["n"]})
    for name, baseline in found["baselines"].items():
        assert f"| trivial rule: {name.replace('answer', 'response')} | {100 * baseline['share']:.0f} % |" in card.text
    assert card.data.to_dict()["pipeline_tag"] == "text-classification"
    assert "trivet's gate" in section(card, "What was found of it") or found["accuracy"]["ci95"] is None


def test_lineage_rows_and_settings_are_those_of_the_manifests(least_run: Path, tmp_path: Path) -> None:
    card = card_of(export_stage(least_run, "sft", tmp_path / "out"))
    training, data = section(card, "Training"), section(card, "Data")
    for name in ("pretrain", "sft"):
        assert f"key `{read_manifest(least_run / name)['key'][:12]}`" in training
    assert "**reward**" not in training and "**ppo**" not in training  # nothing of what came after it
    assert "- `sft.learning_rate: 0.003`" in training and "- `adapter.rank: 4`" in training
    assert "sft.epochs" not in training and "adapter.dropout" not in training  # at their defaults
    for row in read_run(least_run)["sources"]:
        counted = f"| {row['part']} | {row['source']} | {row['used'] - row['held_out']} | {row['held_out']} |"
        assert (counted in data) == (row["part"] in ("documents", "demonstrations"))


def test_an_evaluation_of_another_model_is_none_of_this_one(least_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(least_run, run)
    manifest = json.loads((run / "evaluation/manifest.json").read_text())
    manifest["described"]["inputs"]["ppo"] = "0" * 64
    (run / "evaluation/manifest.json").write_text(json.dumps(manifest))
    card = card_of(export_stage(run, "ppo", tmp_path / "out"))
    assert card.data.eval_results is None
    assert "The run's evaluation is not of this model." in section(card, "What was found of it")


def test_rounding_stands_in_the_card_and_on_standard_error(least_run: Path, tmp_path: Path, capsys) -> None:
    to = tmp_path / "out"
    assert cli.main(["export", str(least_run), "--stage", "ppo", "--to", str(to), "--merge", "--dtype", "bf16"]) == 0
    said = capsys.readouterr().err
    sentence = next(line for line in said.splitlines() if line.startswith("Rounding to bf16"))
    assert f"- {sentence}" in section(card_of(to), "What it depends on")


@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"max_shard_size": "1GB"}, {"dtype": "bf16", "gguf": "f16"}])
def test_precision_and_shards_are_for_full_weights(least_run: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--dtype and --max-shard-size are for full weights"):
        export_stage(least_run, "ppo", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def on_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SFT on a local base whose own card says a licence."""
    folder = tmp_path_factory.mktemp("local")
    tiny_lm().save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    (folder / "base/README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A base\n")
    rows = [{"prompt": f"w{n} w2", "completion": "w3 w4"} for n in range(8)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = {
        "base": "./base",
        "stages": ["sft"],
        "template": "dialogue",
        "data": {"demonstrations": str(folder / "d.jsonl"), "held_out": 0.0},
        "sft": {"batch": 4},
        "runtime": {"device": "cpu", "threads": 1},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    Pipeline.from_recipe(folder / "recipe.yaml", run_dir=folder / "run").run()
    return folder / "run"


def test_a_card_names_no_folder_of_this_machine_and_the_licence_of_the_base_s_card(
    on_a_folder: Path, tmp_path: Path
) -> None:
    card = card_of(export_stage(on_a_folder, "sft", tmp_path / "out", merge=True))
    assert card.data.to_dict()["license"] == "cc-by-4.0" and card.data.base_model is None
    assert "cc-by-4.0 (by the base's model card)" in section(card, "Licences")
    assert str(on_a_folder.parent) not in card.content
    assert "| demonstrations | d.jsonl | 8 | 0 |" in section(card, "Data")
    assert "The run has no evaluation." in section(card, "What was found of it")


def test_a_base_without_a_card_has_no_licence_and_one_of_the_catalogue_has_its_own(
    on_a_folder: Path, tmp_path: Path
) -> None:
    pipeline = open_run(on_a_folder)
    made = Exported(form="adapter", renderer=pipeline.loaded.renderer())
    own = pipeline.loaded.spec
    (tmp_path / "bare").mkdir()
    pipeline.loaded.spec = own.model_copy(update={"source": str(tmp_path / "bare")})
    write_card(pipeline, "sft", made, tmp_path)
    assert "license" not in card_of(tmp_path).data.to_dict()
    assert "The licence of the base is not known." in section(card_of(tmp_path), "Licences")
    pipeline.loaded.spec = BASE_MODELS["gpt2"]
    write_card(pipeline, "sft", made, tmp_path)
    stored = card_of(tmp_path).data.to_dict()
    assert (stored["license"], stored["base_model"]) == ("mit", "openai-community/gpt2")
    assert stored["base_model_relation"] == "adapter" and stored["library_name"] == "peft"
