"""Rows sampled by servers: what is asked, what is checked, and what happens when a server fails."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from data.common.errors import UserError
from data.common.http_client import RemoteError, Unusable
from models.roles.export import save_adapter
from models.sampling.generate import CachedEngine, SamplingParams
from models.sampling.remote import RemoteEngine
from models.sampling.settings import RolloutServers
from models.sampling.vllm_server import response_in
from tests.conftest import ADAPTER, make_base, randomise
from tests.support.vllm_double import VLLMDouble, serving_vllm

PROMPTS = [[5, 6], [7, 8, 9], [10], [11, 12, 13, 14], [5, 6]]
PARAMS = SamplingParams(max_new_tokens=6, temperature=0.7, stop_ids=(2,))


def noise(rows: int = len(PROMPTS)) -> torch.Tensor:
    return torch.rand((rows, 6), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def engine(*servers: str, **settings) -> RemoteEngine:
    return RemoteEngine(RolloutServers(engine="vllm", servers=servers, backoff=0.0, **settings))


@pytest.fixture
def policy(tmp_path):
    """A base with a role that has an effect, and the role's adapter as files."""
    base = make_base()
    base.add_role("policy", ADAPTER)
    randomise(base, "policy", 1)
    save_adapter(base, "policy", tmp_path / "policy")
    return base, str(tmp_path / "policy")


def test_rows_are_those_of_the_seeds_that_the_noise_gives(policy):
    base, folder = policy
    with serving_vllm(VLLMDouble(make_base())) as url, base.role("policy") as role:
        remote = engine(url)
        remote.load("one", folder)
        made = remote(role, PROMPTS, params=PARAMS, noise=noise())
        for i, first in enumerate(noise()[:, 0].tolist()):
            g = torch.Generator().manual_seed(int(first * 2**53))
            own = torch.rand((1, 6), generator=g, dtype=torch.float64)
            plain = CachedEngine(with_logprobs=True)(role, [PROMPTS[i]], params=PARAMS, noise=own)
            assert (made.ids[i], made.finished[i]) == (plain.ids[0], plain.finished[0])
            torch.testing.assert_close(made.logprobs[i], plain.logprobs[0])
    assert made.ids[0] != made.ids[4]  # equal prompts, each with a seed of its own


def test_without_noise_rows_are_greedy(policy):
    base, folder = policy
    double = VLLMDouble(make_base())
    with serving_vllm(double) as url, base.role("policy") as role:
        remote = engine(url)
        remote.load("one", folder)
        made = remote(role, PROMPTS, params=PARAMS, noise=None)
        plain = CachedEngine()(role, PROMPTS, params=PARAMS, noise=None)
    assert made.ids == plain.ids
    assert {body["temperature"] for body in double.asked} == {0.0}


def test_every_warper_is_neutral_and_stops_are_ids_alone(policy):
    base, folder = policy
    double = VLLMDouble(make_base())
    with serving_vllm(double) as url, base.role("policy") as role:
        remote = engine(url)
        remote.load("one", folder)
        remote(role, PROMPTS[:1], params=PARAMS, noise=noise(1))
    body = double.asked[0]
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert (body["presence_penalty"], body["frequency_penalty"], body["n"]) == (0.0, 0.0, 1)
    assert body["ignore_eos"] and body["stop_token_ids"] == [2] and body["temperature"] == 0.7
    assert not body["add_special_tokens"] and body["prompt"] == PROMPTS[0] and body["model"] == "one"


def test_servers_share_the_rows_and_none_changes_them(policy):
    base, folder = policy
    with (
        serving_vllm(VLLMDouble(make_base())) as one,
        serving_vllm(VLLMDouble(make_base())) as other,
        base.role("policy") as role,
    ):
        found = []
        for servers in ((one,), (other, one)):
            remote = engine(*servers)
            remote.load("one", folder)
            found.append(remote(role, PROMPTS, params=PARAMS, noise=noise()))
    assert found[0] == found[1]
    torch.testing.assert_close(found[0].logprobs, found[1].logprobs)
    assert remote.sampled_by == [0, 1, 0, 1, 0]


def test_a_server_that_dies_costs_nothing_but_time(policy):
    base, folder = policy
    dying = VLLMDouble(make_base(), dies_after=1)
    with serving_vllm(dying) as one, serving_vllm(VLLMDouble(make_base())) as other, base.role("policy") as role:
        remote = engine(one, other, retries=0, concurrency=1)
        remote.load("one", folder)
        made = remote(role, PROMPTS, params=PARAMS, noise=noise())
        alone = engine(other)
        alone.model = "one"
        assert made == alone(role, PROMPTS, params=PARAMS, noise=noise())
    assert remote.sampled_by.count(0) == 1


def test_where_no_server_is_left_each_one_s_reason_is_named(policy):
    base, folder = policy
    with serving_vllm(VLLMDouble(make_base(), dies_after=2)) as one, base.role("policy") as role:
        remote = engine(one, "http://127.0.0.1:9", retries=1)
        with pytest.raises(RemoteError, match=r"no rollout server is left:\n.*nothing listens there"):
            engine("http://127.0.0.1:9", retries=0).load("one", folder)
        (failed,) = remote.load("one", folder)
        assert "127.0.0.1:9" in failed
        with pytest.raises(RemoteError, match=r"no rollout server is left:\n(.|\n)*closed the connection"):
            remote(role, PROMPTS, params=PARAMS, noise=noise())


def test_a_server_that_takes_no_adapter_is_asked_once(policy):
    """It refuses for good, and is said so once; it is asked for no row, and of no further adapter."""
    base, folder = policy
    unable, able = VLLMDouble(make_base()), VLLMDouble(make_base())
    refusals = []

    def refuse(body):
        refusals.append(body["lora_name"])
        return 404, {"error": {"message": "The page is not found.", "code": 404}}

    unable.load = refuse
    with serving_vllm(unable) as one, serving_vllm(able) as other, base.role("policy") as role:
        remote = engine(one, other)
        (told,) = remote.load("one", folder)
        assert f"{one}/v1/load_lora_adapter" in told and told.startswith("a rollout server is left out for good")
        made = remote(role, PROMPTS, params=PARAMS, noise=noise())
        assert remote.load("two", folder) == [] and refusals == ["one"] and not unable.asked
        assert set(remote.sampled_by) == {1} and len(made.ids) == len(PROMPTS)
        alone = engine(one)
        with pytest.raises(RemoteError, match=r"no rollout server is left:\n.*load_lora_adapter"):
            alone.load("one", folder)


def test_a_slow_server_s_rows_go_to_another(policy):
    base, folder = policy
    delayed = VLLMDouble(make_base(), seconds=3.0)
    with serving_vllm(delayed) as slow, serving_vllm(VLLMDouble(make_base())) as other, base.role("policy") as role:
        remote = engine(slow, other, retries=0, timeout=1.0)
        remote.load("one", folder)
        made = remote(role, PROMPTS, params=PARAMS, noise=noise())
    assert set(remote.sampled_by) == {1} and len(made.ids) == len(PROMPTS)


def test_a_key_that_is_not_set_is_refused_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UserError, match="NO_KEY is not set"):
        engine("http://127.0.0.1:9", token_env="NO_KEY")


GOOD = {
    "model": "one",
    "choices": [
        {"token_ids": [5, 2], "prompt_token_ids": [7], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1, 0]}}
    ],
}


def changed(**choice):
    return GOOD | {"choices": [GOOD["choices"][0] | choice]}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([], "no object with"),
        ({"model": "one", "choices": []}, "a list of one"),
        (GOOD | {"model": "base"}, "model 'base' answered instead of 'one'"),
        (changed(token_ids=None), 'no "token_ids"'),
        (changed(token_ids=[]), 'no "token_ids"'),
        (changed(prompt_token_ids=[1, 7]), "read 2 prompt tokens other than the 1"),
        (changed(logprobs=None), "no logprobs for 2 tokens"),
        (changed(logprobs={"token_logprobs": [-1]}), "1 logprobs for 2 tokens"),
        (changed(logprobs={"token_logprobs": [-1, float("nan")]}), "no finite number"),
        (changed(logprobs={"token_logprobs": [-1, 0.5]}), "no finite number up to 0"),
        (changed(token_ids=[5, 6]), "2 tokens .* where at most 3"),
        (changed(token_ids=[2, 5]), "2 tokens .* where at most 3"),
        (changed(token_ids=[5, 6, 7, 8], logprobs={"token_logprobs": [-1] * 4}), "4 tokens .* where at most 3"),
    ],
)
def test_an_answer_that_cannot_be_right_is_unusable(answer, words):
    with pytest.raises(Unusable, match=words):
        response_in(answer, "one", [7], SamplingParams(max_new_tokens=3, stop_ids=(2,)))


def test_an_answer_at_the_limit_is_not_finished():
    answer = changed(token_ids=[5, 6, 7], logprobs={"token_logprobs": [-1, -2, -3]}, finish_reason="length")
    found = response_in(answer, "one", [7], SamplingParams(max_new_tokens=3, stop_ids=(2,)))
    assert (found.ids, found.logprobs, found.finished) == ([5, 6, 7], [-1.0, -2.0, -3.0], False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "vllm"}, "needs servers"),
        ({"servers": ["http://a:1"]}, "'servers' belongs to engine 'vllm'"),
        ({"timeout": 3.0}, "'timeout' belongs to engine 'vllm'"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        RolloutServers(**settings)
