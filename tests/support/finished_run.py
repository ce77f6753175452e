"""A made-up run with plausible numbers, and what its report says to a parser. Not a test file."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.answers import SystemResponses
from evaluation.results import assemble, samples_rows
from pipelines.report.samples import unpacked
from reward.card.report_card import Judged, make_card

STAGES = ("pretrain", "sft", "rankings", "reward", "ppo", "evaluate")
RECIPE = "name: demo\nseed: 0\nreward:\n  gate: {enabled: true, accuracy: 0.5}\nppo:\n  kl_coef: 0.1\n  updates: 40\n"
OPENERS = ("once upon a time", "one sunny morning", "late at night", "in the old days")


def _answers(name: str, level: float, n: int, decoding: Any = "sampled") -> SystemResponses:
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
    return SystemResponses(
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


def report_card(skill: float = 1.2) -> dict[str, Any]:
    """A card over 120 made-up rankings of 3 answers; ``skill`` 0 is a model that guesses."""
    rng = np.random.default_rng(8)
    judged = []
    for i in range(120):
        lengths = [int(n) for n in rng.integers(15, 45, 3)]
        scores = [skill * (1 - rank) + float(rng.normal()) for rank in range(3)]
        category = ("happy story", "sad story")[i % 2]
        judged.append(Judged(prompt=f"p{i}", ranks=(0, 1, 2), scores=scores, lengths=lengths, category=category))
    baselines = {
        "random": [rng.random(3).tolist() for _ in judged],
        "longest answer": [[float(n) for n in r.lengths] for r in judged],
    }
    whole, damaged = rng.normal(3, 1, 60).tolist(), rng.normal(0, 1, 60).tolist()
    probes = {name: (whole, damaged, [f"p{i}" for i in range(60)]) for name in ("cut short", "empty response")}
    samples = rng.normal(0, 1.1, 64).tolist()
    return make_card(judged, baselines=baselines, probes=probes, samples=samples, sampled_from="SFT samples")


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
    (path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (path / "reward" / "report_card.json").write_text(json.dumps(report_card()), encoding="utf-8")
    _curves(path)
    levels: dict[str, float] = {"base": -0.5, "sft": 2.2, "ppo": 6.1}
    systems = [_answers(name, level, n) for name, level in levels.items()]
    systems += [_answers(name, level + 1, n, "greedy") for name, level in levels.items() if name != "base"]
    results = assemble(systems, judge="gold", resamples=500, score=lambda texts: [len(t.split()) / 10 for t in texts])
    (path / "evaluation" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in samples_rows(systems))
    (path / "evaluation" / "samples.jsonl").write_text(lines, encoding="utf-8")
    return path


class Tags(HTMLParser):
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


def embedded(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def packed_part(page: str, name: str) -> str:
    found = re.search(rf'<script type="application/octet-stream" id="{name}">(.*?)</script>', page, re.S)
    assert found
    return found[1]


def unpacked_part(page: str, name: str) -> str:
    return unpacked(packed_part(page, name))


def without_packed(page: str) -> str:
    return page.replace(packed_part(page, "plotly"), "").replace(packed_part(page, "samples"), "")


def many_rows(n: int) -> list[dict[str, Any]]:
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
