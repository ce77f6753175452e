"""Who may speak with the pages: this machine's browser that was given the address, and no page of another site.

The same checks as ``data.common.loopback`` makes (host, origin), for requests and websockets, and a token besides:
these pages start processes, which other users of this machine must not.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from data.common.loopback import NAMES

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
NO_FRAMES = (b"content-security-policy", b"frame-ancestors 'self'")


def new_token() -> str:
    """One that cannot be guessed."""
    return secrets.token_urlsafe(24)


class Guard:
    """An ASGI application that asks another one only for requests that may.

    Args:
        app: what is guarded.
        port: where it is served.
        token: what the address carries once; a cookie keeps it.
    """

    def __init__(self, app: App, port: int, token: str) -> None:
        self.app, self.port, self.token = app, port, token
        self.hosts = {f"{name}:{port}" for name in NAMES}

    @property
    def cookie(self) -> str:
        """Its name: cookies know no ports."""
        return f"trivet-ui-{self.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._foreign(headers)
        if not refused and self._carries_token(scope):
            return await self._let_in(send)
        if not refused and not hmac.compare_digest(_cookie(headers, self.cookie).encode(), self.token.encode()):
            refused = "open the address that `trivet ui` has printed, with its token"
        if not refused:
            return await self.app(scope, receive, _framed(send) if scope["type"] == "http" else send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": refused})
        await _text(send, 403, refused)

    def _foreign(self, headers: dict[bytes, str]) -> str:
        """Why a request is none of our pages'; '' where it is."""
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if host not in self.hosts:
            return "only 127.0.0.1 and localhost"
        if origin is not None and origin != f"http://{host}":
            return "no requests from pages of other sites"
        return ""

    def _carries_token(self, scope: Scope) -> bool:
        """Whether the page is opened by the address that was printed."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            return False
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        return hmac.compare_digest(given.encode(), self.token.encode())

    async def _let_in(self, send: Send) -> None:
        """Give the cookie, and the page's address without the token."""
        cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Lax; Path=/"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
        await _text(send, 303, "", headers)


def _cookie(headers: dict[bytes, str], name: str) -> str:
    try:
        found = SimpleCookie(headers.get(b"cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


async def _text(send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    kind = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": kind + (headers or [])})
    await send({"type": "http.response.body", "body": text.encode()})


def _framed(send: Send) -> Send:
    """Sends on, with a header by which no other site shows the page in a frame, where there is none of the kind."""

    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            if not any(name.lower() == NO_FRAMES[0] for name, _ in headers):
                message = {**message, "headers": [*headers, NO_FRAMES]}
        await send(message)

    return wrapped
