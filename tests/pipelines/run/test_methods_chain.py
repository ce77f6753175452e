"""SFT, a reward model and PPO in one chain by each way to tune that has more to carry than an adapter: killed and
resumed in the same bytes, and exported to plain PEFT and Transformers with the run's responses and scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from pipelines.export.stage import export_stage
from pipelines.run.pipeline import Pipeline
from pipelines.run.score import load_scorer
from tests.support.tuned_chain import ASKED, NEW_TOKENS, chain_recipe, check_killed, greedy, opened

STAGES = ("sft", "reward", "ppo")
RATES = {"sft": 1e-2, "reward": 1e-2, "ppo": 1e-3}
TUNED: dict[str, Any] = {
    "embeddings and output layer": {"rank": 4, "alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]},
    "adalora": {"method": "adalora", "rank": 2, "init_rank": 4, "alpha": 8},
    "new tokens": {"rank": 4, "alpha": 8, "new_tokens": ["<think>", "</think>"]},
}
ANSWERS = ["<think> w5 </think> w5", "w6 w7", "w8 " * 12]


@pytest.fixture(scope="module", params=TUNED)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("chain")
    chain_recipe(folder, STAGES, TUNED[request.param], "<think> {} </think>", rates=RATES)
    made = Pipeline.from_recipe(folder / "recipe.yaml", run_dir=folder / "run")
    made.run()
    return made


@pytest.mark.parametrize(("stage", "number"), [("sft", 2), ("reward", 2), ("ppo", 3)])
def test_a_killed_stage_ends_in_the_same_bytes(whole: Pipeline, tmp_path: Path, stage: str, number: int) -> None:
    check_killed(whole, tmp_path / "run", stage, number)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_an_export_gives_the_run_s_greedy_responses(
    whole: Pipeline, tmp_path: Path, stage: str, merge: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = export_stage(whole.run_dir, stage, tmp_path / "out", merge=merge)
    role = {"sft": "sft", "ppo": "policy"}[stage]
    base, renderer = opened(whole, stage, role)
    query, expected, ours = greedy(base, renderer, role)
    ids = torch.tensor([[*query, *expected]])
    assert len(set(expected)) > 1
    opener: Any = AutoModelForCausalLM if merge else AutoPeftModelForCausalLM
    lm = opener.from_pretrained(str(folder)).eval()
    made = lm.generate(input_ids=torch.tensor([query]), max_new_tokens=NEW_TOKENS, do_sample=False)
    assert made[0, len(query) :].tolist()[: len(expected)] == expected
    with torch.no_grad():
        torch.testing.assert_close(lm(input_ids=ids).logits, ours, atol=1e-4 if merge else 1e-5, rtol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer.decode(expected) == base.tokenizer.decode(expected)


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_an_exported_reward_model_gives_the_run_s_scores(whole: Pipeline, tmp_path: Path, merge: bool) -> None:
    folder = export_stage(whole.run_dir, "reward", tmp_path / "out", merge=merge)
    run = load_scorer(whole.run_dir)
    expected = torch.tensor(run(ASKED, ANSWERS, [True] * 3))
    tolerance = 1e-4 if merge else 1e-5
    ours = torch.tensor(load_scorer(folder)(ASKED, ANSWERS, [True] * 3)).to(expected)
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)
    assert expected.std() > 1e-3
    opener: Any = AutoModelForSequenceClassification if merge else AutoPeftModelForSequenceClassification
    model = opener.from_pretrained(str(folder), **({} if merge else {"num_labels": 1})).eval()
    add = json.loads((folder / "scoring.json").read_text())["add_to_classifier"]
    renderer = whole.loaded.renderer()
    found = []
    for asked, answer in zip(ASKED, ANSWERS, strict=True):
        query, response = renderer.prompt_and_answer(asked, answer, True, max_tokens=24)
        with torch.no_grad():
            found.append(model(torch.tensor([[*query, *response]])).logits[0, 0] + add)
    torch.testing.assert_close(torch.stack(found).to(expected), expected, atol=tolerance, rtol=0)


def test_what_each_role_trains_moves_in_each_stage(whole: Pipeline) -> None:
    """Rows of tokens that the data have, and of the whole modules every row that is read."""
    beside = [key for key in ("modules_to_save", "new_tokens") if getattr(whole.recipe.adapter, key)]
    for stage, role in (("sft", "sft"), ("reward", "reward"), ("ppo", "policy")):
        base, _ = opened(whole, stage, role)
        named = {n: p for n, p in base.parameters_of(role).items() if ".lora_" not in n and ".head." not in n}
        assert bool(named) == bool(beside)
        assert any("lm_head" in n for n in named) == (bool(beside) and role != "reward")
        for name, p in named.items():
            module = base.lm.lm_head if name.startswith("lm_head") else base.lm.model.embed_tokens
            there = module.original_module.weight
            assert not torch.equal(p, there[-len(p) :]), name
        assert base.base_fingerprint() == base.fingerprint
