"""The recipe of the smallest whole run; it takes seconds. Not a test file."""

from __future__ import annotations

import json
from pathlib import Path

RECIPE = {
    "name": "least",
    "base": {
        "pretrain": {
            "tokenizer": "words",
            "vocabulary": 300,
            "steps": 12,
            "batch": 8,
            "model": {"layers": 2, "width": 32, "feed_forward": 64, "heads": 4, "context": 128},
        }
    },
    "template": "dialogue",
    "data": {
        "documents": "demo-task?rows=200",
        "demonstrations": "demo-task?rows=60",
        "prompts": "demo-task?rows=80",
        "held_out": 0.2,
    },
    "adapter": {"rank": 4, "alpha": 8},
    "sft": {"epochs": 1, "learning_rate": 3e-3, "batch": 16},
    "rankings": {
        "annotator": "data.demo.task:gold",
        "prompts": 16,
        "held_out_prompts": 8,
        "answers": 3,
        "max_new_tokens": 12,
    },
    "reward": {"epochs": 1, "learning_rate": 3e-3, "batch": 8, "micro_batch": 8, "calibration_samples": 8},
    "ppo": {
        "updates": 2,
        "rollouts": 8,
        "epochs": 1,
        "learning_rate": 1e-3,
        "max_new_tokens": 12,
        "keep_every": 1,
    },
    "evaluation": {"prompts": 6, "gold": "data.demo.task:gold", "bootstrap": 50},
    "runtime": {"device": "cpu", "threads": 1},
}


ROOT = Path(__file__).parents[2]


STAGES = ("pretrain", "sft", "rankings", "reward", "ppo", "evaluation")


def results(run: Path) -> dict[str, bytes]:
    """Bytes of everything that a run computed, times and manifests (which hold keys) apart."""
    skip = {"metrics.jsonl", "manifest.json"}
    return {
        str(f.relative_to(run)): f.read_bytes()
        for stage in STAGES
        for f in sorted((run / stage).rglob("*"))
        if f.is_file() and f.name not in skip
    }


def metrics(run: Path) -> dict[str, list[dict]]:
    out = {}
    for stage in STAGES:
        path = run / stage / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        out[stage] = [{k: v for k, v in r.items() if not k.startswith(("time/", "memory/"))} for r in rows]
    return out
