"""How long a browser takes to open the report of 10,000 samples, in real time.

python benchmarks/report_opening.py [--samples 10000] [--times 5] [--report FILE]; needs Chromium. Each opening is in
a fresh browser with an empty profile and cache. Prints milliseconds since navigation began: DOMContentLoaded, first
contentful paint, all answers unpacked and searchable ("ready"); and those of one search over all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--window-size=1280,760", "--remote-debugging-port=0", "--enable-logging=stderr", "--log-level=0"]  # fmt: skip
# Appended to a copy of the page; the report itself is not changed.
PROBE = """<script>
(async () => {
  const wait = ms => new Promise(done => setTimeout(done, ms));
  while (!document.documentElement.dataset.ready) await wait(5);
  while (!performance.getEntriesByName("first-contentful-paint").length) await wait(5);
  const [nav] = performance.getEntriesByType("navigation"), search = document.getElementById("search");
  const begun = performance.now();
  search.value = "e"; search.dispatchEvent(new Event("input"));
  console.log("OPENED " + JSON.stringify({
    dom: nav.domContentLoadedEventEnd, paint: performance.getEntriesByName("first-contentful-paint")[0].startTime,
    ready: +document.documentElement.dataset.ready, search: performance.now() - begun}));
})();
</script></body>"""


def made_up(folder: Path, samples: int) -> Path:
    """The report of a made-up run with that many rows of answers that are hard to pack."""
    from pipelines.report.page import write_report
    from tests.support.finished_run import make_run, many_rows

    run = make_run(folder / "demo")
    lines = "".join(json.dumps(row) + "\n" for row in many_rows(samples))
    (run / "evaluation" / "samples.jsonl").write_text(lines, encoding="utf-8")
    return write_report(run)


def opened(page: Path, limit: float = 60.0) -> dict[str, float]:
    """Milliseconds of one opening in a fresh browser."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", page.as_uri()]
        browser = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        late = threading.Timer(limit, lambda: os.killpg(browser.pid, signal.SIGKILL))
        late.start()
        try:
            for line in browser.stderr or ():
                if "OPENED " in line:
                    found = line.split("OPENED ", 1)[1]
                    return dict(json.JSONDecoder().raw_decode(found.replace('\\"', '"'))[0])
            raise SystemExit(f"the page was not ready after {limit:.0f} s")
        finally:
            late.cancel()
            if browser.poll() is None:
                os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--report", type=Path, help="instead of a made-up one")
    given = parser.parse_args()
    if CHROMIUM is None:
        raise SystemExit("Chromium is not installed (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        page = given.report or made_up(Path(folder), given.samples)
        copy = Path(folder) / "page.html"
        copy.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE, 1), encoding="utf-8")
        print(f"{page.stat().st_size / 2**20:.2f} MB; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        rows = [opened(copy) for _ in range(given.times)]
    for name in ("dom", "paint", "ready", "search"):
        values = sorted(r[name] for r in rows)
        print(f"{name:7} median {statistics.median(values):6.0f} ms, from {values[0]:.0f} to {values[-1]:.0f}")


if __name__ == "__main__":
    main()
