"""``trivet watch``: the growing report of a run on loopback, from Python's own HTTP server.

Only this machine can ask: it listens on 127.0.0.1 and refuses names of other hosts. It reads the run's files and
writes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data.common.errors import UserError
from models.backbone.artifacts import MANIFEST
from pipelines.cli.exit_codes import until_stopped
from pipelines.workspace.run_folder import RECIPE, RUN

HOST, PORT, EVERY = "127.0.0.1", 8790, 3  # the last in seconds
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


class Handler(BaseHTTPRequestHandler):
    """``/`` is the page, ``/version`` a word that changes with it."""

    run: Path
    made: tuple[str, str] = ("", "")
    lock = threading.Lock()

    def do_GET(self) -> None:
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost"):  # another site's name that points here
            self._answer(403, "only 127.0.0.1 and localhost", "text/plain")
        elif self.path == "/version":
            self._answer(200, version(self.run), "text/plain")
        elif self.path == "/":
            self._answer(200, self._page(), "text/html")
        else:
            self._answer(404, "there is / and /version", "text/plain")

    def _page(self) -> str:
        cls = type(self)
        with cls.lock:
            if cls.made[0] != version(self.run):
                try:
                    cls.made = live_page(self.run)
                except UserError:  # a run that has only just begun
                    wait = REFRESH % (version(self.run), 1000 * EVERY, 1000 * EVERY)
                    return f"<!doctype html><html><body><p>No stage has begun yet.</p>{wait}</html>"
            return cls.made[1]

    def _answer(self, status: int, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence: a line a request is of no use to anybody."""


@contextlib.contextmanager
def serving(run: Path, port: int = 0) -> Iterator[str]:
    """Serve in a thread; yields the address. Port 0 takes a free one.

    Raises:
        UserError: no such folder, or the port is taken.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder; `trivet ls` lists the runs")
    handler = type("RunHandler", (Handler,), {"run": run, "lock": threading.Lock()})
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise UserError(f"--port {port}: cannot be used ({error.strerror}); choose another or 0") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def watch(run: Path, port: int = PORT) -> None:
    """Serve until Ctrl-C."""
    with serving(run, port) as address:
        print(f"{run}: watch it at {address}, on this machine only; Ctrl-C ends it", flush=True)
        until_stopped()
