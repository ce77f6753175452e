"""``trivet watch``: the growing report of a run, on this machine only (``data.common.loopback``).

It reads the run's files and writes nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.common import loopback
from data.common.errors import UserError
from data.common.loopback import Answer
from pipelines.cli.exit_codes import until_stopped
from pipelines.report.live import live_page, version, waiting_page

PORT = 8790


class Application:
    """``/`` is the page, ``/version`` a word that changes with it."""

    def __init__(self, run: Path) -> None:
        self.run, self.made, self.lock = run, ("", ""), threading.Lock()

    def __call__(self, method: str, path: str, environ: Mapping[str, Any], body: bytes) -> Answer:
        if method == "GET" and path == "/version":
            return _text("200 OK", version(self.run), "text/plain")
        if method == "GET" and path == "/":
            return _text("200 OK", self._page(), "text/html")
        return _text("404 Not Found", "there is / and /version", "text/plain")

    def _page(self) -> str:
        with self.lock:
            if self.made[0] != version(self.run):
                try:
                    self.made = live_page(self.run)
                except UserError:  # a run that has only just started
                    return waiting_page(self.run)
            return self.made[1]


def _text(status: str, text: str, kind: str) -> Answer:
    return Answer(status, text.encode(), f"{kind}; charset=utf-8")


@contextlib.contextmanager
def serving(run: Path, port: int = 0) -> Iterator[str]:
    """Serve in a thread; yields the address. Port 0 takes a free one.

    Raises:
        UserError: no such folder, or the port is taken.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; `trivet ls` lists the runs")
    with loopback.serving(Application(run), port) as address:
        yield address


def watch(run: Path, port: int = PORT) -> None:
    """Serve until Ctrl-C."""
    with serving(run, port) as address:
        print(f"{run}: watch it at {address}, on this machine only; Ctrl-C ends it", flush=True)
        until_stopped()
