"""PPO against a rule alone, over seeds: what was paid during training, and held-out responses before and after.

python benchmarks/real_model_figure.py runs/real-rule-1 runs/real-rule-2 --out docs/real_model.png [--chromium chromium]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from photograph import photograph
from plotly.subplots import make_subplots
from real_model import Run, read

COLOURS = ("#2b6cb0", "#b7791f", "#2f855a", "#6b46c1", "#c53030")
WINDOW = 3  # updates whose mean a point of a curve is


def scores(folder: Path) -> list[float]:
    """The mean score of every update's rollout."""
    lines = (folder / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["objective/scores"] for row in rows if "objective/scores" in row]


def smooth(values: Sequence[float]) -> list[float]:
    """Means over the last ``WINDOW`` values; of the first ones over as many as there are."""
    parts = [values[max(0, i + 1 - WINDOW) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def figure(runs: Sequence[Run], paid: Sequence[Sequence[float]]) -> go.Figure:
    """Curves of what was paid, and shares of held-out responses that follow their whole rule, with 95 % intervals."""
    titles = ("Training: how nearly rules are followed", "Held-out prompts: whole rules followed")
    out = make_subplots(cols=2, rows=1, subplot_titles=titles, horizontal_spacing=0.1, column_widths=[0.6, 0.4])
    for run, values, colour in zip(runs, paid, COLOURS, strict=False):
        updates = list(range(1, len(values) + 1))
        name = f"seed {run.seed}"
        out.add_scatter(
            x=updates, y=values, mode="markers", marker={"size": 5, "color": colour, "opacity": 0.35},
            showlegend=False, row=1, col=1,
        )  # fmt: skip
        out.add_scatter(
            x=updates, y=smooth(values), mode="lines", line={"width": 2.5, "color": colour}, name=name, row=1, col=1
        )
        found = [run.results["systems"][system]["gold"] for system in ("base", "ppo")]
        out.add_scatter(
            x=["before", "after PPO"], y=[f["mean"] for f in found], mode="lines+markers",
            line={"width": 2, "color": colour}, marker={"size": 9, "color": colour}, showlegend=False, row=1, col=2,
            error_y={
                "type": "data", "symmetric": False, "thickness": 1.3, "width": 5, "color": colour,
                "array": [f["ci95"][1] - f["mean"] for f in found],
                "arrayminus": [f["mean"] - f["ci95"][0] for f in found],
            },
        )  # fmt: skip
    out.update_layout(
        template="plotly_white", width=1100, height=400, margin={"l": 60, "r": 20, "t": 40, "b": 80},
        font={"size": 13}, legend={"orientation": "h", "y": -0.2, "x": 0},
    )  # fmt: skip
    out.update_xaxes(title_text="update", col=1)
    out.update_xaxes(range=[-0.3, 1.3], col=2)
    out.update_yaxes(title_text="score", col=1)
    out.update_yaxes(title_text="share, 95 % intervals", rangemode="tozero", tickformat=".0%", col=2)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, one a seed")
    parser.add_argument("--out", type=Path, required=True, help="the PNG file")
    parser.add_argument("--chromium", default="chromium", help="the browser that photographs the page")
    asked = parser.parse_args()
    photograph(figure([read(r) for r in asked.runs], [scores(r) for r in asked.runs]), asked.out, asked.chromium)


if __name__ == "__main__":
    main()
