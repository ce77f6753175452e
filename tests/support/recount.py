"""Numbers of an evaluation and of a data check counted again from the files, by none of the code under test."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy.stats import binomtest


def cells_of(run: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Decoding -> system -> its answers in the order of the prompts, as ``samples.jsonl`` has them."""
    out: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in (run / "evaluation" / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, cell in row["systems"].items():
            out[row["decoding"]][name].append(cell)
    return out


def described(cells: list[dict[str, Any]]) -> dict[str, float]:
    """What answers say of a system, by the path of the number; lengths are not in the file."""
    out: dict[str, float] = {
        "n": len(cells),
        "truncated": sum(not c["finished"] for c in cells) / len(cells),
    }
    for column in ("reward", "held_out_reward", "gold", "kl", "kl_exact"):
        if column in cells[0]:
            out[f"{column}/mean"] = statistics.fmean(c[column] for c in cells)
    for metric in cells[0].get("metrics", {}):
        out[f"metrics/{metric}/mean"] = statistics.fmean(c["metrics"][metric] for c in cells)
    return out


def compared(a: list[dict[str, Any]], b: list[dict[str, Any]], column: str = "reward") -> dict[str, float]:
    """Two systems side by side, each prompt once: wins, ties, losses, and the exact sign test.

    Scores of one response in two batches differ by the rounding of fp32; real scores here are further apart.
    """
    gaps = [x[column] - y[column] for x, y in zip(a, b, strict=True)]
    gaps = [0.0 if x["response"] == y["response"] else gap for gap, x, y in zip(gaps, a, b, strict=True)]
    wins, ties = sum(g > 0 for g in gaps), sum(g == 0 for g in gaps)
    losses = len(gaps) - wins - ties
    return {
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "n": len(gaps),
        "win_rate": (wins + ties / 2) / len(gaps),
        "difference/mean": statistics.fmean(gaps),
        "p_value": float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    }


def checked(rows: list[dict[str, str]], bad: int, answers: tuple[str, ...]) -> dict[str, Any]:
    """What ``trivet data check`` says of rows with a prompt and so many answers, behind which ``bad`` lines stand."""
    texts = {"prompt": [r["prompt"] for r in rows], "answer": [r[k] for r in rows for k in answers]}
    sizes = {kind: sorted(map(len, found)) for kind, found in texts.items()}
    out: dict[str, Any] = {
        "rows": len(rows) + bad,
        "bad": bad,
        "repeated_prompts": len(rows) - len(set(texts["prompt"])),
        "tied_rows": 0,
        f"answers/{len(answers)}": len(rows),
    }
    for kind, found in sizes.items():
        out |= {
            f"characters/{kind}/count": len(found),
            f"characters/{kind}/mean": statistics.fmean(found),
            f"characters/{kind}/median": statistics.median(found),
            f"characters/{kind}/longest": found[-1],
            f"characters/{kind}/p95": next(n for n in found if sum(x <= n for x in found) >= 0.95 * len(found)),
        }
    if len(answers) == 2:
        gaps = [len(r[answers[0]]) - len(r[answers[1]]) for r in rows]
        out["longer_is_better"] = (sum(g > 0 for g in gaps) + sum(g == 0 for g in gaps) / 2) / len(gaps)
    return out


# -- every document of a run -------------------------------------------------------------------------------------------

NO_COUNTS = {
    "manifest.json": r"described/|made_with/|version|format|seed|metrics/",  # metrics have a walk of their own
    "metrics.jsonl": (
        r"data/|time/|memory/|learning_rate|loss|grad_norm|mean_token_accuracy|pair_accuracy|objective/|ppo/|reward/"
        r"|held_out/|holdout/|rollout/|tokens|num_tokens|step$"
    ),
    "report_card.json": (
        r".*(share|chance|confidence|from|to|error|nll|temperature|correlation|score_per_token)$|samples/[^n]"
        r"|calibration/\w+/bins//(n|right)"  # these must add up to the card's pairs
    ),
    "results.json": (
        r"systems/|greedy/|(\w+_)?comparisons//|settings/|prompts$|baselines/|reward_card/"
        r"|.*/(win_rate|accuracy/share)$"
    ),
    "run.json": r"data_check/|sources//|stages/\w+/(peak_memory|seconds)|seed",
    "plan": r"stages//(counts|disk|memory|tokens|rows|steps)",
}
"""Of each document the numbers that are settings, times, what a model computed, or counted by another test."""


def documents_of(run: Path) -> Iterator[tuple[str, str, Any]]:
    """Kind, name and contents of every document of a run that makes claims, rows of metrics each by itself."""
    for file in sorted(run.rglob("*.json*")):
        name = str(file.relative_to(run))
        if file.name == "metrics.jsonl":
            for line in file.read_text().splitlines():
                yield file.name, name, json.loads(line)
        elif file.name in NO_COUNTS:
            yield file.name, name, json.loads(file.read_text())


def sizes_of(folder: Path, manifest: dict[str, Any]) -> dict[str, int]:
    """Bytes of the files that a manifest lists, by the path of the claim."""
    listed = [(group, name) for group in ("files", "logs") for name in manifest[group]]
    return {f"{group}/{name}/bytes": (folder / name).stat().st_size for group, name in listed}


def carded(rankings: int, samples: int, unlike: int, probes: dict[str, int]) -> dict[str, int]:
    """The counts of a report card over rankings of two responses, ``unlike`` of which differ in length."""
    pairs = {f"{name}/{what}": rankings for name in CARDS for what in ("n", "prompts")}
    pairs |= {
        f"length/{name}/{what}": unlike for name in ("longer_is_better", "longer_wins") for what in ("n", "prompts")
    }
    pairs |= {f"probes/{name}/{what}": n for name, n in probes.items() for what in ("n", "prompts")}
    whole = {"rankings": rankings, "held_out/examined": rankings, "held_out/of": rankings, "samples/n": samples}
    return pairs | whole


CARDS = ("accuracy", "top1", "baselines/longest answer", "baselines/n-grams", "baselines/random")


def shared_prompts(parts: dict[str, list[dict[str, str]]]) -> dict[str, int]:
    """Prompts by the parts that have them, where those are two or more: each prompt counts once."""
    sets = {name: {row["prompt"] for row in rows} for name, rows in parts.items()}
    where = [" and ".join(n for n in sets if prompt in sets[n]) for prompt in set().union(*sets.values())]
    return {group: n for group, n in Counter(where).items() if " and " in group}


def uncounted(kind: str, path: str) -> bool:
    return re.match(NO_COUNTS[kind], path) is not None
