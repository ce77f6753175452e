"""A server on this machine: what is no HTTP is answered in JSON as well."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest

from data.common.loopback import THREADS, as_json, serving

MALFORMED = {
    "no HTTP": b"hello there\r\n\r\n",
    "no request line": b"\x00\x01\x02\r\n\r\n",
    "a length that is none": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "an unknown coding": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: odd\r\n\r\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: localhost\r\n  Odd\r\n\r\n",
    "a space in a header": b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "a broken chunk": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    "headers too long": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
    "a body too long": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\nx",
}


@pytest.fixture(scope="module")
def address():
    with serving(lambda *_: as_json("200 OK", {"fine": True})) as found:
        yield urlsplit(found)


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_request_is_answered_in_json(what: str, address) -> None:
    with socket.create_connection((address.hostname, address.port), timeout=10) as sent:
        sent.sendall(MALFORMED[what])
        reply = b""
        while b"}" not in reply and (part := sent.recv(65536)):
            reply += part
    head, _, body = reply.partition(b"\r\n\r\n")
    assert int(head.split()[1]) >= 400 and b"application/json" in head, head
    assert json.loads(body)["error"]


def test_what_only_reads_waits_for_no_request_that_computes() -> None:
    """Whoever watches a server by ``/health`` would take one whose every thread computes for dead."""
    busy, go_on = threading.Semaphore(0), threading.Event()

    def application(method: str, *_: object):
        if method == "POST":
            busy.release()
            assert go_on.wait(60)
        return as_json("200 OK", {"method": method})

    def asked(address: str, method: str) -> dict[str, str]:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        connection.request(method, "/", headers={"Host": "localhost"})
        return json.loads(connection.getresponse().read())

    found: list[dict[str, str]] = []
    with serving(application) as address:
        posts = [
            threading.Thread(target=lambda: found.append(asked(address, "POST"))) for _ in range(THREADS + 3)
        ]  # more than there are threads: some wait
        for post in posts:
            post.start()
        for _ in range(THREADS):
            assert busy.acquire(timeout=60)
        assert asked(address, "GET") == {"method": "GET"} and not found
        go_on.set()
        for post in posts:
            post.join(60)
    assert found == [{"method": "POST"}] * (THREADS + 3)
