"""Steps that cannot be taken: gradients that are really infinite, batches for which memory is too small."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch.testing import assert_close

from data.common.errors import NonFiniteError, StageError
from models.backbone.oom_retry import OOMRetry
from stages import pretrain, reward_model, sft
from stages.settings import PretrainConfig, RewardConfig, SFTConfig
from stages.training import ranking_trainer
from tests.support.faults import Ppo, slowly, small_memory
from tests.support.ppo import make_ppo
from tests.support.training import context_for, pretrain_context, sft_context

# -- numbers that are not finite ---------------------------------------------------------------------------------


def broken_gradients(parameter: torch.Tensor, steps: set[int], seen: list[int]) -> None:
    """The gradient of one parameter becomes infinite in some of its backward passes."""

    def hook(grad):
        seen.append(len(seen) + 1)
        return grad * math.inf if len(seen) in steps else grad

    parameter.register_hook(hook)


def test_ppo_stops_at_the_bound_and_only_skips_in_a_row_count(tmp_path, monkeypatch):
    """O8: a reward that is infinite in the first, third and fourth update; two minibatches each."""
    monkeypatch.setattr("reward.terms.composition.LARGEST", math.inf)  # or such a reward would be refused by name
    scores = iter([math.inf, 1.0, math.inf, math.inf])
    ppo = make_ppo(
        tmp_path, reward=lambda s: torch.full((len(s.texts),), next(scores)), whiten_advantages=False,
        updates=4, epochs=2, minibatches=1, max_skipped_steps=3,
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"update 4: 3 optimizer steps in a row.*policy.*ppo\.max_skipped_steps"):
        list(ppo.train())
    assert (ppo.update_index, ppo.nonfinite.total, len(ppo.records)) == (3, 5, 1)


def test_skipped_steps_push_no_good_checkpoint_out(whole_ppo, tmp_path, monkeypatch):
    """Two good steps, then none: what was saved before stays, and the same command goes on to the same bytes."""
    from types import SimpleNamespace

    from stages.ppo import update as module

    seen = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(module, "math", SimpleNamespace(isfinite=lambda norm: next(seen) < 8))  # four numbers a step
        stage = Ppo(tmp_path / "run", max_skipped_steps=3)
        with pytest.raises(NonFiniteError, match="3 optimizer steps in a row"):
            stage.run()
    assert stage.points.steps() == [4, 3]  # the latter after two minibatches, the former after the next rollout
    assert json.loads((tmp_path / "run/checkpoints/step_4/state.json").read_text())["state"]["skips"]["total"] == 0
    assert stage.run() == whole_ppo


def test_a_ppo_whose_every_step_was_skipped_is_not_done(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from stages.ppo import update as module

    monkeypatch.setattr(module, "math", SimpleNamespace(isfinite=lambda norm: False))
    stage = Ppo(tmp_path / "run", max_skipped_steps=None)
    with pytest.raises(NonFiniteError, match=r"PPO: all \d+ optimizer steps were skipped.*nothing was trained"):
        stage.run()


@pytest.mark.parametrize(("steps", "skipped", "raises"), [(3, 3, True), (3, 2, False), (1, 1, True), (0, 0, False)])
def test_a_training_needs_one_step_that_was_taken(steps, skipped, raises):
    from contextlib import nullcontext

    from stages.training.nonfinite import NonFiniteSteps

    counted = NonFiniteSteps("sft.max_skipped_steps", None)
    for step in range(steps):
        counted.record(step >= skipped, "SFT", "loss nan")
    with pytest.raises(NonFiniteError, match="SFT: all") if raises else nullcontext():
        counted.require_a_step(steps, "SFT")


@pytest.mark.parametrize(("rows", "warmup", "expected"), [(4, 0.9, 0), (8, 0.9, 1), (40, 0.03, 0), (400, 0.1, 10)])
def test_a_warm_up_leaves_a_step_above_rate_0(tmp_path, rows, warmup, expected):
    """One step under warmup 0.9 would train at rate 0, which is no training."""
    from stages.training.hf_trainer import trainer_settings
    from tests.support.training import sft_context

    config = SFTConfig(batch=4, micro_batch=4, warmup=warmup)
    assert trainer_settings(sft_context(tmp_path), config, rows, "sft")["warmup_steps"] == expected


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("sft", {2}), ("reward", {2, 3}), ("pretrain", {2}), ("pretrain", {2, 3}),
        slowly(("sft", {2, 3})), slowly(("reward", {2})),
    ],
)  # fmt: skip
def test_a_step_that_is_not_finite_is_skipped_counted_and_bounded(tmp_path, monkeypatch, kind, steps):
    run = {"sft": _sft, "reward": _reward, "pretrain": _pretrain}[kind]
    result, log, weights = run(tmp_path, steps, monkeypatch)
    assert all(torch.isfinite(w).all() for w in weights)
    if len(steps) == 1:
        assert result.metrics["skipped_steps"] == 1
        assert [row["skipped_steps"] for row in log.rows()] == [0, 1, 1, 1]
    else:
        assert isinstance(result, NonFiniteError) and "step 3: 2 optimizer steps in a row" in str(result)
        assert f"{'base.' * (kind == 'pretrain')}{kind}.max_skipped_steps" in str(result)


def _outcome(work):
    try:
        return work()
    except NonFiniteError as error:
        return error


def _sft(tmp_path, steps, monkeypatch):
    context, seen = sft_context(tmp_path), []
    real = sft.make_trainer

    def make(*args):
        trainer = real(*args)
        broken_gradients(next(iter(context.base.parameters_of("sft").values())), steps, seen)
        return trainer

    monkeypatch.setattr(sft, "make_trainer", make)
    config = SFTConfig(batch=6, micro_batch=6, epochs=2, learning_rate=1e-2, max_skipped_steps=2)
    return _outcome(lambda: sft.run(context, config)), context.log, context.base.parameters_of("sft").values()


def _reward(tmp_path, steps, monkeypatch):
    context, seen = context_for(tmp_path), []
    real = ranking_trainer.RankingTrainer.train

    def train(self, *args, **kwargs):
        broken_gradients(self.training_run.parameters["reward.head.weight"], steps, seen)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ranking_trainer.RankingTrainer, "train", train)
    config = RewardConfig(
        batch=3, micro_batch=3, epochs=2, learning_rate=1e-2, calibration_samples=4, max_skipped_steps=2
    )
    result = _outcome(lambda: reward_model.run(context, config))
    return result, context.log, context.base.parameters_of("reward").values()


def _pretrain(tmp_path, steps, monkeypatch):
    real, models, seen = pretrain.new_model, [], []

    def new_model(*args):
        models.append(real(*args))
        broken_gradients(models[0].model.norm.weight, steps, seen)
        return models[0]

    monkeypatch.setattr(pretrain, "new_model", new_model)
    context = pretrain_context(tmp_path, [f"w{i} w{i + 1} w{i + 2}" for i in range(8)], [])
    shape = {"layers": 1, "width": 16, "feed_forward": 16, "heads": 2, "context": 16}
    config = PretrainConfig(tokenizer="words", vocabulary=20, steps=4, batch=4, model=shape, max_skipped_steps=2)
    return _outcome(lambda: pretrain.run(context, config)), context.log, list(models[0].parameters())


# -- memory ------------------------------------------------------------------------------------------------------


def test_the_allocators_own_error_halves_until_it_fits_and_other_errors_pass():
    told: list[str] = []
    halving = OOMRetry("ppo.micro_batch", told.append)

    def work(size: int) -> int:
        return torch.empty(size * 2**44 if size > 2 else size, dtype=torch.uint8).numel()  # 16 TiB a row

    assert halving.run(work, 9) == 2 and halving.limit == 2
    assert [t.split(":")[0] for t in told] == [f"out of memory with ppo.micro_batch={n}" for n in (9, 4)]
    assert halving.run(lambda size: size, 16) == 2 and halving.run(lambda size: size, 1) == 1
    with pytest.raises(RuntimeError, match="another"):
        halving.run(lambda size: (_ for _ in ()).throw(RuntimeError("another")), 4)
    with pytest.raises(StageError, match=r"even with ppo\.micro_batch=1"):
        halving.run(lambda size: torch.empty(2**44, dtype=torch.uint8), 4)


@pytest.mark.parametrize(
    ("kind", "in_backward"),
    [("ppo", True), ("sft", False), ("reward", True), *map(slowly, [("ppo", False), ("sft", True), ("reward", False)])],
)
def test_out_of_memory_halves_the_micro_batch_and_changes_no_gradient(tmp_path, kind, in_backward):
    """With room for three rows, six become three: the very weights of a recipe that says three."""
    found, told = {}, []
    for name, micro in (("small memory", 6), ("three", 3), ("six", 6)):
        folder = tmp_path / name
        folder.mkdir()
        limited = name == "small memory"
        if kind == "ppo":
            ppo = make_ppo(folder, rollouts=6, micro_batch=micro, epochs=1, updates=1, learning_rate=1e-2)
            ppo.micro.retry.warn = told.append
            ppo.base.fast = False  # the fast path has no modules that a hook could be put on
            if limited:
                ppo.sampling_retry.limit = 3
                small_memory(ppo.base, 3, in_backward)
            row = list(ppo.train())[-1]
            assert row["memory/micro_batch"] == (3 if name != "six" else 6)
            found[name] = [*ppo.policy_parameters.values(), *ppo.value_parameters.values()]
            continue
        context = sft_context(folder) if kind == "sft" else context_for(folder)
        object.__setattr__(context, "warn", told.append)
        context.base.fast = False
        if limited:
            small_memory(context.base, 3, in_backward)  # rankings are rows as well: their answers share the prompt
        if kind == "sft":
            rows = sft.encode(context, context.corpus.demonstrations.train[:6], SFTConfig())[0]
            config = SFTConfig(batch=6, micro_batch=micro, learning_rate=1e-2, warmup=0.0)
            context.base.add_role("sft", context.adapter)
            with (
                context.base.training("sft"),
                context.base.role("sft"),
                sft.training_session(context, context.base, "sft", "sft"),
            ):
                sft.fit(sft.make_trainer(context, rows, config))
        else:
            rows = reward_model.encode(context, context.corpus.rankings.train, RewardConfig())[0]
            context.base.add_role("reward", context.adapter, copy_of="sft", head=True)
            config = RewardConfig(batch=6, micro_batch=micro, learning_rate=1e-2, warmup=0.0)
            reward_model.fit(context, rows, config)
        # a ranking's loss does not change where all scores do: the bias has a gradient of rounding alone
        found[name] = [p for n, p in context.base.parameters_of(kind).items() if not n.endswith("head.bias")]
        if name == "three":
            assert next(context.log.rows())["skipped_steps"] == 0
    assert len(told) == 1 and "micro_batch=6: continuing with 3" in told[0]
    if not (kind == "ppo" and in_backward):  # there the rollout's own numbers still come from batches of six
        assert all(torch.equal(a, b) for a, b in zip(found["small memory"], found["three"], strict=True))
    for a, b in zip(found["small memory"], found["six"], strict=True):
        assert_close(a, b, atol=2e-4, rtol=1e-3)
