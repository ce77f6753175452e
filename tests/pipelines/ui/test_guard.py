"""Who may speak with the pages: by host, origin and token, for requests and websockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pipelines.ui.guard import Guard, new_token

HOST, TOKEN = "127.0.0.1:8780", "the-token"
COOKIE = f"other=1; trivet-ui-8780={TOKEN}"


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """What is guarded; says that it was reached."""
    if scope["type"] == "websocket":
        return await send({"type": "websocket.accept"})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
    await send({"type": "http.response.body", "body": b"inside"})


def sent(kind: str = "http", path: str = "/", query: str = "", method: str = "GET", **headers: str) -> list[Any]:
    scope = {
        "type": kind,
        "path": path,
        "method": method,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }
    out: list[Any] = []

    async def send(message: Any) -> None:
        out.append(message)

    asyncio.run(Guard(behind, 8780, TOKEN)(scope, None, send))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("host", [HOST, "localhost:8780"])
def test_the_cookie_lets_in(host: str) -> None:
    for origin in ({}, {"origin": f"http://{host}"}):
        found = sent(host=host, cookie=COOKIE, **origin)
        assert found[0]["status"] == 200 and found[1]["body"] == b"inside"
        assert (b"content-security-policy", b"frame-ancestors 'self'") in found[0]["headers"]
        assert sent("websocket", host=host, cookie=COOKIE, **origin) == [{"type": "websocket.accept"}]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": HOST},
        {"host": HOST, "cookie": "trivet-ui-8780=wrong"},
        {"host": HOST, "cookie": f"trivet-ui-9999={TOKEN}"},
        {"host": HOST, "cookie": "trivet-ui-8780=\xe9"},
        {"host": "evil.example:8780", "cookie": COOKIE},
        {"host": "127.0.0.1:9999", "cookie": COOKIE},
        {"host": "127.0.0.1", "cookie": COOKIE},
        {"cookie": COOKIE},
        {"host": HOST, "cookie": COOKIE, "origin": "http://evil.example"},
        {"host": HOST, "cookie": COOKIE, "origin": "null"},
        {"host": HOST, "cookie": COOKIE, "origin": "http://localhost:8780"},
        {"host": HOST, "cookie": COOKIE, "origin": "https://127.0.0.1:8780"},
    ],
)
def test_everything_else_stays_outside(headers: dict[str, str]) -> None:
    for method in ("GET", "POST"):
        found = sent(method=method, **headers)
        assert found[0]["status"] == 403 and b"inside" not in found[1]["body"]
    assert sent("websocket", **headers)[0]["type"] == "websocket.close"


def test_the_address_with_the_token_gives_the_cookie() -> None:
    start = sent(query=f"token={TOKEN}", host=HOST)[0]
    headers = dict(start["headers"])
    assert start["status"] == 303 and headers[b"location"] == b"/"
    assert headers[b"set-cookie"] == f"trivet-ui-8780={TOKEN}; HttpOnly; SameSite=Lax; Path=/".encode()


@pytest.mark.parametrize(
    ("path", "query", "method", "headers"),
    [
        ("/", "token=wrong", "GET", {"host": HOST}),
        ("/", f"token={TOKEN}", "GET", {"host": "evil.example:8780"}),
        ("/", f"token={TOKEN}", "GET", {"host": HOST, "origin": "http://evil.example"}),
        ("/", f"token={TOKEN}", "POST", {"host": HOST}),
        ("/runs", f"token={TOKEN}", "GET", {"host": HOST}),
        ("/", "token=%C3%A9", "GET", {"host": HOST}),
    ],
)
def test_no_other_request_gets_a_cookie(path: str, query: str, method: str, headers: dict[str, str]) -> None:
    start = sent(path=path, query=query, method=method, **headers)[0]
    assert start["status"] == 403 and b"set-cookie" not in dict(start["headers"])


def test_tokens_are_long_and_each_another() -> None:
    assert len({new_token() for _ in range(100)}) == 100 and len(new_token()) >= 32
