"""Reward-model and SFT classes that show only in training: normalisation over accumulation, stop tokens, centring."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from models.backbone.seeds import generator
from models.sampling.generate import CachedEngine, SamplingParams, generate, sampling_noise
from reward.model import score_rows
from stages import reward_model, sft
from stages.ppo_math import masked_mean
from stages.settings import RewardConfig, SFTConfig
from stages.training import ranking_trainer
from tests.support.ppo import make_prompt
from tests.support.training import RANKINGS, context_for


def test_reward_gradients_do_not_depend_on_micro_batches(tmp_path):
    """C1, M4: one step over six rankings of two to four answers, cut into 6, 3, 2 and 1."""
    found, norms = [], []
    for micro in (6, 3, 2, 1):
        context = context_for(tmp_path / str(micro))
        rows, _ = reward_model.encode(context, RANKINGS, RewardConfig())
        config = RewardConfig(batch=6, micro_batch=micro, learning_rate=1e-3, max_grad_norm=1e9, warmup=0.0)
        context.base.add_role("reward", context.adapter, copy_of="sft", head=True)
        reward_model.fit(context, rows, config)
        # without the bias: differences of scores do not see it, and Adam makes steps of its rounding noise
        parameters = [p for n, p in context.base.parameters_of("reward").items() if not n.endswith("head.bias")]
        found.append(torch.cat([p.detach().flatten() for p in parameters]))
        norms.append(next(context.log.rows())["grad_norm"])  # Adam's first step does not see the gradient's size
    assert norms[1:] == pytest.approx([norms[0]] * 3, rel=1e-4)
    for other in found[1:]:
        assert_close(other, found[0], atol=2e-5, rtol=1e-3)


def test_each_score_is_compared_under_its_own_ranking(tmp_path):
    """M4, W15: the trainer's loss of a ragged batch is the mean of the losses that the rankings have alone."""
    context = context_for(tmp_path)
    context.base.add_role("reward", context.adapter, copy_of="sft", head=True)
    rows, _ = reward_model.encode(context, RANKINGS, RewardConfig())
    flat = score_rows(
        context.base, "reward", [q for r in rows for q in r.queries], [a for r in rows for a in r.responses], 0, 64
    )
    at, expected = 0, []
    for row in rows:
        scores = flat[at : at + len(row.ranks)].double()
        at += len(row.ranks)
        pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if row.ranks[i] < row.ranks[j]]
        expected.append(sum(torch.log1p(torch.exp(scores[j] - scores[i])) for i, j in pairs) / len(pairs))
    trainer = ranking_trainer.RankingTrainer.__new__(ranking_trainer.RankingTrainer)
    trainer.settings, trainer.tokens = RewardConfig(), 0
    trainer.training_run = SimpleNamespace(counted=1.0, note=lambda numbers: None)
    trainer.accelerator = SimpleNamespace(gather=lambda x: x)
    with context.base.role("reward") as view, torch.no_grad():
        batch = ranking_trainer.collate(rows, 0, False)
        loss = ranking_trainer.RankingTrainer.compute_loss(trainer, reward_model_module(view), batch)
    assert loss.item() == pytest.approx((sum(expected) / len(expected)).item(), rel=1e-4)


def reward_model_module(view):
    """The module that the trainer trains, with default pooling where there is a choice."""
    return ranking_trainer.RewardModule(view, "last")


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_finished_answers_end_in_one_stop_token_and_cut_ones_in_none(tmp_path, pad_is_eos):
    """M2, F8, R13: what the reward model is trained on is what PPO will show it, prompts included."""
    context = context_for(tmp_path, pad_is_eos=pad_is_eos)
    stop = context.renderer.stop_ids[0]
    rows, dropped = reward_model.encode(context, RANKINGS, RewardConfig())
    assert dropped == 0
    for row, ranking in zip(rows, RANKINGS, strict=True):
        for query, response, finished in zip(row.queries, row.responses, ranking.finished, strict=True):
            assert query == context.renderer.prompt_ids(ranking.prompt.messages)
            assert response.count(stop) == int(finished) and (response[-1] == stop) == finished


def test_the_mean_score_of_the_calibration_answers_is_zero(tmp_path):
    """M7: the same samples, drawn again, have mean 0 under the stage's centre."""
    context = context_for(tmp_path)
    rows, _ = reward_model.encode(context, RANKINGS, RewardConfig())
    found = reward_model.run(context, RewardConfig(calibration_samples=12)).metrics
    assert found["centred_on"] == "sft samples"
    queries = [context.renderer.prompt_ids(p.messages) for p in context.corpus.prompts.train]
    longest = max(len(a) for r in rows for a in r.responses)
    with context.base.role("sft") as view:
        made = generate(
            CachedEngine(),
            view,
            queries,
            noise=sampling_noise(12, longest, generator(0, "reward/centre")),
            batch=5,
            params=SamplingParams(
                max_new_tokens=longest, temperature=1.0, stop_ids=context.renderer.stop_ids, pad_id=0
            ),
        )
    scores = score_rows(context.base, "reward", queries, made.ids, 0, 5).double() - found["score_mean"]
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert scores.std().item() == pytest.approx(found["score_std"], rel=1e-4)


def test_rows_of_sft_are_never_packed(tmp_path):
    """F5: no two conversations share a row, so nothing can leak between them; no length limit of TRL's own."""
    from data.records import Demonstration

    context = context_for(tmp_path)
    demonstrations = [Demonstration(prompt=make_prompt("w1"), answer=f"w2 w{i}") for i in range(3)]
    rows, _ = sft.encode(context, demonstrations, SFTConfig())
    trainer = sft.make_trainer(context, rows, SFTConfig(batch=3, micro_batch=3))
    assert trainer.args.packing is False and trainer.args.padding_free is False and trainer.args.max_length is None
    batch = next(iter(trainer.get_train_dataloader()))
    expected = [context.renderer.conversation(d.prompt.messages, d.answer).ids for d in demonstrations]
    assert sorted(batch["input_ids"].tolist()) == sorted(expected)


def test_nothing_real_gives_zero_not_nan():
    """R18: a mean over no token."""
    x = torch.full((2, 3), float("nan"), requires_grad=True)
    value = masked_mean(x, torch.zeros(2, 3, dtype=torch.bool))
    value.backward()
    assert value.item() == 0.0 and (x.grad == 0).all()
