"""The client against servers that are slow, wrong, broken and dead, on loopback."""

from __future__ import annotations

import threading
import time

import pytest

from data.common.errors import UserError
from data.common.http_client import RemoteError, Server, Unusable
from tests.support.servers import answering


def client(url, waited=None, **changes):
    return Server(url=url, sleep=(waited if waited is not None else []).append, **changes)


def number(answer):
    if not isinstance(answer, int):
        raise Unusable("it is no number")
    return answer


def test_passing_failures_are_asked_again_with_growing_waits():
    waited = []
    passing = [(500, b"oh"), (429, b"", {"Retry-After": "7"}), (200, b"<html>"), (200, b"{}"), (200, b"3")]
    with answering(*passing) as found:
        assert client(found[0], waited, backoff=1.0).post({"a": "ä"}, number) == 3
    assert len(found[1]) == 5 and found[1][0][1] == '{"a": "ä"}'.encode()
    assert 0.75 <= waited[0] <= 1.25 and waited[1] == 7.0 and 3 <= waited[2] <= 5 and 6 <= waited[3] <= 10


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((503, b"busy now"), "asked 3 times and gave no usable answer; the last: it answered 503: 'busy now'"),
        ((200, b"nan"), "not JSON"),
        ((200, b"[1]"), "it is no number"),
        ((401, b"who?"), "asked once and gave no usable answer; the last: it answered 401"),
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), "asked once"),
    ],
)
def test_what_does_not_pass_is_one_clear_error(answer, said):
    with answering(forever=answer) as (url, _), pytest.raises(RemoteError, match=r"127\.0\.0\.1") as error:
        client(url, retries=2).post({}, number)
    assert said in str(error.value)


def test_a_slow_server_and_a_dead_one():
    with answering(forever=(200, b"1", lambda: time.sleep(0.6))) as (url, asked):
        with pytest.raises(RemoteError, match=r"no answer within 0\.1 s"):
            client(url, timeout=0.1, retries=1).post({}, number)
        assert len(asked) == 2
    with pytest.raises(RemoteError, match="nothing listens there"):
        client(url, retries=1).post({}, number)


def test_a_server_that_dribbles_is_not_waited_for(monkeypatch):
    with answering(forever=(200, b"1" * 1000)) as (url, _):
        clock = iter([0.0, 100.0, 200.0, 300.0])
        monkeypatch.setattr("data.common.http_client.time.monotonic", lambda: next(clock, 400.0))
        with pytest.raises(RemoteError, match="did not finish an answer within 5 s"):
            client(url, timeout=5.0, retries=0).post({}, number)


def test_a_redirect_is_named_but_not_followed():
    with answering(forever=(307, b"<html>", {"Location": "http://127.0.0.1/score"})) as (url, asked):
        with pytest.raises(RemoteError, match=r"answered 307: 'it is at http://127\.0\.0\.1/score; name that address"):
            client(url).post({}, number)
        assert len(asked) == 1


def test_order_is_kept_and_no_more_than_so_many_are_asked_at_once():
    now, most, lock = [0], [0], threading.Lock()

    def busy():
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    with answering(forever=(200, b"1", busy)) as (url, _):
        server = client(url, concurrency=3)
        assert server.post_all(range(12), lambda i: (i, server.post({}, number))) == [(i, 1) for i in range(12)]
    assert 2 <= most[0] <= 3


def test_the_token_is_sent_and_in_no_message(monkeypatch):
    monkeypatch.setenv("MY_JUDGE", "s3cret-value-of-mine")
    with answering(forever=(403, b"no s3cret-value-of-mine here")) as (url, asked):
        server = client(url, token_env="MY_JUDGE")
        server.check()
        with pytest.raises(RemoteError) as error:
            server.post({}, number)
        assert asked[0][0]["Authorization"] == "Bearer s3cret-value-of-mine"
    assert "s3cret" not in str(error.value) and "s3cret" not in repr(server)


def test_addresses_and_tokens_that_cannot_be_used_are_refused_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("MY_JUDGE", raising=False)
    for url, env, said in [
        ("ftp://host/x", None, "http://host:port/path"),
        ("http://me:pw@host/x", None, "token_env"),
        ("http://host/x", "MY_JUDGE", "MY_JUDGE is not set"),
    ]:
        with pytest.raises(UserError, match=said) as error:
            Server(url=url, token_env=env).check()
        assert "pw@" not in str(error.value)
