"""SFT, a reward model, PPO and evaluation in one chain by virtual tokens: killed and resumed in the same bytes,
exported to plain PEFT with the run's responses, scored by the export, and refused where a pair makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from data.common.errors import UserError
from models.backbone.settings import METHODS
from pipelines.export.stage import export_stage
from pipelines.loading.load import load_recipe
from pipelines.run.pipeline import Pipeline
from pipelines.run.rehearsal import rehearse
from pipelines.run.score import load_scorer
from tests.support.tuned_chain import ASKED, NEW_TOKENS, chain_recipe, check_killed, greedy, opened

STAGES = ("sft", "reward", "ppo", "evaluate")
TUNED: dict[str, Any] = {
    "prompt_tuning": {"method": "prompt_tuning", "virtual_tokens": 3},
    "p_tuning": {"method": "p_tuning", "virtual_tokens": 3, "encoder": "lstm", "encoder_width": 8},
    "prefix_tuning": {"method": "prefix_tuning", "virtual_tokens": 3},
}
RATES = {"sft": 3e-2, "reward": 3e-2, "ppo": 1e-2}
ANSWERS = ["w5 w5 w5", "w6 w7", "w8 " * 12]


@pytest.fixture(scope="module", params=TUNED)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("virtual")
    chain_recipe(folder, STAGES, TUNED[request.param], rates=RATES)
    made = Pipeline.from_recipe(folder / "recipe.yaml", run_dir=folder / "run")
    made.run()
    return made


def test_the_chain_learns_scores_and_evaluates(whole: Pipeline) -> None:
    """PPO's first update starts where SFT ended: no KL before it."""
    rows = [json.loads(line) for line in (whole.run_dir / "ppo/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4) and rows[-1]["objective/kl"] != 0.0
    found = json.loads((whole.run_dir / "evaluation/results.json").read_text())
    assert {"base", "sft", "ppo"} <= found["systems"].keys()
    for stage, role in (("sft", "sft"), ("reward", "reward"), ("ppo", "policy")):
        base, _ = opened(whole, stage, role)
        named = [n for n in base.parameters_of(role) if ".head." not in n]
        assert named == [f"soft_prompts.{role}.encoder.embedding.weight"]
        assert base.base_fingerprint() == base.fingerprint


def test_an_export_gives_the_run_s_greedy_responses_in_plain_peft(whole: Pipeline, tmp_path: Path) -> None:
    for stage, role in (("sft", "sft"), ("ppo", "policy")):
        folder = export_stage(whole.run_dir, stage, tmp_path / stage)
        base, renderer = opened(whole, stage, role)
        query, expected, ours = greedy(base, renderer, role)
        ids = torch.tensor([[*query, *expected]])
        lm: Any = AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval()
        asked = torch.tensor([query])
        made = lm.generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=NEW_TOKENS, do_sample=False
        )
        assert made[0, len(query) :].tolist()[: len(expected)] == expected
        with torch.no_grad():
            theirs = lm(input_ids=ids).logits[:, -ids.shape[1] :]
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
        with pytest.raises(UserError, match=f"--merge: '{stage}' is tuned by adapter.method .* nothing can be merged"):
            export_stage(whole.run_dir, stage, tmp_path / "merged", merge=True)
        with pytest.raises(UserError, match=f"--gguf: '{stage}' is tuned by"):
            export_stage(whole.run_dir, stage, tmp_path / "gguf", gguf="f32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ppo", "sft"]


def test_an_exported_reward_model_gives_the_run_s_scores(whole: Pipeline, tmp_path: Path) -> None:
    folder = export_stage(whole.run_dir, "reward", tmp_path / "out")
    expected = torch.tensor(load_scorer(whole.run_dir)(ASKED, ANSWERS, [True] * 3))
    ours = torch.tensor(load_scorer(folder)(ASKED, ANSWERS, [True] * 3))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert expected.std() > 1e-3
    with pytest.raises(UserError, match="--merge: 'reward' is tuned by"):
        export_stage(whole.run_dir, "reward", tmp_path / "merged", merge=True)


@pytest.mark.parametrize(("stage", "number"), [("sft", 2), ("ppo", 3)])
def test_a_killed_stage_ends_in_the_same_bytes(whole: Pipeline, tmp_path: Path, stage: str, number: int) -> None:
    check_killed(whole, tmp_path / "run", stage, number)


@pytest.mark.parametrize("method", [name for name, tuning in METHODS.items() if tuning.virtual])
def test_pairs_that_make_no_sense_are_refused_before_anything_runs(method: str, tmp_path: Path) -> None:
    recipe = chain_recipe(tmp_path, STAGES, {"method": method, "virtual_tokens": 3}, rates=RATES) | {
        "base": str(tmp_path / "base")
    }
    recipe["data"] = {k: str(tmp_path / v) if isinstance(v, str) else v for k, v in recipe["data"].items()}
    for path, value, words in (
        ("evaluation.lm_eval", {"tasks": ["x"]}, f"lm_eval.systems: .*'{method}' are no weights"),
        ("adapter.rank", 3, "adapter.rank: has no effect"),
        ("adapter.new_tokens", ["<x>"], "adapter.new_tokens: has no effect"),
        ("runtime.quantize", "nf4", f"'{method}'.*use 'lora'"),
        *([("runtime.gradient_checkpointing", True, "lose the keys and values")] if METHODS[method].past else []),
    ):
        group, name = path.split(".")
        with pytest.raises(UserError, match=words):
            load_recipe(recipe | {group: recipe.get(group, {}) | {name: value}})
    alone = Pipeline.from_recipe(recipe | {"stages": ["reward", "ppo"]}, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=f"PPO by '{method}' starts from SFT"):
        rehearse(alone, ["reward", "ppo"], lambda text: None)
    many = Pipeline.from_recipe(
        recipe | {"adapter": {"method": method, "virtual_tokens": 64}}, run_dir=tmp_path / "many"
    )
    with pytest.raises(UserError, match=r"adapter\.virtual_tokens: 64 leave none of the 64 positions"):
        rehearse(many, ["sft"], lambda text: None)
