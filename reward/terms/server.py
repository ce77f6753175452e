"""A scorer behind an address on this machine: the server side of both protocols in ``reward.terms.remote``.

From Python's own HTTP server; it listens on 127.0.0.1 only and refuses names of other hosts. It scores one request at a
time, since a model is one. It knows nothing of what gives the scores.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from data.common.errors import UserError

HOST, PORT = "127.0.0.1", 8791
LARGEST = 64 * 2**20  # bytes of a request
ROW = {"prompt": str, "completion": str, "messages": list, "finished": bool}
ROLES = ("user", "assistant", "system")
Scorer = Callable[[Sequence[Mapping[str, Any]]], Sequence[float]]


class Handler(BaseHTTPRequestHandler):
    """``POST /`` is trivet's protocol, ``POST /classify`` the classifier's, ``GET /health`` an "ok"."""

    scorer: Scorer
    lock: threading.Lock
    name: str
    error_message_format, error_content_type = '{"error": "%(message)s"}', "application/json"

    def do_GET(self) -> None:
        self._answer(*((200, {"status": "ok", "name": self.name}) if self.path == "/health" else NOT_FOUND))

    def do_POST(self) -> None:
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host not in (HOST, "localhost"):  # another site's name that points here
            self._answer(403, {"error": "only 127.0.0.1 and localhost"})
        elif self.path in ("/", "/score"):
            self._scored(lambda body: _rows(body), lambda scores: {"scores": scores})
        elif self.path in ("/classify", "/v1/classify"):
            self._scored(lambda body: _inputs(body), self._classes)
        else:
            self._answer(*NOT_FOUND)

    def _scored(self, read: Callable[[Any], list[dict[str, Any]]], write: Callable[[list[float]], Any]) -> None:
        try:
            size = int(self.headers.get("Content-Length") or 0)
            if not 0 < size <= LARGEST:
                raise UserError(f"send JSON of at most {LARGEST >> 20} MiB with its Content-Length")
            rows = read(json.loads(self.rfile.read(size)))
        except UserError as error:
            self._answer(400, {"error": f"{error}"})
        except (ValueError, RecursionError) as error:
            self._answer(400, {"error": f"not JSON: {error}"})
        else:
            self._answer(*self._result(rows, write))

    def _result(self, rows: list[dict[str, Any]], write: Callable[[list[float]], Any]) -> tuple[int, Any]:
        """Whatever the scorer fails with is the server's failure, which may pass."""
        try:
            with self.lock:
                return 200, write([float(s) for s in self.scorer(rows)] if rows else [])
        except UserError as error:
            return 500, {"error": f"{error}"}
        except Exception as error:
            return 500, {"error": f"{type(error).__name__}: {error}"}

    def _classes(self, scores: list[float]) -> dict[str, Any]:
        rows = [{"index": i, "label": "reward", "probs": [s], "num_classes": 1} for i, s in enumerate(scores)]
        return {"object": "list", "model": self.name, "data": rows}

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence: a line a request is of no use to anybody."""


NOT_FOUND = (404, {"error": "there is POST / (trivet's protocol), POST /classify and GET /health"})


def _rows(body: Any) -> list[dict[str, Any]]:
    rows = body.get("rows") if isinstance(body, dict) else None
    if not isinstance(rows, list):
        raise UserError('send {"rows": [{"prompt": "...", "completion": "..."}, ...]}')
    made = []
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("completion"), str):
            raise UserError(f"row {i} is no object with a `completion`")
        wrong = [k for k, kind in ROW.items() if k in row and not isinstance(row[k], kind)]
        if wrong:
            raise UserError(f"row {i}: `{wrong[0]}` should be {ROW[wrong[0]].__name__}")
        prompt = row.get("prompt", "")
        messages = row.get("messages") or ([{"role": "user", "content": prompt}] if prompt else [])
        turns = (m if isinstance(m, dict) else {} for m in messages)
        if not all(m.get("role") in ROLES and isinstance(m.get("content"), str) for m in turns):
            raise UserError(f"row {i}: a message is no object with a role ({', '.join(ROLES)}) and content, a text")
        made.append({"prompt": prompt, "finished": True, **row, "messages": messages})
    return made


def _inputs(body: Any) -> list[dict[str, Any]]:
    """Texts of the classifier's protocol: what stands before the last empty line is the prompt."""
    texts = body.get("input") if isinstance(body, dict) else None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise UserError('send {"input": ["text", ...]}')
    parts = [t.rpartition("\n\n") for t in texts]
    return _rows({"rows": [{"prompt": before, "completion": after} for before, _, after in parts]})


@contextlib.contextmanager
def serving(scorer: Scorer, port: int = 0, name: str = "reward") -> Iterator[str]:
    """Serve in a thread; yields the address. Port 0 takes a free one.

    Args:
        scorer: from rows (``prompt``, ``completion``, ``messages``, ``finished``) to one number each.

    Raises:
        UserError: the port is taken.
    """
    own = {"scorer": staticmethod(scorer), "lock": threading.Lock(), "name": name}
    handler = type("RewardHandler", (Handler,), own)
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise UserError(f"--port {port}: cannot be used ({error.strerror}); choose another or 0") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
