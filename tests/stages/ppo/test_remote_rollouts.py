"""PPO whose rollouts are sampled by servers: handed over, compared, corrected, resumed."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from data.common.errors import StageError, UserError
from data.common.http_client import RemoteError
from models.sampling.settings import RolloutServers
from stages.ppo import state as ppo_state
from stages.ppo.update import PPO
from stages.remote_rollouts import SERVED, importance_weights
from tests.conftest import make_base
from tests.support.ppo import PROMPTS, everything, make_ppo
from tests.support.vllm_double import VLLMDouble, serving_vllm


def remote_ppo(tmp_path, *urls, rollouts=None, **settings) -> PPO:
    ppo = make_ppo(tmp_path, **settings)
    servers = RolloutServers(engine="vllm", servers=urls, backoff=0.0, retries=0, **(rollouts or {}))
    return PPO(replace(ppo.context, rollouts=servers), ppo.config, PROMPTS, ppo.reward)


def train(ppo: PPO) -> list[dict[str, float]]:
    return list(ppo.train())


def test_every_update_samples_from_the_policy_of_that_update(tmp_path):
    double = VLLMDouble(make_base())
    with serving_vllm(double) as url:
        ppo = remote_ppo(tmp_path, url)
        rows = train(ppo)
        assert len(double.loaded) == len(set(double.loaded)) == 3  # an adapter an update, each under its own name
        assert {body["model"] for body in double.asked} == set(double.loaded)
        assert list(double.roles) == double.loaded[-1:]  # what has served is forgotten
        assert [p.name for p in (tmp_path / SERVED).iterdir()] == double.loaded[-1:]
        ppo.remote.close()
        assert not (tmp_path / SERVED).exists() and not double.roles
    assert all(row["rollout/server_gap"] < 1e-5 and row["rollout/server_gap_max"] < 1e-4 for row in rows)


def test_a_server_that_keeps_the_old_adapter_is_found(tmp_path):
    with serving_vllm(VLLMDouble(make_base(), stale=True)) as url:
        ppo = remote_ppo(tmp_path, url, learning_rate=0.05)
        with ppo.base.training("policy", "value"):
            ppo.step()
            with pytest.raises(StageError, match=rf"{url} does not sample from the policy: .* an older adapter"):
                ppo.step()
        assert ppo.update_index == 1 and ppo.cycle is None


def test_one_stale_server_of_two_is_named(tmp_path):
    good, stale = VLLMDouble(make_base()), VLLMDouble(make_base(), stale=True)
    with serving_vllm(good) as one, serving_vllm(stale) as other:
        ppo = remote_ppo(tmp_path, one, other, learning_rate=0.05)
        with pytest.raises(StageError, match=f"{other} does not sample from the policy"):
            train(ppo)


def test_a_server_of_another_base_is_found_in_the_first_rollout(tmp_path):
    with serving_vllm(VLLMDouble(make_base(seed=1))) as url:
        ppo = remote_ppo(tmp_path, url)
        with pytest.raises(StageError, match="serves another base"):
            train(ppo)
        assert ppo.update_index == 0


def test_a_dead_server_ends_the_update_and_the_next_one_resumes(tmp_path):
    """What was learnt is kept: the run with a server that died and was started again is the run without."""
    with serving_vllm(VLLMDouble(make_base())) as url:
        whole = remote_ppo(tmp_path / "a", url)
        rows = train(whole)
    with serving_vllm(VLLMDouble(make_base(), dies_after=12)) as url:  # in the second of three updates
        ppo = remote_ppo(tmp_path / "b", url)
        with ppo.base.training("policy", "value"):
            ppo.step()
            saved = ppo_state.snapshot(ppo)
            with pytest.raises(RemoteError, match="no rollout server is left"):
                ppo.step()
    with serving_vllm(VLLMDouble(make_base())) as url:
        again = remote_ppo(tmp_path / "c", url)
        ppo_state.restore(again, saved)
        later = train(again)
    torch.testing.assert_close(everything(again), everything(whole), rtol=0, atol=0)
    assert [row["objective/scores"] for row in later] == [row["objective/scores"] for row in rows[1:]]


def test_a_rollout_that_is_resumed_is_not_sampled_again(tmp_path):
    double = VLLMDouble(make_base())
    with serving_vllm(double) as url:
        ppo = remote_ppo(tmp_path / "a", url, updates=1)
        saved = []
        ppo.safe_point = lambda: saved.append(deepcopy(ppo_state.snapshot(ppo)))
        (row,) = train(ppo)
        asked = len(double.asked)
        again = remote_ppo(tmp_path / "b", url, updates=1)
        ppo_state.restore(again, saved[0])
        (later,) = train(again)
        assert len(double.asked) == asked
    assert later["rollout/server_gap"] == row["rollout/server_gap"]
    torch.testing.assert_close(everything(again), everything(ppo), rtol=0, atol=0)


def test_importance_weights_are_ratios_up_to_the_cap():
    """exp(-1 - -1.5) = 1.6487, exp(-1 - -3) = 7.389 is cut to 2, exp(-2 - -1) = 0.3679; padding weighs 1."""
    new = torch.tensor([[-1.0, -1.0, -2.0, 0.0]])
    old = torch.tensor([[-1.5, -3.0, -1.0, -9.0]])
    mask = torch.tensor([[True, True, True, False]])
    expected = torch.tensor([[1.6487213, 2.0, 0.36787944, 1.0]])
    torch.testing.assert_close(importance_weights(new, old, mask, 2.0), expected)


def test_a_cap_weighs_each_token_s_advantage(tmp_path):
    """A server off by 0.2 nats a token has 1 / e^-0.2 of the policy's mass: every weight is e^0.2, or the cap."""

    def lower(answer):
        numbers = answer["choices"][0]["logprobs"]
        numbers["token_logprobs"] = [x - 0.2 for x in numbers["token_logprobs"]]
        return answer

    advantages = {}
    for cap in (None, 1.1, 2.0):
        with serving_vllm(VLLMDouble(make_base(), change=lower)) as url:
            ppo = remote_ppo(tmp_path / str(cap), url, rollouts={"tolerance": 0.5}, importance_cap=cap, updates=1)
            rollout, numbers = ppo.rollout()
            ppo.compute_rewards(rollout)
            ppo.compute_advantages(rollout)
            advantages[cap] = rollout.advantages
            assert numbers["rollout/server_gap"] == pytest.approx(0.2, abs=1e-3)
            if cap is not None:
                assert numbers["rollout/importance_weight"] == pytest.approx(min(cap, 1.2214), abs=1e-3)
    torch.testing.assert_close(advantages[1.1], advantages[None] * 1.1)
    torch.testing.assert_close(advantages[2.0], advantages[None] * 1.2214, rtol=1e-3, atol=1e-6)


def test_a_server_with_too_little_room_is_refused(tmp_path):
    with serving_vllm(VLLMDouble(make_base(), room=8)) as url:
        ppo = remote_ppo(tmp_path, url)
        with pytest.raises(UserError, match=r"room for 8 tokens.*takes 5 \+ 6.*--max-model-len"):
            ppo.remote.check(5, 6)
