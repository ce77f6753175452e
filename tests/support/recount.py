"""Numbers of an evaluation and of a data check counted again from the files, by none of the code under test."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
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
    for column in ("reward", "gold", "kl", "kl_exact"):
        if column in cells[0]:
            out[f"{column}/mean"] = statistics.fmean(c[column] for c in cells)
    for metric in cells[0].get("metrics", {}):
        out[f"metrics/{metric}/mean"] = statistics.fmean(c["metrics"][metric] for c in cells)
    return out


def compared(a: list[dict[str, Any]], b: list[dict[str, Any]], column: str = "reward") -> dict[str, float]:
    """Two systems side by side, each prompt once: wins, ties, losses, and the exact sign test."""
    gaps = [x[column] - y[column] for x, y in zip(a, b, strict=True)]
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
