"""SFT and the reward stage on a tiny real model: what is supervised, what is left behind, what is learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from data.common.errors import UserError
from data.records import Demonstration, RankedAnswers
from reward.model import RewardModel, Samples, pooling_of, score_rows
from stages import reward_model, sft
from stages.settings import RewardConfig, SFTConfig
from stages.training import ranking_trainer
from tests.conftest import make_base, randomise
from tests.support.ppo import make_context, make_prompt
from tests.support.training import DEMONSTRATIONS, reward_context, sft_context


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_the_trainers_own_first_batch_supervises_answers_and_one_stop_token(tmp_path, pad_is_eos):
    """F1, F2, F8, R13: prompts -100, exactly one supervised stop token on a finished answer, none on a cut one."""
    context = sft_context(tmp_path, pad_is_eos=pad_is_eos)
    base, config = context.base, SFTConfig(batch=12, micro_batch=12, max_tokens=8)
    long = Demonstration(prompt=make_prompt("w1"), answer=" ".join(["w5"] * 30))
    rows, dropped = sft.encode(context, [*DEMONSTRATIONS[:11], long], config)
    assert dropped == 0
    base.add_role("sft", context.adapter)
    trainer = sft.make_trainer(context, rows, config)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 12
    stop, seen = context.renderer.stop_ids[0], 0
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        supervised = labels >= 0
        assert torch.equal(labels[supervised], ids[supervised]) and not supervised[length:].any()
        row = next(r for r in rows if r.ids == ids[:length].tolist())
        prompt = next(i for i, label in enumerate(row.labels) if label >= 0)
        assert not supervised[:prompt].any() and supervised[prompt:length].all()
        finished = int((labels == stop).sum())
        assert finished == (0 if row.cut or ids[length - 1] != stop else 1)
        seen += finished
    assert seen == 10  # one demonstration is unfinished, one does not fit and is cut


def test_sft_at_rate_0_leaves_every_logit_and_every_setting_as_it_was(tmp_path):
    """A clean base between stages: configs, forward, cache flag, tokenizer and generators too."""
    base = make_base()
    ids = torch.arange(3, 12)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)

    def logits(role):
        with base.role(role) as view, torch.no_grad():
            return view.logits(view.hidden(ids, mask))

    before = logits("base")
    config, generation = base.lm.config.to_dict(), base.lm.generation_config.to_dict()
    pad, rng = base.tokenizer.pad_token, torch.get_rng_state()
    sft.run(sft_context(tmp_path, base), SFTConfig(learning_rate=0.0, batch=4, micro_batch=4))
    assert torch.equal(logits("base"), before) and torch.equal(logits("sft"), before)
    assert base.lm.config.to_dict() == config and base.lm.generation_config.to_dict() == generation
    assert "forward" not in vars(base.lm) and base.tokenizer.pad_token == pad
    assert torch.equal(torch.get_rng_state(), rng) and base.base_fingerprint() == base.fingerprint
    assert not any(m.training for m in base.lm.modules())


def test_sft_learns_and_saves_its_adapter_alone(tmp_path):
    context = sft_context(tmp_path)
    base = context.base
    untrained = sft.encode(context, DEMONSTRATIONS, SFTConfig())[0]
    start = sft.labelled_nll(base, "base", untrained, 0)
    result = sft.run(context, SFTConfig(epochs=15, learning_rate=1e-2, batch=6, micro_batch=3))
    assert sft.labelled_nll(base, "sft", untrained, 0) < 0.5 * start
    assert result.metrics["steps"] == 30 and base.base_fingerprint() == base.fingerprint
    files = sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file())
    assert files == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "metrics.jsonl"]


def test_sft_gradient_does_not_depend_on_micro_batches(tmp_path):
    """F7, C1: one optimizer step of plain size, cut into 6, 3, 2 and 1 rows, or by a budget of padded tokens."""
    found = []
    for i, cut in enumerate(
        [{"micro_batch": 6}, {"micro_batch": 3}, {"micro_batch": 2}, {"micro_batch": 1}, {"batch_tokens": 30}]
    ):
        context = sft_context(tmp_path / str(i))
        (tmp_path / str(i)).mkdir(exist_ok=True)
        sft.run(context, SFTConfig(epochs=0.5, learning_rate=1e-3, batch=6, max_grad_norm=1e9, **cut))
        found.append(torch.cat([p.flatten() for p in context.base.parameters_of("sft").values()]))
    for other in found[1:]:
        assert_close(other, found[0], atol=2e-5, rtol=1e-3)


# -- reward model ------------------------------------------------------------------------------------------------


def test_margins_need_scores_and_belong_to_pairs(tmp_path):
    with pytest.raises(UserError, match=r"reward\.margin: needs rankings with scores"):
        reward_model.run(reward_context(tmp_path), RewardConfig(margin=0.5))
    for key in ("margin", "label_smoothing"):
        with pytest.raises(ValueError, match=f"{key} belongs to loss 'pairs'"):
            RewardConfig(loss="plackett_luce", **{key: 0.1})


@pytest.mark.parametrize("loss", ["pairs", "plackett_luce"])
def test_a_separable_toy_is_learnt_and_swapped_labels_are_learnt_the_other_way(tmp_path, loss):
    """M3."""
    config = RewardConfig(loss=loss, epochs=25, learning_rate=1e-2, batch=6, micro_batch=3, calibration_samples=16)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    good = reward_model.run(reward_context(tmp_path / "a"), config).metrics
    assert good["pair_accuracy"] == 1.0 and good["pairs"] == 21
    assert reward_model.run(reward_context(tmp_path / "b", flip=True), config).metrics["pair_accuracy"] == 0.0


def test_the_reward_is_centred_on_sft_samples_and_survives_the_hand_over(tmp_path):
    """M7, P7, P8, W8: mean 0 on the calibration answers, the same scores after loading, all paths agree."""
    context = reward_context(tmp_path)
    result = reward_model.run(
        context, RewardConfig(epochs=2, learning_rate=1e-2, batch=6, micro_batch=6, calibration_samples=16)
    )
    assert result.metrics["centred_on"] == "sft samples"
    fresh = make_base()
    numbers = fresh.load_role("reward", tmp_path, head=True)
    assert numbers.pop("mean_pooling") == 0.0
    assert numbers["score_mean"] == result.metrics["score_mean"]
    assert torch.equal(fresh.heads["reward"].weight, context.base.heads["reward"].weight)
    model = RewardModel(base=fresh, role="reward", renderer=context.renderer, **numbers)
    prompts = [make_prompt("w1"), make_prompt("w2 w3"), make_prompt("w4")]
    texts, finished = ["w5 w20", "w6 w20 w20 w9", "w7"], [True, True, False]
    pairs = [
        context.renderer.prompt_and_answer(p.messages, t, f) for p, t, f in zip(prompts, texts, finished, strict=True)
    ]
    by_text = model.score_texts([p.messages for p in prompts], texts, finished)
    by_ids = model.score(
        Samples(
            prompts=prompts,
            queries=[q for q, _ in pairs],
            responses=[r for _, r in pairs],
            texts=texts,
            finished=finished,
        )
    )
    alone = torch.cat([model.score_ids([q], [r]) for q, r in pairs])
    assert_close(by_ids, by_text)
    assert_close(by_ids, alone, atol=1e-5, rtol=1e-5)
    assert by_ids.dtype == torch.float32 and not by_ids.requires_grad


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_the_score_is_read_at_the_last_real_token(tmp_path, pad_is_eos):
    """M1, M2, W8: per-token head output at index length - 1; the stop token changes the score."""
    base = make_base(pad_is_eos=pad_is_eos)
    base.add_role("reward", make_context(base, tmp_path).adapter, head=True)
    randomise(base, "reward", 0)
    pad = base.tokenizer.pad_token_id
    queries, responses = [[5, 2, 9], [7]], [[20, 21, 2], [22, 23, 24, 25, 26]]
    found = score_rows(base, "reward", queries, responses, pad, 8)
    for i, (q, r) in enumerate(zip(queries, responses, strict=True)):
        ids = torch.tensor([q + r])
        with base.role("reward") as view, torch.no_grad():
            per_token = view.head(view.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))[0]
        assert_close(found[i], per_token[-1], atol=1e-5, rtol=1e-5)
    cut = score_rows(base, "reward", [queries[0]], [responses[0][:-1]], pad, 8)
    assert abs(cut[0] - found[0]) > 1e-3


def test_mean_pooling_averages_the_head_over_the_answers_tokens(tmp_path):
    """By hand on one row; padding, query and neighbours change nothing."""
    base = make_base()
    base.add_role("reward", make_context(base, tmp_path).adapter, head=True)
    queries, responses = [[5, 6, 9], [7]], [[20, 2], [22, 23, 24, 25, 26]]
    found = score_rows(base, "reward", queries, responses, 0, 8, "mean")
    ids = torch.tensor([queries[0] + responses[0]])
    with base.role("reward") as view, torch.no_grad():
        per_token = view.head(view.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))[0]
    assert_close(found[0], per_token[3:].mean(), atol=1e-5, rtol=1e-5)


def test_learned_pooling_weighs_the_answers_tokens_by_a_softmax_of_its_own(tmp_path):
    """By hand on one row; at first the plain mean; an empty answer scores 0 and not NaN."""
    base = make_base()
    base.add_role("reward", make_context(base, tmp_path).adapter, head=True)
    head = base.heads["reward"].add_attention()
    queries, responses = [[5, 6, 9], [7], [8]], [[20, 2], [22, 23, 24, 25, 26], []]
    mean, learned = (score_rows(base, "reward", queries, responses, 0, 8, p) for p in ("mean", "learned"))
    assert_close(learned, mean)
    assert learned[2] == 0.0
    head.attention.data.normal_(generator=torch.Generator().manual_seed(0))
    found = score_rows(base, "reward", queries, responses, 0, 8, "learned")
    ids = torch.tensor([queries[1] + responses[1]])
    with base.role("reward") as view, torch.no_grad():
        hidden = view.hidden(ids, torch.ones_like(ids, dtype=torch.bool))[0, 1:]
    weights = [float(torch.dot(h, head.attention).exp()) for h in hidden]
    by_hand = sum(w * float(head(h)) for w, h in zip(weights, hidden, strict=True)) / sum(weights)
    assert found[1].item() == pytest.approx(by_hand, abs=1e-4) and abs(found[1] - mean[1]) > 1e-3


def test_learned_pooling_is_trained_and_comes_back_with_its_head(tmp_path):
    context = reward_context(tmp_path)
    config = RewardConfig(
        pooling="learned", epochs=2, learning_rate=1e-2, batch=6, micro_batch=6, calibration_samples=16
    )
    reward_model.run(context, config)
    trained = context.base.heads["reward"]
    assert trained.attention.abs().max() > 1e-3
    fresh = make_base()
    numbers = fresh.load_role("reward", tmp_path, head=True)
    assert set(numbers) == {"score_mean", "score_std", "mean_pooling"}
    assert torch.equal(fresh.heads["reward"].attention, trained.attention)
    assert pooling_of(numbers, fresh.heads["reward"]) == "learned"


def test_answers_that_are_the_same_are_compared_once_and_rankings_without_a_pair_are_dropped(tmp_path):
    """M5, and every answer is encoded once however many pairs it is in."""
    context = reward_context(tmp_path)
    rows = [
        RankedAnswers(prompt=make_prompt("w1"), answers=("w2", "w2", "w3"), ranks=(0, 2, 1)),
        RankedAnswers(prompt=make_prompt("w1"), answers=("w2", "w2"), ranks=(0, 1)),
        RankedAnswers(prompt=make_prompt("w1"), answers=("w2", "w3"), ranks=(1, 1)),
        RankedAnswers(prompt=make_prompt("w1"), answers=tuple(f"w{i}" for i in range(9)), ranks=tuple(range(9))),
    ]
    kept, dropped = reward_model.encode(context, rows, RewardConfig())
    assert dropped == 2 and [len(r.responses) for r in kept] == [2, 9]
    batch = ranking_trainer.collate(kept, 0, False)
    assert batch["ids"].shape[0] == 11 and batch["present"].sum() == 11


def test_reward_training_touches_neither_sft_nor_base(tmp_path):
    context = reward_context(tmp_path)
    before = {n: p.clone() for n, p in context.base.parameters_of("sft").items()}
    reward_model.run(
        context, RewardConfig(learning_rate=1e-2, weight_decay=0.1, batch=6, micro_batch=6, calibration_samples=4)
    )
    assert all(torch.equal(p, before[n]) for n, p in context.base.parameters_of("sft").items())
    assert context.base.base_fingerprint() == context.base.fingerprint


def test_head_is_initialised_to_unit_scores():
    """M6: N(0, 1/sqrt(d+1)), bias 0; zero on demand (P9)."""
    from models.backbone.scalar_head import ScalarHead

    head = ScalarHead(4095, torch.Generator().manual_seed(0))
    assert head.weight.std().item() == pytest.approx(4096**-0.5, rel=0.1) and head.bias.item() == 0
    assert (head.zero_()(torch.randn(3, 4095, dtype=torch.bfloat16)) == 0).all()
    assert head(torch.randn(2, 4095, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_given_adapter_keeps_its_settings_and_the_user_is_told(tmp_path):
    """The recipe asks for another rank than the SFT adapter has that the run was given."""
    context, said = reward_context(tmp_path), list[str]()
    has = context.adapter.rank
    asked = context.adapter.model_copy(update={"rank": 2 * has})
    context = replace(context, adapter=asked, warn=said.append)
    reward_model.run(context, RewardConfig(batch=6, micro_batch=6, calibration_samples=4))
    told = "adapter: reward starts as a copy of 'sft' and keeps its settings, not the recipe's"
    assert f"{told} (rank: {2 * has} is asked for, 'sft' has {has})" in said
    assert context.base.adapters["reward"].r == has


def test_trained_tensors_that_nothing_depends_on_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second layer's feed-forward gives zeros, whatever its adapters say: they stay as they were."""
    said: list[str] = []
    base = make_base()
    base.fast = False
    monkeypatch.setattr(base.lm.model.layers[1].mlp, "forward", torch.zeros_like)
    context = replace(sft_context(tmp_path, base), warn=said.append)
    sft.run(context, SFTConfig(epochs=1, batch=4, micro_batch=4))
    assert [text for text in said if "6 of 28 trained tensors had no gradient in 3 steps" in text], said
    assert "layers.1.mlp." in said[-1]
