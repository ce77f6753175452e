"""The scorer's server against many, slow, hostile and broken requests, on loopback."""

from __future__ import annotations

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from data.common.errors import RowError
from data.records import Message
from reward.terms.server import serving

ROWS = {"rows": [{"prompt": "a", "completion": "four"}]}
JSON = {"Content-Type": "application/json"}


def lengths(rows: Any) -> list[float]:
    return [float(len(r["completion"])) for r in rows]


def ask(address: str, body: bytes | None, headers: dict[str, str], method: str = "POST", path: str = "/"):
    """Status and decoded JSON body of one request on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def score(address: str, value: Any = ROWS, **headers: str):
    return ask(address, json.dumps(value).encode(), JSON | headers)


def test_two_hundred_requests_at_once_are_all_answered() -> None:
    with serving(lengths) as address, ThreadPoolExecutor(200) as pool:
        assert list(pool.map(lambda _: score(address), range(200))) == [(200, {"scores": [4.0]})] * 200


def test_half_sent_bodies_hold_nobody_up_and_are_closed() -> None:
    with serving(lengths, patience=2) as address:
        where = ("127.0.0.1", urlsplit(address).port)
        held = [socket.create_connection(where, timeout=30) for _ in range(300)]
        for one in held:
            one.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
            one.sendall(b'Content-Length: 1000\r\n\r\n{"rows": [')
        started = time.monotonic()
        assert score(address) == (200, {"scores": [4.0]}) and time.monotonic() - started < 5
        assert all(one.recv(10) == b"" for one in held)  # a held one would run into its time-out
        for one in held:
            one.close()


@pytest.mark.parametrize(
    "headers",
    [{"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {}],
)
def test_what_a_page_of_another_site_can_send_is_not_answered(headers: dict[str, str]) -> None:
    asked: list[Any] = []
    with serving(lambda rows: asked.append(rows) or lengths(rows)) as address:  # type: ignore[func-returns-value]
        status, said = ask(address, json.dumps(ROWS).encode(), headers)
        assert status == 415 and "application/json" in said["error"]
        assert score(address, Origin="https://evil.example")[0] == 403
        assert not asked
        assert score(address, Origin=address.rstrip("/"))[0] == 200
        assert score(address, **{"Content-Type": "application/json; charset=utf-8"})[0] == 200


@pytest.mark.parametrize("method, path", [("GET", "/health"), ("POST", "/"), ("POST", "/classify"), ("GET", "/x")])
def test_other_hosts_learn_nothing(method: str, path: str) -> None:
    with serving(lengths, name="secret-run") as address:
        status, said = ask(address, b"{}", JSON | {"Host": "evil.example"}, method, path)
        assert status == 403 and "secret-run" not in json.dumps(said)
        assert ask(address, None, {}, "GET", "/health") == (200, {"status": "ok", "name": "secret-run"})
        assert ask(address, None, {"Host": "localhost:1"}, "GET", "/health")[0] == 200


@pytest.mark.parametrize("key", ["prompt", "completion", "content"])
def test_half_a_surrogate_pair_is_the_senders_mistake(key: str) -> None:
    row: dict[str, Any] = {"prompt": "a", "completion": "b"}
    row |= {"messages": [{"role": "user", "content": "\ud800"}]} if key == "content" else {key: "x\ud800"}
    with serving(lengths) as address:
        status, said = score(address, {"rows": [{"prompt": "a", "completion": "b"}, row]})
        assert status == 400 and said["error"].startswith("row 1: holds half of a surrogate pair")
        assert score(address, {"rows": [{"completion": "\U0001f600"}]}) == (200, {"scores": [1.0]})  # a whole pair


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_an_error_in_json(number: float) -> None:
    with serving(lambda rows: [number] * len(rows)) as address:
        status, said = score(address)
        assert status == 500 and "row 0 was scored" in said["error"]


@pytest.mark.parametrize("text", ['a "quoted" \\ one\n', "\ud800", "{}"])
def test_errors_are_json_whatever_they_say(text: str) -> None:
    def fails(rows: Any) -> list[float]:
        raise RuntimeError(text)

    with serving(fails) as address:
        assert score(address) == (500, {"error": f"RuntimeError: {text}"})
        for body in (b"", b"\xff\xfe", b"[" * 100_000, b'{"rows": 3}'):
            status, said = ask(address, body, JSON)
            assert status == 400 and said["error"]
        assert ask(address, b"{}", JSON, "PUT")[0] == 404


HEAD = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"
MALFORMED = {
    "no request": (b"NONSENSE\r\n\r\n", 400),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "a header that is none": (b"POST / HTTP/1.1\r\n" + HEAD + b"foo bar\r\n\r\n", 400),
    "headers too large": (b"POST / HTTP/1.1\r\n" + HEAD + b"X: " + b"a" * 262_200 + b"\r\n\r\n", 431),
    "a length that is no number": (b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: abc\r\n\r\n{}", 400),
    "a negative length": (b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: -5\r\n\r\n{}", 400),
    "two lengths": (b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\nContent-Length: 1\r\n\r\n{}", 400),
    "a length beyond the limit": (b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 99999999999\r\n\r\n{}", 413),
    "a chunk of no length": (
        b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", 400
    ),
    "another transfer encoding": (b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}", 501),
    "a compressed body": (
        b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", 400
    ),
    "another method": (b"DELETE / HTTP/1.1\r\n" + HEAD + b"\r\n", 404),
    "no length": (b"POST / HTTP/1.1\r\n" + HEAD + b"\r\n{}", 400),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_http_is_answered_by_an_error_in_json(what: str) -> None:
    raw, status = MALFORMED[what]
    with serving(lengths) as address:
        place = urlsplit(address)
        with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
            connection.sendall(raw)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == status and answer.getheader("Content-Type") == "application/json"
            assert json.loads(answer.read())["error"]
        assert score(address) == (200, {"scores": [4.0]})  # it goes on


def test_chunks_are_read_and_a_head_has_no_body() -> None:
    body = json.dumps(ROWS).encode()
    raw = b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    raw += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    with serving(lengths) as address:
        place = urlsplit(address)
        with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
            for sent, method, expected in (
                (b"HEAD /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "HEAD", b""),
                (raw, "POST", b'{"scores": [4.0]}'),
            ):
                connection.sendall(sent)
                answer = http.client.HTTPResponse(connection, method=method)
                answer.begin()
                assert answer.read() == expected


TOOLS: list[dict[str, Any]] = [
    {"role": "user", "content": "what is 2 + 2?", "tools": [{"type": "function", "function": {"name": "add"}}]},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]},
    {"role": "tool", "content": "4", "name": "add", "tool_call_id": "1"},
]


def test_tools_of_messages_reach_the_scorer_and_what_nothing_reads_is_refused() -> None:
    seen: list[Any] = []

    def noted(rows: Any) -> list[float]:
        seen.extend(row["messages"] for row in rows)
        return [0.0] * len(rows)

    with serving(noted) as address:
        assert score(address, {"rows": [{"completion": "4", "messages": TOOLS}]})[0] == 200
        assert seen == [TOOLS] and [Message.from_dict(m).as_dict() for m in seen[0]] == TOOLS
        dumped = [{"role": "user", "content": "a", "tool_calls": None, "refusal": None}]  # as clients of OpenAI's do
        assert score(address, {"rows": [{"completion": "4", "messages": dumped}]})[0] == 200
        for value, named in (
            ({"rows": [{"completion": "b", "reference": "c"}]}, "row 0: nothing reads `reference`"),
            ({"rows": [], "system": "be kind"}, "the request: nothing reads `system`"),
            ({"rows": [{"completion": "b", "messages": [TOOLS[0] | {"image": "x"}]}]}, "nothing reads `image`"),
            (
                {"rows": [{"completion": "b", "prompt": "c", "messages": TOOLS[:1]}]},
                "row 0: `prompt` is not the text of its `messages`",
            ),
            (
                {"rows": [{"completion": "b", "messages": [TOOLS[1] | {"tool_calls": "x"}]}]},
                "`tool_calls` of a message",
            ),
            ({"rows": [{"completion": "b", "messages": [TOOLS[0] | {"tools": ["\ud800"]}]}]}, "surrogate"),
        ):
            status, said = score(address, value)
            assert status == 400 and named in said["error"]


def test_a_served_model_renders_the_tools_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.cli import serve_reward
    from pipelines.run import score as scoring

    seen: list[Any] = []

    def noted(asked: Any, answers: Any, finished: Any) -> list[float]:
        seen.append(asked)
        return [0.0]

    monkeypatch.setattr(scoring, "load_scorer", lambda _: noted)
    serve_reward.scorer_of("run")([{"messages": TOOLS, "completion": "4", "finished": True}])
    assert seen == [[[Message.from_dict(m) for m in TOOLS]]] and seen[0][0][1].tool_calls


def test_a_function_is_given_the_prompt_of_messages_that_came_without_one() -> None:
    with serving(lambda rows: [float(len(row["prompt"])) for row in rows]) as address:
        turns = [{"role": "user", "content": "four"}, {"role": "assistant", "content": "sixsix"}]
        rows = [{"completion": "b", "messages": [*turns, {"role": "user", "content": "two"}]}, {"completion": "b"}]
        assert score(address, {"rows": rows}) == (200, {"scores": [3.0, 0.0]})


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/", b'{"rows": [], "rows": [{"completion": "b"}]}', "the key 'rows' is given twice"),
        ("/", b'{"rows": [{"completion": "a", "completion": "b"}]}', "the key 'completion' is given twice"),
        ("/", b'{"rows": "\xff"}', "no UTF-8 text"),
        ("/classify", b'{"input": ["a"], "truncate_prompt_tokens": 5}', "nothing reads `truncate_prompt_tokens`"),
        ("/classify", b'{"input": ["a"], "model": "other"}', "there is no model 'other'; leave it out, or name 'mine'"),
    ],
)
def test_what_would_be_ignored_is_refused(path: str, body: bytes, words: str) -> None:
    with serving(lengths, name="mine") as address:
        status, said = ask(address, body, JSON, path=path)
        assert status == 400 and words in said["error"]
        assert ask(address, b'{"input": ["ab"], "model": "mine"}', JSON, path="/classify")[0] == 200


def test_a_row_that_the_scorer_refuses_is_the_senders_mistake() -> None:
    def refuses(rows: Any) -> list[float]:
        raise RowError("row 2: the template takes no system turn", 1)

    with serving(refuses) as address:
        assert score(address) == (400, {"error": "row 1: the template takes no system turn"})
