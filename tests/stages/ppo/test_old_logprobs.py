"""Old log-probabilities from the sampler: when they are taken, when not, and that a resumed run decides alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from data.common.errors import UserError
from models.sampling.fast import FastEngine
from stages.ppo import old_logprobs
from stages.ppo import state as ppo_state
from stages.ppo import update as ppo_module
from stages.ppo.rollout import policy_pass
from stages.ppo.update import PPO
from tests.conftest import make_base, randomise
from tests.support import ppo as ppo_world
from tests.support.ppo import RAGGED, Injected, everything, facts


def make_ppo(*args: Any, **settings: Any) -> PPO:
    """One whose policy is no longer the reference, by less than any number here shows."""
    ppo = ppo_world.make_ppo(*args, **settings)
    with torch.no_grad():
        next(iter(ppo.policy_parameters.values())).view(-1)[0] += 1e-6
    return ppo


def counted(monkeypatch) -> list[str]:
    """Roles of the passes that compute log-probabilities in scoring."""
    names: list[str] = []

    def noting(view, *rest, **more):
        if not torch.is_grad_enabled():
            names.append(view.name)
        return policy_pass(view, *rest, **more)

    monkeypatch.setattr(ppo_module, "policy_pass", noting)
    monkeypatch.setattr(old_logprobs, "policy_pass", noting)
    return names


class Off:
    """The sampler, with log-probabilities that are off by ``gap`` from call ``first`` on."""

    def __init__(self, gap: float, first: int = 0) -> None:
        self.gap, self.first, self.calls, self.engine = gap, first, 0, FastEngine(with_logprobs=True)

    def __call__(self, *args: Any, **rest: Any) -> Any:
        made: Any = self.engine(*args, **rest)
        self.calls += 1
        assert made.logprobs is not None
        wrong = made.logprobs - self.gap * (self.calls > self.first) * (made.logprobs != 0)
        return replace(made, logprobs=wrong)


def warned(ppo) -> list[str]:
    told: list[str] = []
    object.__setattr__(ppo.context, "warn", told.append)
    return told


def test_the_samplers_are_taken_and_are_those_of_the_training_forward(tmp_path, monkeypatch):
    names = counted(monkeypatch)
    found = {}
    for how in ("auto", "sampler", "recompute"):
        names.clear()
        ppo = make_ppo(tmp_path, old_logprobs=how, temperature=0.7, rollouts=8, micro_batch=3)
        randomise(ppo.base, "policy", 5)
        with ppo.base.training("policy", "value"):
            found[how] = ppo.rollout()[0]
        # three micro-batches of the reference; four rows of the policy in one pass, none, or three micro-batches
        assert names.count("reference") == 3 and names.count("policy") == {"auto": 1, "sampler": 0, "recompute": 3}[how]
        assert ppo.old.agree is (True if how == "auto" else None)
    for how in ("auto", "sampler"):
        assert found[how].responses == found["recompute"].responses
        for name in ("logprobs", "entropy"):
            a, b = (getattr(found[k], name) for k in (how, "recompute"))
            assert_close(a, b, atol=1e-5, rtol=1e-5)
            assert not a[~found[how].mask].any() and a.any()
    names.clear()
    ppo = make_ppo(tmp_path, updates=3, epochs=1)
    list(ppo.train())
    assert names == ["policy", *["reference"] * 3]  # compared in the first rollout alone


@pytest.mark.parametrize("how", ["auto", "recompute"])
def test_while_the_policy_is_the_reference_one_pass_serves_both(tmp_path, monkeypatch, how):
    names = counted(monkeypatch)
    ppo = ppo_world.make_ppo(tmp_path, old_logprobs=how, updates=2, epochs=1, micro_batch=8, engine=Off(0.01))
    told = warned(ppo)
    with ppo.base.training("policy", "value"):
        first = ppo.rollout()[0]
    assert names == ["reference"] and not told and ppo.old.agree is None
    assert torch.equal(first.logprobs, first.ref_logprobs) and first.entropy[first.mask].min() > 0
    names.clear()
    rows = list(ppo.train())
    assert rows[0]["objective/kl"] == 0 and rows[0]["ppo/policy/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert names.count("policy") == {"auto": 2, "recompute": 1}[how]
    assert names[0] == "reference" and names[-2] == "policy"


def test_other_settings_or_weights_are_another_policy(tmp_path):
    ppo = ppo_world.make_ppo(tmp_path)
    assert old_logprobs.is_reference(ppo.base)
    settings = ppo.base.adapters["policy"]
    settings.lora_alpha *= 2
    assert not old_logprobs.is_reference(ppo.base)
    settings.lora_alpha /= 2
    assert old_logprobs.is_reference(ppo.base) and not old_logprobs.is_reference(make_ppo(tmp_path).base)


@pytest.mark.parametrize("how", ["auto", "sampler"])
def test_at_rate_0_the_ratio_is_1(tmp_path, how):
    """L2, with more than one epoch and minibatch and a temperature."""
    ppo = make_ppo(
        tmp_path, old_logprobs=how, learning_rate=0.0, minibatches=2, micro_batch=3, temperature=0.7, epochs=2
    )
    told = warned(ppo)
    for metrics in ppo.train():
        assert metrics["ppo/policy/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert metrics["ppo/policy/approxkl"] < 1e-9 and metrics["ppo/policy/clipfrac"] == 0.0
        assert abs(metrics["objective/kl"]) < 1e-4
    assert not told


def test_a_sampler_that_is_off_is_not_believed(tmp_path, monkeypatch):
    """In the first rollout, before anything is used; below the tolerance, and when it is asked for by name, it is."""
    names = counted(monkeypatch)
    honest = make_ppo(tmp_path, old_logprobs="recompute", updates=1)
    expected = facts(list(honest.train()))
    ppo = make_ppo(tmp_path, engine=Off(0.01), updates=1, micro_batch=16)
    told = warned(ppo)
    assert facts(list(ppo.train())) == expected
    assert ppo.old.agree is False and len(told) == 1 and "recomputed from now on" in told[0]
    names.clear()
    close = make_ppo(tmp_path, engine=Off(5e-5), updates=1)
    list(close.train())
    assert close.old.agree is True and names == ["policy", "reference"]
    asked = make_ppo(tmp_path, engine=Off(0.01), updates=1, old_logprobs="sampler", learning_rate=0.0)
    assert next(iter(asked.train()))["ppo/policy/ratio"] == pytest.approx(1.01, abs=1e-3)
    nan = make_ppo(tmp_path, engine=Off(float("nan")), updates=1)
    told = warned(nan)
    assert facts(list(nan.train())) == expected and len(told) == 1


def test_a_sampler_that_goes_wrong_later_is_seen_in_the_first_minibatch(tmp_path, monkeypatch):
    names = counted(monkeypatch)
    ppo = make_ppo(tmp_path, engine=Off(0.01, first=1), updates=3, epochs=1, minibatches=2)
    told = warned(ppo)
    list(ppo.train())
    assert ppo.old.agree is False and len(told) == 1
    assert names == ["policy", "reference", "reference", "policy", "reference"]


def test_what_is_not_known_to_agree_is_recomputed(tmp_path, monkeypatch):
    names = counted(monkeypatch)
    for changes in (
        {"family": "gpt2"},
        {"double": True},
        {"engine": Injected(RAGGED)},
        {"engine": Injected(RAGGED), "old_logprobs": "recompute"},
    ):
        names.clear()
        ppo = make_ppo(tmp_path, **changes)
        with ppo.base.training("policy", "value"):
            ppo.rollout()
        assert "policy" in names and ppo.old.agree is None
    monkeypatch.setattr("models.fast.products.has_bf16_units", lambda: True)
    half = make_base()
    half.lm.bfloat16()
    plain = make_base()
    plain.fast = False
    for base in (half, plain):
        ppo = make_ppo(tmp_path, base=base)
        with ppo.base.training("policy", "value"):
            ppo.rollout()
        assert ppo.old.agree is None
    with torch.autocast("cpu", torch.bfloat16):
        ppo = make_ppo(tmp_path)
        with ppo.base.training("policy", "value"):
            ppo.rollout()
        assert ppo.old.agree is None
    ppo = make_ppo(tmp_path, engine=Injected(RAGGED), old_logprobs="sampler")
    with pytest.raises(UserError, match=r"ppo\.old_logprobs: this engine gives no"):
        ppo.rollout()


def test_the_value_head_on_the_policys_trunk_needs_no_log_probabilities(tmp_path, monkeypatch):
    names = counted(monkeypatch)
    ppo = make_ppo(tmp_path, value={"init": "policy_trunk"}, updates=2)
    metrics = list(ppo.train())
    assert names == ["policy", "reference", "reference"] and metrics[-1]["ppo/value/explained_variance"] != 0


@pytest.mark.parametrize("gap", [0.0, 0.01])
def test_a_resumed_run_decides_as_an_uninterrupted_one(tmp_path, gap):
    """Interrupted in the second update, after the first minibatch, which has seen that the sampler is off (or not)."""
    settings = {"minibatches": 2, "learning_rate": 1e-2, "updates": 3}
    whole, kept = make_ppo(tmp_path / "a", engine=Off(gap, first=1), **settings), []

    def safe_point() -> None:
        if whole.position == 7:
            found = ppo_state.snapshot(whole)
            kept.append(replace(found, tensors={n: t.detach().clone() for n, t in found.tensors.items()}))

    whole.safe_point = safe_point
    rows = list(whole.train())
    again = make_ppo(tmp_path / "b", engine=Off(gap), **settings)
    ppo_state.restore(again, kept[0])
    assert again.old.agree is (gap == 0.0)
    assert facts(list(again.train())) == facts(rows[1:])
    found, expected = everything(again), everything(whole)
    assert [n for n in found if not torch.equal(found[n], expected[n])] == []
