"""The report of a run that grows: the page with a script that asks for a newer one, and what changes when it does."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from models.backbone.artifacts import MANIFEST
from pipelines.workspace.kept_recipes import FOLDER
from pipelines.workspace.run_folder import RECIPE, RUN

EVERY = 3  # seconds
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
    names = (RUN, RECIPE, f"{FOLDER}/*.json", "*/metrics.jsonl", f"*/{MANIFEST}", "evaluation/*.json*")
    files = sorted({f for name in names for f in run.glob(name)})
    stats = []
    for file in files:
        with contextlib.suppress(OSError):  # a stage that was just published
            found = file.stat()
            stats.append(f"{file.relative_to(run)} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(stats).encode()).hexdigest()[:16]


def live_page(run: Path) -> tuple[str, str]:
    """``(version, page)``: the report with a script that asks for a newer one."""
    from pipelines.report.page import page_of
    from pipelines.report.run_files import read_run

    now = version(run)
    page = page_of(read_run(run))
    page = page.replace(CSP, CSP + "; connect-src 'self'", 1)
    head, _, _ = page.rpartition("</body>")
    return now, head + REFRESH % (now, 1000 * EVERY, 1000 * EVERY) + "\n</html>\n"


def waiting_page(run: Path) -> str:
    """What stands in place of the report of a run that has only just started."""
    wait = REFRESH % (version(run), 1000 * EVERY, 1000 * EVERY)
    return f"<!doctype html><html><body><p>No stage has started yet.</p>{wait}</html>"
