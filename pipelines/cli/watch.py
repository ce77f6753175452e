"""``trivet watch``: the growing report of a run, on this machine only (``data.common.loopback``).

It reads the run's files and writes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.common import loopback
from data.common.errors import UserError
from data.common.loopback import Answer
from models.backbone.artifacts import MANIFEST
from pipelines.cli.exit_codes import until_stopped
from pipelines.workspace.run_folder import RECIPE, RUN

PORT, EVERY = 8790, 3  # the latter in seconds
CSP = "default-src 'none'"
REFRESH = """<script>
(() => {
  const place = "trivet-scroll", version = "%s";
  try { scrollTo(0, +sessionStorage.getItem(place) || 0); } catch {}
  const ask = async () => {
    try {
      const now = await (await fetch("/version")).text();
      const typing = document.activeElement && document.activeElement.matches("input, select");
      if (now !== version && !typing) {
        try { sessionStorage.setItem(place, scrollY); } catch {}
        location.reload();
        return;
      }
    } catch {}
    setTimeout(ask, %d);
  };
  setTimeout(ask, %d);
})();
</script>
</body>"""


def version(run: Path) -> str:
    """Changes whenever a file that the report reads does."""
    names = (RUN, RECIPE, "*/metrics.jsonl", f"*/{MANIFEST}", "evaluation/*.json*")
    files = sorted({f for name in names for f in run.glob(name)})
    stats = []
    for file in files:
        with contextlib.suppress(OSError):  # a stage that was just published
            found = file.stat()
            stats.append(f"{file.relative_to(run)} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(stats).encode()).hexdigest()[:16]


def live_page(run: Path) -> tuple[str, str]:
    """``(version, page)``: the report with a script that asks for a newer one."""
    from pipelines.report.page import page_of, read_run

    now = version(run)
    page = page_of(read_run(run))
    page = page.replace(CSP, CSP + "; connect-src 'self'", 1)
    head, _, _ = page.rpartition("</body>")
    return now, head + REFRESH % (now, 1000 * EVERY, 1000 * EVERY) + "\n</html>\n"


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
                    wait = REFRESH % (version(self.run), 1000 * EVERY, 1000 * EVERY)
                    return f"<!doctype html><html><body><p>No stage has started yet.</p>{wait}</html>"
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
