"""``trivet serve``: OpenAI's own client gets what generation gives, whole and as it is sampled; and plain refusals."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import torch

from data.common import loopback
from data.records import Message
from data.template import Renderer
from models.backbone.seeds import generator
from models.sampling.generate import CachedEngine, SamplingParams
from pipelines.run.chat_models import Room, Speaker, open_speakers
from pipelines.run.openai_api import Application, cut, settled
from tests.conftest import ADAPTER, make_base, randomise

ASKED: Any = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture(scope="module")
def room() -> Room:
    """Two roles of a tiny base."""
    base = make_base()
    renderer = Renderer(base.tokenizer, template="dialogue")
    for i, role in enumerate(("sft", "policy")):
        base.add_role(role, ADAPTER)
        randomise(base, role, i + 1)
    both = (Speaker(name=n, base=base, role=r, renderer=renderer) for n, r in (("sft", "sft"), ("ppo", "policy")))
    return Room(speakers=tuple(both), reward=None, max_new_tokens=12)


@pytest.fixture(scope="module")
def address(room: Room) -> Iterator[str]:
    with loopback.serving(Application(room, "runs/mine")) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}v1", api_key="none", max_retries=0) as made:
        yield made


def greedy(room: Room, role: str, prompt: list[int], tokens: int) -> tuple[list[int], bool]:
    base, renderer = room.speakers[0].base, room.speakers[0].renderer
    params = SamplingParams(max_new_tokens=tokens, temperature=0.0, stop_ids=renderer.stop_ids)
    with base.role(role) as view:
        made = CachedEngine()(view, [prompt], params=params, noise=None)
    return made.ids[0], made.finished[0]


def test_all_models_of_a_run_are_offered(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sft", "ppo"]


@pytest.mark.parametrize("model", ["sft", "ppo", "runs/mine"])
def test_a_chat_completion_is_what_generation_gives(client: openai.OpenAI, room: Room, model: str) -> None:
    renderer = room.speakers[0].renderer
    prompt = renderer.prompt_ids([Message(role="user", content="w1 w2")])
    ids, finished = greedy(room, "sft" if model == "sft" else "policy", prompt, 12)
    made = client.chat.completions.create(model=model, messages=ASKED, temperature=0)
    assert made.choices[0].message.content == renderer.text(ids) != ""
    assert made.choices[0].finish_reason == ("stop" if finished else "length")
    assert made.model == ("sft" if model == "sft" else "ppo") and made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(prompt), len(ids))


def test_a_stream_is_the_same_text_in_parts(client: openai.OpenAI) -> None:
    more: Any = {"model": "ppo", "messages": ASKED, "temperature": 0.9, "seed": 5, "max_completion_tokens": 10}
    whole = client.chat.completions.create(**more)
    parts = list(client.chat.completions.create(**more, stream=True, stream_options={"include_usage": True}))
    texts = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert len([text for text in texts if text]) > 3 and "".join(texts) == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage and parts[-1].choices == []
    assert [p.choices[0].finish_reason for p in parts[:-1]][-1] == whole.choices[0].finish_reason
    assert all(p.choices[0].finish_reason is None for p in parts[:-2])


def test_a_plain_completion_goes_on_from_text_or_ids(client: openai.OpenAI, room: Room) -> None:
    tokenizer = room.speakers[0].base.tokenizer
    prompt = tokenizer("w5 w6 w7")["input_ids"]
    ids, _ = greedy(room, "policy", prompt, 6)
    expected = room.speakers[0].renderer.raw_text(ids)
    for given in ("w5 w6 w7", prompt):
        made = client.completions.create(model="ppo", prompt=given, temperature=0, max_tokens=6)
        assert made.choices[0].text == expected and made.usage is not None and made.usage.prompt_tokens == len(prompt)
    parts = client.completions.create(model="ppo", prompt=prompt, temperature=0, max_tokens=6, stream=True)
    assert "".join(part.choices[0].text for part in parts) == expected


def test_a_seed_repeats_and_several_responses_differ(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        made = client.chat.completions.create(model="sft", messages=ASKED, n=3, seed=seed)
        return [choice.message.content for choice in made.choices]

    assert texts(1) == texts(1) != texts(2)
    assert len(set(texts(1))) > 1


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    more: Any = {"model": "ppo", "messages": ASKED, "temperature": 0}
    plain = client.chat.completions.create(**more).choices[0].message.content
    assert plain is not None
    stop = " ".join(plain.split()[2:4])
    made = client.chat.completions.create(**more, stop=[stop, "never"])
    assert made.choices[0].message.content == plain[: plain.index(stop)] and made.choices[0].finish_reason == "stop"
    assert made.usage is not None and made.usage.completion_tokens < len(plain.split())
    streamed = client.chat.completions.create(**more, stop=stop, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in streamed) == plain[: plain.index(stop)]


def test_the_runs_own_stop_strings_end_a_response_and_are_never_shown(room: Room) -> None:
    """Chat, completion and stream; the tokens are counted up to the one that completes the string."""
    first, tokenizer = room.speakers[1], room.speakers[1].base.tokenizer
    prompt = first.renderer.prompt_ids([Message(role="user", content="w1 w2")])
    ids, _ = greedy(room, "policy", prompt, 12)
    words = tokenizer.convert_ids_to_tokens(ids)
    string = " ".join(words[2:4])
    end = next(n for n in range(1, len(words)) if " ".join(words[n - 1 : n + 1]) == string)
    renderer = Renderer(tokenizer, template="dialogue", stop_strings=[string])
    speaker = Speaker(name="ppo", base=first.base, role=first.role, renderer=renderer)
    noise: Any = {"temperature": 0.0, "max_new_tokens": 12, "generator": generator(0, "chat")}
    grown = list(speaker.answer([Message(role="user", content="w1 w2")], **noise))
    expected = " ".join(words[: end - 1])
    assert grown[-1] == (expected, True) and all(expected.startswith(text) for text, _ in grown)
    more: Any = {"model": "ppo", "messages": ASKED, "temperature": 0}
    application = Application(Room(speakers=(speaker,), reward=None, max_new_tokens=12), "mine")
    with loopback.serving(application) as url, openai.OpenAI(base_url=f"{url}v1", api_key="none") as made:
        whole = made.chat.completions.create(**more)
        assert whole.choices[0].message.content == expected and whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None and whole.usage.completion_tokens == end + 1
        streamed = made.chat.completions.create(**more, stream=True)
        assert "".join(p.choices[0].delta.content or "" for p in streamed) == expected


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", ["xx"], "one two"),
        ("one twx", ["xx"], "one tw"),  # may become it
        ("one \ufffd", [], "one "),
        ("ab", ["abc", "b!"], ""),
        ("", ["a"], ""),
    ],
)
def test_what_may_become_a_stop_string_waits(text: str, stops: list[str], expected: str) -> None:
    assert settled(text, stops) == expected


def test_the_first_of_the_stop_strings_counts() -> None:
    assert cut("one two three", ["three", "two"]) == ("one ", True)
    assert cut("one two", ["x", ""]) == ("one two", False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_p": 0.9}, "top_p: has no effect here; leave it out"),
        ({"presence_penalty": 1.0}, "presence_penalty: has no effect"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias: has no effect"),
        ({"logprobs": True}, "logprobs: has no effect"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: has no effect"),
        ({"extra_body": {"top_k": 5}}, "top_k: nothing reads this here"),
        ({"temperature": 3.0}, "temperature: Input should be less than or equal to 2"),
        ({"model": "pop"}, "there is no 'pop'; there are sft, ppo. Did you mean 'ppo'"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "w3"}]}, "the last one is the assistant's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "is no text"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content: is no text"),
        ({"messages": [{"role": "tool", "content": "w1"}]}, "messages.0.role: there are system, developer, user"),
        ({"messages": [{"role": "user", "content": "w1", "name": "bo"}]}, "messages.0.name: has no effect"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: is missing"),
        ({"temperature": 1e-300}, "temperature: give 0, which is greedy decoding, or at least 0.0001"),
        ({"temperature": "0.5"}, "temperature: Input should be a valid number"),
        ({"n": True}, "n: Input should be a valid integer"),
        ({"seed": 1.0}, "seed: Input should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens: is another number than max_completion_tokens"),
        ({"stop": ["w9", ""]}, "stop: an empty text would end every response"),
        ({"stream_options": {"include_usage": True}}, "stream_options: has no effect without stream"),
        ({"stream": True, "stream_options": {"include_cost": True}}, "stream_options: nothing reads this here"),
        ({"max_tokens": 60}, "positions for it and a response of 60"),
        ({"messages": [{"role": "user", "content": "w1 " * 80}]}, "shorten it"),
    ],
)
def test_what_cannot_be_is_refused(client: openai.OpenAI, change: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**({"model": "ppo", "messages": ASKED} | change))
    assert words in str(caught.value)


def test_other_addresses_and_kinds_of_body_are_refused(address: str) -> None:
    def status(path: str, data: bytes | None, **headers: str) -> tuple[int, Any]:
        request = urllib.request.Request(address + path, data, headers)
        try:
            with urllib.request.urlopen(request) as found:
                return found.status, json.load(found)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    assert status("health", None) == (200, {"status": "ok", "name": "runs/mine"})
    assert status("v1/embeddings", b"{}")[0] == 404
    assert status("v1/chat/completions", b"{}", **{"Content-Type": "text/plain"})[0] == 415
    kind = {"Content-Type": "application/json"}
    assert "not JSON" in status("v1/chat/completions", b"{", **kind)[1]["error"]["message"]
    assert status("v1/chat/completions", b"[]", **kind)[0] == 400
    for body, words in (
        (b'{"prompt": "w1", "prompt": "w2"}', "the key 'prompt' is given twice"),
        (b'{"prompt": "\\ud800"}', "prompt: holds half of a surrogate pair"),
        (b'{"prompt": "w1", "stop": "\\udc00"}', "stop: holds half of a surrogate pair"),
        (b'{"prompt": "\xff"}', "no UTF-8 text"),
        (b'{"prompt": ["w1", "w2"]}', "prompt: one prompt a request"),
        (b'{"prompt": [true]}', "prompt: one prompt a request"),
        (b'{"prompt": []}', "prompt: is empty"),
    ):
        code, said = status("v1/completions", body, **kind)
        assert code == 400 and words in said["error"]["message"]
    assert status("v1/models", None, Origin="http://elsewhere")[0] == 403


def test_a_client_that_leaves_in_the_middle_leaves_the_model_free(client: openai.OpenAI, room: Room) -> None:
    before = torch.get_num_threads(), room.speakers[0].base._active
    stream = client.chat.completions.create(model="sft", messages=ASKED, stream=True, seed=1)
    next(iter(stream))
    stream.close()
    made = client.chat.completions.create(model="ppo", messages=ASKED, temperature=0)
    assert made.choices[0].message.content
    assert (torch.get_num_threads(), room.speakers[0].base._active) == before


def test_nothing_more_is_sampled_for_a_client_that_left(room: Room) -> None:
    """A client that gives up would else hold the model for the whole of a response that nobody reads."""
    asked = b'{"prompt": "w1", "max_tokens": 12, "temperature": 0, "n": 2}'
    environ = {"CONTENT_TYPE": "application/json"}
    application = Application(room, "mine")
    stayed = application("POST", "/v1/completions", environ, asked)
    left = application("POST", "/v1/completions", environ | {"waitress.client_disconnected": lambda: True}, asked)
    counts = [json.loads(answer.body)["usage"]["completion_tokens"] for answer in (stayed, left)]
    assert counts[1] == 2 < counts[0]


def test_the_server_hears_of_a_client_that_left() -> None:
    heard: list[bool] = []
    began, over = threading.Event(), threading.Event()

    def slow(method: str, path: str, environ: Any, body: bytes) -> loopback.Answer:
        began.set()
        end = time.monotonic() + 10
        while not environ["waitress.client_disconnected"]() and time.monotonic() < end:
            time.sleep(0.01)
        heard.append(environ["waitress.client_disconnected"]())
        over.set()
        return loopback.as_json("200 OK", {})

    with loopback.serving(slow) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
            connection.sendall(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert began.wait(60)  # one that left before is not served at all
        assert over.wait(15) and heard == [True]


def test_null_is_the_default_as_clients_send_it(address: str) -> None:
    body = {"messages": [{"role": "user", "content": "w1 w2", "refusal": None}], "max_tokens": 3, "seed": 4}
    nulls = dict.fromkeys(("temperature", "n", "stream", "stop", "stream_options", "model", "top_p"))

    def reply(asked: dict[str, Any]) -> Any:
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}v1/chat/completions", json.dumps(asked).encode(), kind)
        with urllib.request.urlopen(request) as found:
            return json.load(found)["choices"]

    assert reply(body | nulls) == reply(body)


def test_a_stream_that_fails_says_so_in_its_last_event(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Iterator[list[int]]:
        yield [5]
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Speaker, "tokens", fails)
    with (
        loopback.serving(Application(room, "mine")) as url,
        openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0) as made,
        pytest.raises(openai.APIError, match="RuntimeError: out of memory"),
    ):
        list(made.completions.create(model="ppo", prompt="w1", stream=True))


def test_the_noise_is_that_of_the_seed_and_the_number_of_the_response(client: openai.OpenAI, room: Room) -> None:
    speaker = room.speakers[0]
    prompt = speaker.renderer.prompt_ids([Message(role="user", content="w1 w2")])
    noise = generator(9, "serve", 1)
    *_, ids = speaker.tokens(prompt, temperature=1.0, max_new_tokens=12, generator=noise)
    made = client.chat.completions.create(model="sft", messages=ASKED, n=2, seed=9)
    assert made.choices[1].message.content == speaker.renderer.text(ids)


def test_a_run_serves_its_stages_on_one_base_and_one_of_them_alone(least_run: Any) -> None:
    room = open_speakers(str(least_run))
    assert [s.name for s in room.speakers] == ["base", "sft", "ppo"]
    assert len({id(s.base) for s in room.speakers}) == 1
    assert [s.name for s in open_speakers(str(least_run), "sft").speakers] == ["sft"]
