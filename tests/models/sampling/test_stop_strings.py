"""Rows that end with a stop string: all engines alike, and token for token as Transformers' own generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data.stop_strings import StopStrings
from models.roles.shared_base import SharedBase
from models.sampling.decoding import Decoding
from models.sampling.device_steps import DeviceDecoding
from models.sampling.fast import FastEngine
from models.sampling.generate import CachedEngine, Generated, SamplingParams, generate, sampling_noise
from models.sampling.remote import RemoteEngine
from models.sampling.settings import RolloutServers
from models.sampling.stream import stream
from tests.conftest import make_base, tiny_lm
from tests.support.rendering import byte_tokenizer
from tests.support.vllm_double import VLLMDouble, serving_vllm

MERGES = [("Ċ", "U"), ("s", "e"), ("r", ":"), ("r:", "Ġ"), ("ç", "Ķ"), ("t", "h")]
PROMPTS = [[70, 71], [80, 81, 82, 83], [90], [65, 66, 67], [70, 71], [99, 98]]


@pytest.fixture(scope="module")
def letters() -> SharedBase:
    """A base that writes bytes."""
    tokenizer = byte_tokenizer(MERGES)
    lm = tiny_lm(vocab_size=len(tokenizer) + 3, initializer_range=0.5)  # ids without a token, as many bases have
    return SharedBase(lm, tokenizer)


def made_by(engine: Any, base: SharedBase, strings: list[str], noise: Any = None, steps: int = 24) -> Generated:
    params = SamplingParams(
        max_new_tokens=steps,
        temperature=1.0,
        stop_ids=(1,),
        stop_strings=StopStrings(base.tokenizer, strings) if strings else None,
    )
    with base.role("base") as view:
        return generate(engine, view, PROMPTS, noise=noise, batch=99, params=params)


def text_of(base: SharedBase, ids: list[int]) -> str:
    return str(base.tokenizer.decode(ids))


def said(base: SharedBase, row: list[int], start: int) -> str:
    """The first text of two neighbouring tokens from ``start`` on that holds no half character."""
    texts = (text_of(base, row[at : at + 2]) for at in range(start, len(row) - 1))
    return next(text for text in texts if "\ufffd" not in text)


def test_greedy_responses_are_those_of_transformers_token_for_token(letters: SharedBase) -> None:
    free = made_by(CachedEngine(), letters, [])
    strings = [said(letters, free.ids[0], 7), said(letters, free.ids[2], 3)]
    ours = made_by(CachedEngine(), letters, strings)
    for prompt, ids, finished in zip(PROMPTS, ours.ids, ours.finished, strict=True):
        asked = torch.tensor([prompt])
        theirs = letters.lm.generate(
            asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=0,
            stop_strings=strings,
            tokenizer=letters.tokenizer,
        )[0, len(prompt) :].tolist()
        assert ids == theirs
        assert finished == any(s in text_of(letters, ids) for s in strings) or ids[-1] == 1
    assert len({len(ids) for ids in ours.ids}) > 2 and any(ours.finished)


@pytest.mark.parametrize("loop", [Decoding, DeviceDecoding])
def test_all_loops_end_rows_alike_and_keep_what_was_sampled(
    letters: SharedBase, monkeypatch: pytest.MonkeyPatch, loop: type[Decoding]
) -> None:
    monkeypatch.setattr("models.sampling.fast.Decoding", loop)
    noise = sampling_noise(len(PROMPTS), 28, torch.Generator().manual_seed(2))
    free = made_by(CachedEngine(), letters, [], noise, 28)
    strings = [said(letters, free.ids[row], start) for row, start in ((0, 4), (1, 20), (2, 12))]
    plain = made_by(CachedEngine(with_logprobs=True), letters, strings, noise, 28)
    fast = made_by(FastEngine(with_logprobs=True), letters, strings, noise, 28)
    assert (fast.ids, fast.finished) == (plain.ids, plain.finished)
    assert len({len(ids) for ids in plain.ids}) > 2 and {*plain.finished} == {True, False}
    stops = StopStrings(letters.tokenizer, strings)
    for row, (ids, whole, finished) in enumerate(zip(plain.ids, free.ids, plain.finished, strict=True)):
        end = stops.end(whole)
        assert ids == (whole if end is None else whole[: end + 1])
        assert finished == (end is not None or whole[-1] == 1)
        for made in (plain, fast):
            assert made.logprobs is not None
            assert (made.logprobs[row, : len(ids)] < 0).all() and (made.logprobs[row, len(ids) :] == 0).all()
    torch.testing.assert_close(fast.logprobs, plain.logprobs, atol=1e-4, rtol=1e-4)


def test_a_stream_ends_with_the_same_token(letters: SharedBase) -> None:
    free = made_by(CachedEngine(), letters, [])
    strings = [said(letters, free.ids[0], 7)]
    params = SamplingParams(
        max_new_tokens=24, temperature=0.0, stop_ids=(1,), stop_strings=StopStrings(letters.tokenizer, strings)
    )
    with letters.role("base") as view:
        ids = list(stream(view, PROMPTS[0], params=params, generator=torch.Generator()))
    assert ids == made_by(CachedEngine(), letters, strings).ids[0] and len(ids) < 24


def test_a_server_is_asked_for_the_strings_and_what_it_gives_beyond_them_is_cut() -> None:
    base = make_base(initializer_range=0.2)
    noise = torch.rand((3, 12), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    prompts = [[5, 6], [7, 8, 9], [10]]

    def asked(double: VLLMDouble, strings: list[str]) -> Generated:
        params = SamplingParams(
            max_new_tokens=12, stop_ids=(2,), stop_strings=StopStrings(base.tokenizer, strings) if strings else None
        )
        with serving_vllm(double) as url, base.role("base") as role:
            remote = RemoteEngine(RolloutServers(engine="vllm", servers=(url,), backoff=0.0))
            remote.model = remote.base_model()
            return remote(role, prompts, params=params, noise=noise)

    free = asked(VLLMDouble(make_base(initializer_range=0.2)), [])
    at = next(n for n in range(2, 11) if len(free.ids[0]) > n + 2)
    strings = [" ".join(base.tokenizer.convert_ids_to_tokens(free.ids[0][at : at + 2]))]
    double = VLLMDouble(make_base(initializer_range=0.2))
    made = asked(double, strings)
    assert all(body["stop"] == strings for body in double.asked)
    assert made.finished[0] and made.ids[0] == free.ids[0][: len(made.ids[0])] and len(made.ids[0]) <= at + 2

    class Ahead(VLLMDouble):
        """Samples several tokens in one step, and so past the string."""

        def complete(self, body: Any) -> Any:
            return super().complete({key: value for key, value in body.items() if key != "stop"})

    ahead = asked(Ahead(make_base(initializer_range=0.2)), strings)
    assert (ahead.ids, ahead.finished) == (made.ids, made.finished)
    assert ahead.logprobs is not None and made.logprobs is not None
    torch.testing.assert_close(ahead.logprobs, made.logprobs)
