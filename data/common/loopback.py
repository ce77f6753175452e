"""HTTP on this machine only: waitress behind 127.0.0.1, with the checks that every server of ours makes.

A request must name this machine as its host (a page of another site can point a name of its own here) and must not
come from a page of another site. Bodies are read before a reply is started, and connections that stay silent are
closed, so that half-sent requests hold nothing. What only reads (``GET /health``) waits for no request that computes.
Errors are JSON, those of a request that is no HTTP too. Knows nothing of what is served.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data.common.errors import UserError

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
LARGEST = 64 * 2**20  # bytes of a request
THREADS = 8  # requests that compute at once, as far as their application lets them
BACKLOG = CONNECTIONS = 1000  # a request more waits for one of these to end


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and its type; with ``parts`` the body comes as they do, and ``body`` is empty."""

    status: str
    body: bytes = b""
    kind: str = "application/json"
    parts: Iterator[bytes] | None = None


Application = Callable[[str, str, Mapping[str, Any], bytes], Answer]
"""From method, path, WSGI environment and body to an answer."""


def as_json(status: str, value: Any) -> Answer:
    """An answer in JSON.

    Raises:
        ValueError: numbers that JSON has no form for.
    """
    return Answer(status, json.dumps(value, allow_nan=False).encode())


def _refused(environ: Mapping[str, Any]) -> Answer | None:
    """The answer to a request that names another host or comes from another site's page."""
    host = str(environ.get("HTTP_HOST") or "").rsplit(":", 1)[0]
    origin = environ.get("HTTP_ORIGIN")
    if host not in NAMES:
        return as_json("403 Forbidden", {"error": "only 127.0.0.1 and localhost"})
    if origin is not None and origin != f"http://{environ.get('HTTP_HOST')}":
        return as_json("403 Forbidden", {"error": "no requests from pages of other sites"})
    return None


def _wsgi(application: Application) -> Callable[..., Iterable[bytes]]:
    def handle(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        try:
            answer = _refused(environ) or application(
                environ["REQUEST_METHOD"], environ["PATH_INFO"], environ, environ["wsgi.input"].read()
            )
        except Exception as error:  # a fault of ours is no reason to end the server
            answer = as_json("500 Internal Server Error", {"error": f"{type(error).__name__}: {error}"})
        headers = {"Content-Type": answer.kind, "Cache-Control": "no-store"}
        if answer.parts is None:
            headers["Content-Length"] = str(len(answer.body))
        start(answer.status, list(headers.items()))
        if environ.get("REQUEST_METHOD") == "HEAD":
            return []
        return [answer.body] if answer.parts is None else answer.parts

    return handle


@contextlib.contextmanager
def serving(application: Application, port: int = 0, patience: int = 30) -> Iterator[str]:
    """Serve in a thread; yields the address. Port 0 takes a free one.

    Args:
        patience: seconds after which a silent connection is closed.

    Raises:
        UserError: the port is taken.
    """
    from waitress import create_server, wasyncore
    from waitress.channel import HTTPChannel
    from waitress.task import ErrorTask, ThreadedTaskDispatcher

    class JsonError(ErrorTask):
        """What waitress says of a request that no application sees."""

        def execute(self) -> None:
            error = self.request.error
            answer = as_json(f"{error.code} {error.reason}", {"error": f"{error.reason}: {error.body}"})
            self.status = answer.status
            self.response_headers.append(("Content-Type", answer.kind))
            self.set_close_on_finish()
            self.content_length = len(answer.body)
            self.write(answer.body)

    class Channel(HTTPChannel):
        error_task_class = JsonError

    logging.getLogger("waitress").setLevel(logging.CRITICAL)  # a line for each request that waits helps nobody
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise UserError(f"--port {port}: cannot be used ({error.strerror}); choose another or 0") from error
    channels: dict[int, Any] = {}
    server = create_server(
        _wsgi(application),
        map=channels,
        sockets=[listening],
        threads=THREADS,
        backlog=BACKLOG,
        connection_limit=CONNECTIONS,
        channel_timeout=patience,
        cleanup_interval=max(1, patience // 4),
        max_request_body_size=LARGEST,
        asyncore_use_poll=True,
        channel_request_lookahead=1,  # without it nobody hears of a client that leaves
        ident="trivet",
    )
    server.channel_class = Channel
    others, reading = server.task_dispatcher, ThreadedTaskDispatcher()
    reading.set_thread_count(1)

    def add_task(channel: Any) -> None:
        request = channel.requests[0]
        quick = request.error is not None or request.command in ("GET", "HEAD")
        (reading if quick else others).add_task(channel)

    server.add_task = add_task
    stopping = threading.Event()

    def loop() -> None:
        while not stopping.is_set():
            wasyncore.loop(timeout=0.2, use_poll=True, map=channels, count=1)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}/"
    finally:
        stopping.set()
        thread.join(5)
        for dispatcher in (others, reading):
            dispatcher.shutdown(timeout=1)
        wasyncore.close_all(channels, ignore_all=True)
