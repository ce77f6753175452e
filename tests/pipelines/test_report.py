"""The report of a made-up run: complete, partial and hostile ones, and how a real browser takes it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import UserError
from evaluation.results import SystemAnswers, assemble, samples_rows
from pipelines.report import read_run, view, write_report
from pipelines.report_samples import PACKED, chosen_samples, packed_samples, unpacked

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STAGES = ("pretrain", "sft", "rankings", "reward", "ppo", "evaluate")
OPENERS = ("once upon a time", "one sunny morning", "late at night", "in the old days")


def _answers(name: str, level: float, n: int, decoding: Any = "sampled") -> SystemAnswers:
    """Plausible stories whose scores sit around ``level``; better systems mention more of the prompt."""
    rng = np.random.default_rng(len(name) + int(10 * level) + 50)
    nouns = [("fox", "drum", "cave"), ("whale", "lamp", "harbour"), ("goat", "kite", "valley")]
    texts, prompts = [], []
    for i in range(n):
        animal, thing, place = nouns[i % 3]
        prompts.append(f"tell a {('happy', 'sad')[i % 2]} story with a {animal} , a {thing} and a {place} . ({i})")
        used = [w for w in (animal, thing, place) if rng.random() < 0.3 + level / 12] or ["dog"]
        opener = OPENERS[int(rng.integers(4 if level < 4 else 2))]
        texts.append(f"{opener} there was a {' and a '.join(used)} . all danced and sang .")
    gold = level + rng.normal(0, 2.2, size=n)
    return SystemAnswers(
        name=name,
        decoding=decoding,
        prompts=prompts,
        categories=["happy story" if i % 2 == 0 else "sad story" for i in range(n)],
        responses=texts,
        token_ids=[[hash_word(w) for w in t.split()] for t in texts],
        finished=[bool(rng.random() > 0.04) for _ in range(n)],
        reward=list(gold / 5 + rng.normal(0, 0.4, size=n)),
        gold=list(gold),
        kl=list(np.abs(rng.normal(0.9 * level, 0.8, size=n))) if name != "sft" else [0.0] * n,
    )


def hash_word(word: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(word)) % 997


def _curves(path: Path) -> None:
    rng = np.random.default_rng(3)
    rows: dict[str, list[dict[str, float]]] = {
        "pretrain": [{"step": i, "loss": 5.4 * math.exp(-i / 60) + 0.43 + rng.normal(0, 0.02)} for i in range(1, 451)],
        "sft": [
            {"step": i, "loss": 0.9 * math.exp(-i / 25) + 0.5, "mean_token_accuracy": 0.85 - 0.3 * math.exp(-i / 25)}
            for i in range(1, 95)
        ],
        "reward": [
            {"step": i, "loss": 0.69 - 0.2 * (1 - math.exp(-i / 50)), "pair_accuracy": 0.78 - 0.28 * math.exp(-i / 40)}
            for i in range(1, 189)
        ],
        "ppo": [
            {
                "step": i,
                "objective/scores": 1.05 * (1 - math.exp(-i / 12)) + rng.normal(0, 0.05),
                "objective/kl": 4.1 * (1 - math.exp(-i / 15)) + abs(rng.normal(0, 0.1)),
                "objective/entropy": 0.9 - 0.4 * (1 - math.exp(-i / 20)),
                "rollout/length": 31 + 2 * math.sin(i / 6),
                "rollout/truncated_fraction": max(0.0, 0.06 - i / 900),
                "ppo/value/explained_variance": 0.72 * (1 - math.exp(-i / 8)) - 0.05,
                "ppo/policy/clipfrac": 0.12 + rng.normal(0, 0.02),
                "ppo/policy/approxkl": 0.02 + abs(rng.normal(0, 0.003)),
            }
            for i in range(1, 41)
        ],
    }
    for stage, found in rows.items():
        (path / stage / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")


def make_run(path: Path, n: int = 256) -> Path:
    """A finished demo run with plausible numbers."""
    seconds = dict(zip(STAGES, (52.1, 15.4, 20.2, 46.0, 70.3, 8.9), strict=True))
    folders = {s: "evaluation" if s == "evaluate" else s for s in STAGES}
    keys = {s: f"{i + 1}{'a3f09c7be25d' * 5}"[:64] for i, s in enumerate(STAGES)}
    parents: dict[str, list[str]] = {
        "sft": ["pretrain"],
        "rankings": ["pretrain", "sft"],
        "reward": ["sft", "rankings"],
    }
    parents |= {"ppo": ["sft", "reward"], "evaluate": ["sft", "reward", "ppo"]}
    metrics: dict[str, dict[str, Any]] = {
        "pretrain": {"documents": 10_800, "vocabulary": 245, "parameters": 244_800, "held_out_nll": 0.438},
        "sft": {"rows": 1_362, "dropped": 0, "supervised_tokens": 44_120, "held_out_nll": 0.611},
        "rankings": {"rankings": 880, "held_out_rankings": 120, "labels_agree_with_annotator": 0.942},
        "reward": {"pair_accuracy": 0.733, "pair_accuracy_ci95": [0.701, 0.764], "pairs": 1_204, "centre": 0.12},
        "ppo": {"updates": 40, "prompts": 2_310, "skipped_steps": 0},
        "evaluate": {"prompts": n},
    }
    for s in STAGES:
        (path / folders[s]).mkdir(parents=True)
        manifest = {"key": keys[s], "parents": {p: keys[p] for p in parents.get(s, [])}, "metrics": metrics[s]}
        (path / folders[s] / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    stages = {
        s: {"key": keys[s], "status": "done", "artifact": folders[s], "seconds": seconds[s], "peak_memory": 740 * 2**20}
        for s in STAGES
    }
    (path / "run.json").write_text(json.dumps({"name": "demo", "seed": 0, "stages": stages}), encoding="utf-8")
    (path / "recipe.yaml").write_text("name: demo\nseed: 0\nppo:\n  kl_coef: 0.1\n  updates: 40\n", encoding="utf-8")
    _curves(path)
    levels: dict[str, float] = {"base": -0.5, "sft": 2.2, "ppo": 6.1}
    systems = [_answers(name, level, n) for name, level in levels.items()]
    systems += [_answers(name, level + 1, n, "greedy") for name, level in levels.items() if name != "base"]
    results = assemble(systems, judge="gold", resamples=500, score=lambda texts: [len(t.split()) / 10 for t in texts])
    (path / "evaluation" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in samples_rows(systems))
    (path / "evaluation" / "samples.jsonl").write_text(lines, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


class _Tags(HTMLParser):
    """Every tag with its attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._skip = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._skip = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._skip else data


def _embedded(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_words_first_and_five_questions(page: str):
    text = _Tags(page).text
    assert "PPO beat SFT" in text
    assert re.search(r"PPO wins \d\d % of 256 held-out prompts \[\d\d, \d\d\] by the gold preference", text)
    questions = [
        "Did PPO beat SFT?",
        "By how much?",
        "May I trust the reward?",
        "Did it cheat?",
        "How do I run it again?",
    ]
    places = [text.index(q) for q in questions]
    assert places == sorted(places) and places[-1] < text.index("Results on held-out prompts")
    assert "73 % of 1,204 held-out pairs as people did [70, 76]" in text
    assert "recipe.yaml --run-dir" in text and "Seed 0" in text


def test_self_contained_and_small(run: Path, page: str):
    assert (run / "report.html").stat().st_size < 10 * 2**20
    for tag, attributes in _Tags(page).tags:
        assert tag not in ("link", "iframe", "img", "object", "embed"), tag
        assert "src" not in attributes and (attributes.get("href") or "#").startswith("#"), (tag, attributes)
    from plotly.offline import get_plotlyjs

    assert _unpacked(page, "plotly") == get_plotlyjs()
    ours = _without_packed(page)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", ours)
    assert "default-src 'none'" in page  # and the browser is told to refuse what we should have missed


def test_every_chart_is_there(page: str):
    charts = {c["id"]: c for c in _embedded(page, "charts")}
    titles = {c["title"] for c in charts.values()}
    assert {"Win rates", "Reward and gold", "Reward against KL", "Time", "Loss", "Token accuracy"} <= titles
    assert {"Reward", "KL to SFT", "Entropy", "Answer length", "Cut off", "Clipped steps"} <= titles
    places = {a.get("id") for tag, a in _Tags(page).tags if tag == "div"}
    assert set(charts) <= places
    assert all(c["data"][0]["x"] and c["data"][0]["y"] for c in charts.values())
    assert "prefers-color-scheme: dark" in page


def test_lineage_cost_data_and_recipe(page: str):
    text = _Tags(page).text
    for part in (
        "1a3f09c7be25",
        "740 MB",
        "1 min 10 s",
        "supervised tokens",
        "44,120",
        "kl_coef: 0.1",
        "In all: 3 min 33 s",
    ):
        assert part in text, part


def test_hostile_text_stays_text(tmp_path: Path):
    run = make_run(tmp_path / "demo", n=24)
    evil = "</script><script>window.evil = 1</script><img src=x onerror=alert(1)>"
    row = {
        "prompt": evil,
        "category": evil,
        "decoding": "sampled",
        "systems": {evil: {"response": evil, "reward": 1e9}},
    }
    (run / "evaluation" / "samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (run / "recipe.yaml").write_text(f"name: '{evil}'\n", encoding="utf-8")
    results = json.loads((run / "evaluation" / "results.json").read_text(encoding="utf-8"))
    results["warnings"].append(evil)
    results["systems"][evil] = results["systems"]["base"]
    results["comparisons"].append(results["comparisons"][0] | {"a": evil})
    (run / "evaluation" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    noted = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(noted | {"name": evil}), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert "window.evil" in page and "<script>window.evil" not in page and "<img" not in page
    tags = _Tags(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 4
    assert not any("onerror" in attributes for _, attributes in tags)
    assert json.loads(_unpacked(page, "samples"))[0]["prompt"] == evil


def _packed(page: str, name: str) -> str:
    found = re.search(rf'<script type="application/octet-stream" id="{name}">(.*?)</script>', page, re.S)
    assert found
    return found[1]


def _unpacked(page: str, name: str) -> str:
    return unpacked(_packed(page, name))


def _without_packed(page: str) -> str:
    return page.replace(_packed(page, "plotly"), "").replace(_packed(page, "samples"), "")


@pytest.mark.parametrize(
    "kept",
    [
        ["run.json"],
        ["sft/metrics.jsonl"],
        ["run.json", "sft", "reward"],
        ["run.json", "ppo/metrics.jsonl"],
        ["evaluation/results.json"],
        ["recipe.yaml", "reward/manifest.json"],
    ],
)
def test_partial_runs_have_partial_reports(run: Path, tmp_path: Path, kept: list[str]):
    for name in kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (run / name).is_dir() else shutil.copy)(run / name, tmp_path / name)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    text = _Tags(page).text
    evaluated = "evaluation/results.json" in kept
    assert ("Not evaluated yet" in text) != evaluated and ("PPO beat SFT\n" in text) == evaluated
    assert "Did it cheat?" in text and "Answers side by side" not in text and "None" not in text
    drawn = "metrics.jsonl" in str(kept) or "sft" in kept or evaluated or "run.json" in kept
    assert bool(_embedded(page, "charts")) == drawn


def test_a_growing_or_damaged_file_is_no_obstacle(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "demo")
    (tmp_path / "demo" / "evaluation" / "results.json").write_text("{", encoding="utf-8")
    with (tmp_path / "demo" / "ppo" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 41, "objective/scores": NaN, "objective/kl": Infinity}\n{"step": 42, "obj')
    files = read_run(tmp_path / "demo")
    assert len(files.metrics["ppo"]) == 41
    assert files.notes == ["evaluation/results.json is damaged and was left out."]
    page = write_report(tmp_path / "demo").read_text(encoding="utf-8")
    assert "results.json is damaged" in _Tags(page).text
    for c in _embedded(page, "charts"):
        assert "NaN" not in json.dumps(c)


def test_nothing_to_report_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "missing")
    with pytest.raises(UserError, match="trivet run"):
        write_report(tmp_path)


def _many_rows(n: int) -> list[dict[str, Any]]:
    """Answers of some 600 characters a row in words that hardly repeat: harder to pack than language."""
    rng = np.random.default_rng(5)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))

    def text() -> str:
        return " ".join("".join(letters[rng.zipf(1.3, 4) % 26]) for _ in range(40))

    return [
        {"prompt": f"{i} {text()[:60]}", "category": "a", "decoding": "sampled",
         "systems": {s: {"response": text(), "reward": float(rng.normal()), "finished": True} for s in ("sft", "ppo")}}
        for i in range(n)
    ]  # fmt: skip


def test_what_does_not_fit_leaves_the_extremes():
    rows = _many_rows(300)
    rows[150]["systems"]["ppo"]["reward"] = -55.0
    rows[251]["systems"]["ppo"]["reward"] = 155.0
    assert chosen_samples(rows) == chosen_samples(rows, 300) and len(chosen_samples(rows)) == 300
    text, count = packed_samples(rows, budget=30_000)
    kept = json.loads(unpacked(text))
    assert len(text) <= 30_000 and 20 < count < 300 and count == len(kept)
    numbers = [int(r["prompt"].split()[0]) for r in kept]
    assert {0, 150, 251} <= set(numbers) and numbers == sorted(numbers)
    assert packed_samples(rows[:3])[1] == 3 and packed_samples([])[1] == 0 and PACKED < 8 * 2**20


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_ten_thousand_samples_open_from_disk(run: Path, tmp_path: Path):
    """Size, and that all of them are there; docs/report.md has the time measured."""
    shutil.copytree(run, tmp_path / "demo")
    lines = "".join(json.dumps(r) + "\n" for r in _many_rows(10_000))
    (tmp_path / "demo" / "evaluation" / "samples.jsonl").write_text(lines, encoding="utf-8")
    page = write_report(tmp_path / "demo")
    assert page.stat().st_size < 10 * 2**20
    found = _chromium(page, "--dump-dom", "--enable-logging=stderr", "--log-level=0")
    assert re.search(r'id="count"[^>]*>10,000 of 10,000', found.stdout) and "CONSOLE" not in found.stderr


def test_warnings_are_marked_at_their_step(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "demo")
    path = tmp_path / "demo" / "ppo" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["metrics"]["warnings"] = [{"step": 12, "text": "the <b>critic</b> sleeps"}]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    page = write_report(tmp_path / "demo").read_text(encoding="utf-8")
    ours = [c for c in _embedded(page, "charts") if c["id"].startswith("chart-ppo")]
    assert len(ours) == 8
    for chart in ours:
        assert chart["layout"]["shapes"][0]["x0"] == 12 and chart["data"][1]["x"] == [12]
        assert "&lt;b&gt;critic" in chart["data"][1]["hovertemplate"]
    assert "step 12: the <b>critic</b> sleeps" in _Tags(page).text and "PPO, update 12" in _Tags(page).text


def test_a_running_stage_shows_its_growing_curve(run: Path, tmp_path: Path):
    partial = tmp_path / ".ppo.partial"
    shutil.copytree(run / "ppo", partial)
    (partial / "manifest.json").unlink()
    (tmp_path / "run.json").write_text(json.dumps({"stages": {"ppo": {"status": "running"}}}), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert any(c["title"] == "Reward" for c in _embedded(page, "charts")) and "running" in _Tags(page).text


@pytest.mark.parametrize(
    ("changes", "short"),
    [
        ({"warnings": ["ppo: the reward rose but gold fell against sft: the reward is over-optimised."]}, ("No",)),
        ({}, ("With care",)),
    ],
)
def test_trust_falls_with_over_optimisation(run: Path, tmp_path: Path, changes: dict[str, Any], short: tuple[str]):
    shutil.copytree(run, tmp_path / "demo")
    path = tmp_path / "demo" / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(results | {"warnings": []} | changes), encoding="utf-8")
    assert view(read_run(tmp_path / "demo"))["questions"][2]["short"] == short[0]


def test_signs_of_cheating_are_named(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "demo")
    path = tmp_path / "demo" / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    assert view(read_run(tmp_path / "demo"))["questions"][3]["tone"] == "good"
    ppo = results["systems"]["ppo"]
    ppo["gold"]["mean"], ppo["kl"]["mean"], ppo["distinct_2"] = -2.5, 124.0, 0.001
    path.write_text(json.dumps(results), encoding="utf-8")
    card = view(read_run(tmp_path / "demo"))["questions"][3]
    assert card["tone"] == "bad" and card["short"] == "Far from SFT"
    assert "monotonous answers, reward up, gold down" in card["text"]


def _chromium(page: Path, *options: str, mark: str = "all") -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    return subprocess.run(
        [CHROMIUM, *common, profile, "--virtual-time-budget=20000", *options, f"{page.as_uri()}#{mark}"],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


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
    count = len(_embedded(page, "charts"))
    assert f'data-drawn="{count}"' in found.stdout and "data-ready=" in found.stdout
    assert found.stdout.count('class="main-svg"') >= 2 * count
    assert found.stdout.count('class="card row"') == 12 and "<mark>" in found.stdout
    assert ('data-theme="dark"' in found.stdout[: found.stdout.index("<head>")]) == ("dark" in mark)
    # nothing sticks out: a page wider than its window scrolls sideways on a phone
    assert (fits := re.search(r'data-overflow="(-?\d+)"', found.stdout)) and int(fits[1]) <= 0
