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
