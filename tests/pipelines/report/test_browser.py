"""How a real browser takes the report of a made-up run."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipelines.report.compare import write_comparison
from pipelines.report.page import write_report
from tests.support.finished_run import embedded, many_rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_ten_thousand_samples_open_from_disk(run: Path, tmp_path: Path):
    """Size, and that all of them are there; docs/how-to/report.md has the time measured."""
    shutil.copytree(run, tmp_path / "demo")
    lines = "".join(json.dumps(r) + "\n" for r in many_rows(10_000))
    (tmp_path / "demo" / "evaluation" / "samples.jsonl").write_text(lines, encoding="utf-8")
    page = write_report(tmp_path / "demo")
    assert page.stat().st_size < 10 * 2**20
    found = _chromium(page, "--dump-dom", "--enable-logging=stderr", "--log-level=0")
    assert re.search(r'id="count"[^>]*>10,000 of 10,000', found.stdout) and "CONSOLE" not in found.stderr


def _chromium(page: Path, *options: str, mark: str = "all") -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    return subprocess.run(
        [CHROMIUM, *common, profile, "--virtual-time-budget=20000", *options, f"{page.as_uri()}#{mark}"],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_a_comparison_is_drawn_without_a_complaint(run: Path, tmp_path: Path):
    """On a narrow screen: what fits there fits everywhere."""
    other = shutil.copytree(run, tmp_path / "other")
    page = write_comparison([run, other], tmp_path / "comparison.html")
    found = _chromium(page, "--dump-dom", "--enable-logging=stderr", "--log-level=0", "--window-size=500,900")
    assert [line for line in found.stderr.splitlines() if "CONSOLE" in line] == []
    assert f'data-drawn="{len(embedded(page.read_text(encoding="utf-8"), "charts"))}"' in found.stdout
    assert (fits := re.search(r'data-overflow="(-?\d+)"', found.stdout)) and int(fits[1]) <= 0


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
@pytest.mark.parametrize(("mark", "width"), [("all", 1280), ("all-dark", 1280), ("all", 500)])
def test_a_real_browser_draws_every_chart_without_a_complaint(
    run: Path, page: str, tmp_path: Path, mark: str, width: int
):
    """Light, dark, and narrow (500 pixels is the least that Chromium's window takes)."""
    shutil.copy(run / "report.html", tmp_path / "report.html")
    options = ["--dump-dom", "--enable-logging=stderr", "--log-level=0", f"--window-size={width},900"]
    found = _chromium(tmp_path / "report.html", *options, mark=mark)
    complaints = [line for line in found.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    count = len(embedded(page, "charts"))
    assert f'data-drawn="{count}"' in found.stdout and "data-ready=" in found.stdout
    assert found.stdout.count('class="main-svg"') >= 2 * count
    assert found.stdout.count('class="card row"') == 12 and "<mark>" in found.stdout
    assert ('data-theme="dark"' in found.stdout[: found.stdout.index("<head>")]) == ("dark" in mark)
    # nothing sticks out: a page wider than its window scrolls sideways on a phone
    assert (fits := re.search(r'data-overflow="(-?\d+)"', found.stdout)) and int(fits[1]) <= 0


TRIES = """<script>
(async () => {
  const root = document.documentElement, $ = id => document.getElementById(id), tried = {};
  while (!root.dataset.ready) await new Promise(done => setTimeout(done, 20));
  const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input")); };
  const rows = () => [...document.querySelectorAll("#rows .row")];
  const rewards = row => Object.fromEntries([...row.querySelectorAll("h4")].map(h =>
    [h.childNodes[1].textContent, +h.querySelector("small").textContent.match(/reward (-?[0-9.]+)/)[1]]));
  for (const order of ["best", "worst", "change"]) { set("sort", order); tried[order] = rows().map(rewards); }
  set("sort", ""); set("search", "WHALE (4)");
  tried.found = [$("count").textContent, ...rows().map(r => r.querySelector(".prompt").textContent)];
  tried.answer = [...rows()[0].querySelectorAll(".text")].map(t => t.textContent);
  const marks = column => [...column.querySelectorAll("mark")].map(m => m.textContent.trim());
  tried.marks = [...rows()[0].querySelectorAll(".cols > div")].map(marks);
  set("search", "no such word"); tried.none = [$("count").textContent, rows().length];
  root.dataset.tried = JSON.stringify(tried);
})();
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_answers_are_searched_ordered_and_marked(run: Path, page: str, tmp_path: Path):
    """In the browser, against the same done here with samples.jsonl."""
    copy = tmp_path / "report.html"
    copy.write_text(page.replace("</body>", TRIES, 1), encoding="utf-8")
    found = _chromium(copy, "--dump-dom", "--enable-logging=stderr", "--log-level=0", mark="")
    told = re.search(r'data-tried="([^"]*)"', found.stdout)
    assert told and "CONSOLE" not in found.stderr
    tried = json.loads(html.unescape(told[1]))
    lines = (run / "evaluation" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [r for r in map(json.loads, lines) if r["decoding"] == "sampled"]
    reward = [{k: round(r["systems"][k]["reward"], 3) for k in ("base", "sft", "ppo")} for r in rows]
    orders = {
        "best": lambda r: -r["ppo"],
        "worst": lambda r: r["ppo"],
        "change": lambda r: -abs(r["ppo"] - r["sft"]),
    }
    for order, key in orders.items():
        wanted = [[r[k] for k in ("base", "sft", "ppo")] for r in sorted(reward, key=key)[:12]]
        shown = [[r[k] for k in ("Base", "SFT", "PPO")] for r in tried[order]]
        assert [x for r in shown for x in r] == pytest.approx([x for r in wanted for x in r], abs=0.0051), order
    assert tried["found"][0] == "1 of 512" and "whale" in tried["found"][1] and "(4)" in tried["found"][1]
    sft, ppo = (rows[4]["systems"][k]["response"].split() for k in ("sft", "ppo"))
    assert tried["answer"][2].split() == ppo and tried["marks"][:2] == [[], []]
    marked = [w for m in tried["marks"][2] for w in m.split()]
    assert set(ppo) - set(sft) <= set(marked) and len(marked) == len(ppo) - _common(sft, ppo)
    assert tried["none"] == ["0 of 512", 0]


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]
