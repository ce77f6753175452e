"""A server on loopback that answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def rating(rule):
    """A chat endpoint that says ``rule(question)``; yields the API's address and the bodies of the requests."""
    asked, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                asked.append(body)
            said = rule(body["messages"][-1]["content"])
            status = said if isinstance(said, int) else 200
            usage = {"prompt_tokens": 7, "completion_tokens": 2}
            text = json.dumps({"choices": [{"message": {"content": said}}], "usage": usage}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(text)

        def log_message(self, *_):
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def answering(*answers, forever=None):
    """A server that gives these answers in turn, then ``forever``; yields its address and what it was asked."""
    left, asked, lock = list(answers), [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                asked.append((dict(self.headers), body, time.monotonic()))
                answer = left.pop(0) if left else forever
            status, text, *more = answer
            for what in more:
                if callable(what):
                    what()
            self.send_response(status)
            for what in more:
                if isinstance(what, dict):
                    for name, value in what.items():
                        self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(text)

        def log_message(self, *_):
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", asked
    finally:
        server.shutdown()
        server.server_close()
