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

from data.records import Message
from models.sampling.generate import CachedEngine, SamplingParams
from pipelines.run.export import export_stage
from pipelines.run.pipeline import Pipeline
from pipelines.run.score import load_scorer
from stages.safe_points.checkpoints import Checkpoints
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.recipes import results

STAGES = ("sft", "reward", "ppo")
SHAPE: dict[str, Any] = {"initializer_range": 0.2}
TUNED: dict[str, Any] = {
    "embeddings and output layer": {"rank": 4, "alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]},
    "adalora": {"method": "adalora", "rank": 2, "init_rank": 4, "alpha": 8},
    "new tokens": {"rank": 4, "alpha": 8, "new_tokens": ["<think>", "</think>"]},
}
ASKED = [[Message(role="user", content="w1 w2")]] * 3
ANSWERS = ["<think> w5 </think> w5", "w6 w7", "w8 " * 12]


class Killed(BaseException):
    """Nothing may catch it and tidy up."""


def recipe_in(folder: Path, adapter: dict[str, Any]) -> Path:
    tiny_lm(**SHAPE).save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    shown = [{"prompt": f"w{n} w2", "completion": f"<think> w{n} </think> w3 w4"} for n in range(12)]
    ranked = [{"prompt": f"w{n}", "chosen": "<think> w5 </think> w5", "rejected": f"w6 w{n}"} for n in range(12)]
    for name, rows in (("d", shown), ("r", ranked)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = {
        "base": "./base",
        "template": "dialogue",
        "stages": list(STAGES),
        "data": {"demonstrations": "d.jsonl", "rankings": "r.jsonl", "prompts": "d.jsonl", "held_out": 0.0},
        "adapter": adapter,
        "sft": {"learning_rate": 1e-2, "batch": 4, "epochs": 2},
        "reward": {"learning_rate": 1e-2, "batch": 4, "epochs": 1, "max_tokens": 24, "calibration_samples": 8},
        "ppo": {
            **{"updates": 2, "rollouts": 8, "epochs": 1, "minibatches": 2, "learning_rate": 1e-3},
            **{"max_new_tokens": 8, "max_prompt_tokens": 16},
        },
        "runtime": {"device": "cpu", "threads": 1, "dtype": "float32"},
        "checkpoint": {"every_minutes": 0},
    }
    recipe["reward"]["gate"] = "off"  # type: ignore[index]
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    return file


@pytest.fixture(scope="module", params=TUNED)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("chain")
    made = Pipeline.from_recipe(recipe_in(folder, TUNED[request.param]), run_dir=folder / "run")
    made.run()
    return made


def opened(run: Pipeline, stage: str, role: str) -> tuple[Any, Any]:
    run.loaded.clear()
    run.loaded.load(stage, role, run.run_dir / stage)
    return run.loaded.base(), run.loaded.renderer()


@pytest.mark.parametrize(("stage", "number"), [("sft", 2), ("reward", 2), ("ppo", 3)])
def test_a_killed_stage_ends_in_the_same_bytes(
    whole: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, number: int
) -> None:
    before = {name: str(whole.run_dir / name) for name in STAGES[: STAGES.index(stage)]}

    def go() -> None:
        file = whole.recipe.base_dir / "recipe.yaml"
        Pipeline.from_recipe(file, run_dir=tmp_path / "run", inputs=before).run(only=[stage])

    real, seen = Checkpoints.safe_point, []

    def safe_point(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        seen.append(args[0])
        if len(seen) == number:
            self.wait()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "safe_point", safe_point)
        with pytest.raises(Killed):
            go()
    go()
    mine = {k: v for k, v in results(whole.run_dir).items() if k.startswith(f"{stage}/")}
    assert mine and results(tmp_path / "run") == mine


@pytest.mark.parametrize("stage", ["sft", "ppo"])
@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_an_export_gives_the_run_s_greedy_responses(
    whole: Pipeline, tmp_path: Path, stage: str, merge: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = export_stage(whole.run_dir, stage, tmp_path / "out", merge=merge)
    role = {"sft": "sft", "ppo": "policy"}[stage]
    base, renderer = opened(whole, stage, role)
    query = renderer.prompt_ids([Message(role="user", content="w1 w2")])
    with base.role(role) as view, torch.no_grad():
        params = SamplingParams(max_new_tokens=10, stop_ids=renderer.stop_ids)
        (expected,) = CachedEngine()(view, [query], params=params, noise=None).ids
        ids = torch.tensor([[*query, *expected]])
        ours = view.logits(view.hidden(ids, torch.ones_like(ids)))
    assert len(set(expected)) > 1
    opener: Any = AutoModelForCausalLM if merge else AutoPeftModelForCausalLM
    lm = opener.from_pretrained(str(folder)).eval()
    made = lm.generate(input_ids=torch.tensor([query]), max_new_tokens=10, do_sample=False)
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
