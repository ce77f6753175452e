"""An encoder as the reward model's base: states and scores of plain Transformers, and a run that is paid by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from data.common.errors import UserError
from data.records import Message
from models.backbone.encoders import names_encoder
from models.backbone.logprobs import make_rows
from models.roles.shared_base import SharedBase
from pipelines.export.stage import export_stage
from pipelines.run.pipeline import Pipeline
from pipelines.run.score import exported_reward, load_scorer
from reward.shared_prompt import can_share
from stages.training.ranking_trainer import RewardModule
from tests.conftest import ADAPTER, make_base, randomise, tiny_lm, word_tokenizer
from tests.support.encoders import ENCODERS, save_encoder

QUERIES = [[1, 5, 6], [1, 5, 6], [1, 7]]
RESPONSES = [[8, 9, 10, 2], [11, 2], [12, 13, 14, 15, 16, 2]]
ASKED = [[Message(role="user", content="w1 w2")]] * 3
ANSWERS = ["w5 " * 5, "w6 w7", "w8 " * 9]


@pytest.mark.parametrize("family", ENCODERS)
def test_scores_are_those_of_the_encoder_alone(family: str, tmp_path: Path) -> None:
    """Padded rows through the role against one row at a time through plain Transformers and PEFT."""
    save_encoder(tmp_path / "encoder", family)
    base = SharedBase.load(tmp_path / "encoder", device="cpu", dtype="float32")
    base.add_role("reward", ADAPTER, head=True)
    randomise(base, "reward", 1)
    with torch.no_grad():
        head: Any = base.heads["reward"]
        weight = head.weight.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    rows = make_rows(QUERIES, RESPONSES, 0, torch.device("cpu"))
    plain = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    with base.role("base") as view, torch.no_grad():
        states = view.hidden(rows.ids, rows.mask)
        for i, (query, response) in enumerate(zip(QUERIES, RESPONSES, strict=True)):
            ids = [*query, *response]
            alone = plain(input_ids=torch.tensor([ids])).last_hidden_state[0]
            assert_close(states[i, : len(ids)], alone, atol=1e-5, rtol=1e-4)
    with base.role("reward") as view:
        weight.requires_grad_()
        assert not can_share(view.lm)
        module = RewardModule(view, "last")
        found = module(rows.ids, rows.mask, rows.query_lengths, rows.response_lengths, torch.tensor([2, 1]))
        whole = [torch.tensor([[*query, *response]]) for query, response in zip(QUERIES, RESPONSES, strict=True)]
        alone = torch.stack([view.hidden(ids, torch.ones_like(ids))[0, -1] for ids in whole]).detach()
        (gradient,) = torch.autograd.grad(found.sum(), [weight])
    assert_close(found.detach(), alone @ weight.detach() + head.bias.detach(), atol=1e-4, rtol=1e-4)
    assert_close(gradient, alone.sum(0), atol=1e-4, rtol=1e-4)
    assert found.std() > 1e-3


def test_a_word_behind_changes_what_stands_before_it(tmp_path: Path) -> None:
    """Which no causal base does."""
    save_encoder(tmp_path)
    base = SharedBase.load(tmp_path, device="cpu", dtype="float32")
    ids = torch.tensor([[1, 5, 6, 2], [1, 5, 7, 2]])
    for one, same in ((base, False), (make_base(), True)):
        with one.role("base") as view, torch.no_grad():
            first, second = view.hidden(ids, torch.ones_like(ids))[:, 1]
        assert bool((first - second).abs().max() < 1e-6) == same


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Responses with the word w5 are better, whatever their length."""
    tiny_lm(initializer_range=0.1).save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    ranked = [
        {
            "prompt": f"w{n % 9} w{n // 9 + 6}",
            "responses": [f"w5 w{n % 7 + 6} w5", f"w{n % 6 + 6} w5 w7", f"w{n % 5 + 7} w6 w8"][: 2 + n % 2],
        }
        for n in range(120)
    ]
    (folder / "r.jsonl").write_text("\n".join(map(json.dumps, ranked)) + "\n")
    prompts = [{"prompt": f"w{n % 9} w{n // 9 + 10}"} for n in range(40)]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, prompts)) + "\n")
    settings: dict[str, Any] = {
        "base": str(folder / "base"),
        "stages": ["reward"],
        "data": {"rankings": str(folder / "r.jsonl"), "prompts": str(folder / "p.jsonl"), "held_out": 0.3},
        "adapter": {"rank": 4, "alpha": 8},
        "reward": {
            "base": str(folder / "encoder"),
            **{"learning_rate": 1e-2, "batch": 8, "epochs": 3, "max_tokens": 24, "calibration_samples": 8},
        },
        "runtime": {"device": "cpu", "threads": 1},
    }
    return settings | changes


def test_it_learns_rankings_is_examined_exported_and_scores_the_same(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    before = (tmp_path / "encoder/model.safetensors").read_bytes()
    Pipeline.from_recipe(recipe(tmp_path), run_dir=tmp_path / "run").run()
    metrics = json.loads((tmp_path / "run/reward/manifest.json").read_text())["metrics"]
    assert metrics["pair_accuracy"] > 0.9
    assert (tmp_path / "run/reward/report_card.json").is_file()
    assert (tmp_path / "encoder/model.safetensors").read_bytes() == before
    scores = torch.tensor(load_scorer(tmp_path / "run")(ASKED, ANSWERS, [True] * 3))
    folder = export_stage(tmp_path / "run", "reward", tmp_path / "out")
    assert_close(torch.tensor(load_scorer(folder)(ASKED, ANSWERS, [True] * 3)), scores, atol=1e-6, rtol=0)
    assert "add_to_classifier" not in json.loads((folder / "scoring.json").read_text())
    lm: Any = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(tmp_path / "encoder"), str(folder)).eval()
    tokenizer, head = AutoTokenizer.from_pretrained(folder), load_file(folder / "head.safetensors")
    mean = metrics["score_mean"]
    renderer = exported_reward(folder).renderer
    for asked, answer, score in zip(ASKED, ANSWERS, scores.tolist(), strict=True):
        query, response = renderer.prompt_and_answer(asked, answer, True, max_tokens=24)
        ids = [*query, *response]
        assert ids == tokenizer(tokenizer.decode(ids[1:-1]))["input_ids"]  # [CLS] ... [SEP], once each
        with torch.no_grad():
            state = lm.base_model.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        assert state @ head["weight"] + head["bias"] - mean == pytest.approx(score, abs=1e-4)
    with pytest.raises(UserError, match="has no classifier with one linear score at the last token"):
        export_stage(tmp_path / "run", "reward", tmp_path / "merged", merge=True)


def test_a_full_copy_of_an_encoder_is_trained_alone(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    settings = recipe(tmp_path, adapter={"method": "full"})
    settings["reward"] |= {"epochs": 1, "learning_rate": 1e-3}
    Pipeline.from_recipe(settings, run_dir=tmp_path / "run").run()
    metrics = json.loads((tmp_path / "run/reward/manifest.json").read_text())["metrics"]
    assert metrics["pair_accuracy"] > 0.8


@pytest.mark.slow
def test_it_scores_for_ppo(tmp_path: Path) -> None:
    """The stage compares the loaded model with the score that the reward stage wrote down before its first update."""
    save_encoder(tmp_path / "encoder")
    settings = recipe(tmp_path, stages=["sft", "reward", "ppo"])
    demonstrations = [{"prompt": f"w{n % 9}", "completion": f"w{n % 7 + 5} w{n % 5 + 6}"} for n in range(60)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, demonstrations)) + "\n")
    settings["data"]["demonstrations"] = str(tmp_path / "d.jsonl")
    settings |= {"sft": {"epochs": 3, "learning_rate": 1e-2, "batch": 8}}
    settings |= {"ppo": {"updates": 3, "rollouts": 16, "learning_rate": 1e-2, "max_new_tokens": 4, "kl_coef": 0.01}}
    Pipeline.from_recipe(settings, run_dir=tmp_path / "run").run()
    rows = [json.loads(line) for line in (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()]
    scores = torch.tensor([row["objective/scores"] for row in rows])
    assert len(scores) == 3 and bool(scores.isfinite().all()) and scores.std() > 1e-3


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_an_encoder_writes_nothing_and_is_refused_before_anything_is_run(family: str, tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder", family)
    settings = recipe(tmp_path, base=str(tmp_path / "encoder"), stages=["reward"])
    settings["reward"].pop("base")
    pipeline = Pipeline.from_recipe(settings, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"is an encoder, which .* writes no text: .* \(reward\.base\)"):
        pipeline.loaded.base()
    with pytest.raises(UserError, match="is an encoder"):
        pipeline.run()
    with pytest.raises(UserError, match="is an encoder"):
        pipeline.loaded.open_model(str(tmp_path / "encoder"))


def test_virtual_tokens_are_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    settings = recipe(tmp_path, adapter={"method": "prompt_tuning"})
    pipeline = Pipeline.from_recipe(settings, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"reward\.base: .* is an encoder, whose rows take no virtual tokens here"):
        pipeline.run()
    assert not (tmp_path / "run/reward").exists()
    with pytest.raises(UserError, match="take no virtual tokens here"):
        pipeline.loaded.reward_base()


def test_an_encoder_whose_states_hang_on_padding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_encoder(tmp_path, "bert")
    real = model.bert.forward
    monkeypatch.setattr(model.bert, "forward", lambda input_ids, attention_mask: real(input_ids=input_ids))
    with pytest.raises(UserError, match="BertForMaskedLM gives a row other states where padding follows it"):
        SharedBase(model, word_tokenizer(), name="odd")


def test_which_configs_are_encoders() -> None:
    def of(family: str, **changes: Any) -> bool:
        return names_encoder(AutoConfig.for_model(family, **changes).to_dict())

    assert all(of(family) for family in ENCODERS)
    assert not any(of(family) for family in ("llama", "gpt2", "bart", "t5", "opt"))
    assert not of("bert", is_decoder=True) and not of("bert", architectures=["BertLMHeadModel"])
    assert of("bert", architectures=["BertForSequenceClassification"]) and not names_encoder({})


def test_an_encoder_without_its_head_gets_one_of_zeros(tmp_path: Path) -> None:
    """Folders of AutoModel have the body alone: the same base each time; one that lacks some of it is refused."""
    model = save_encoder(tmp_path / "a", "bert")
    model.bert.save_pretrained(tmp_path / "a")
    bases = [SharedBase.load(tmp_path / "a", device="cpu", dtype="float32") for _ in range(2)]
    assert bases[0].fingerprint == bases[1].fingerprint
    state = {n: p for n, p in model.bert.state_dict().items() if "layer.1.output.dense.weight" not in n}
    model.bert.save_pretrained(tmp_path / "a", state_dict=state)
    with pytest.raises(UserError, match="its weights lack 1 tensors that the model needs"):
        SharedBase.load(tmp_path / "a", device="cpu", dtype="float32")
