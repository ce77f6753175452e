"""The figure of over-optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from gao_forms import NAMES, by_arm, curve, fit, gains, interval
from photograph import photograph
from plotly.subplots import make_subplots

WIDTH, HEIGHT = 1280, 470
COLOURS = {
    "gold": "#b7791f", "proxy": "#2b6cb0", "watcher": "#6b46c1",
    "single": "#c53030", "ensemble": "#1a202c", "kl": "#2f855a",
}  # fmt: skip


def draw_figure(rows: Sequence[Mapping[str, Any]], target: Path, chromium: str) -> None:
    """Write the figure as a PNG file."""
    photograph(figure(rows), target, chromium)


def figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Best of n; PPO without control; gold of every arm: means over seeds, bands of 95 % (Student)."""
    arms = by_arm(rows)
    titles = ("Best of n, one reward model", "PPO, one reward model, no KL control", "Gold: what helps")
    out = make_subplots(cols=3, rows=1, subplot_titles=titles, horizontal_spacing=0.06)
    std = {r["seed"]: r["gold_spread"] for r in arms["best_of_n"]}
    for column, arm, form in ((1, "best_of_n", "best of n"), (2, "single", "PPO")):
        for name in ("proxy", "watcher", "gold"):
            d, every = curves(arms[arm], name, std)
            band(out, column, d, every, COLOURS[name], name, legend=column == 1)
            if name == "gold":
                fitted(out, column, d, every, form, COLOURS[name], legend=column == 1)
    for arm, name in NAMES.items():
        d, every = curves(arms[arm], "gold", std)
        band(out, 3, d, every, COLOURS[arm], name, legend=True)
        fitted(out, 3, d, every, "PPO", COLOURS[arm], legend=False)
        chosen(out, 3, arms[arm], std, COLOURS[arm], legend=arm == "single")
    chosen(out, 2, arms["single"], std, COLOURS["gold"], legend=False)
    out.update_layout(
        template="plotly_white", width=WIDTH, height=HEIGHT, margin={"l": 60, "r": 20, "t": 40, "b": 100},
        font={"size": 13}, legend={"orientation": "h", "y": -0.2, "x": 0},
    )  # fmt: skip
    out.update_xaxes(title_text="√KL (nats)", rangemode="tozero")
    out.update_yaxes(title_text="gain, in spreads of SFT answers", col=1)
    return out


def curves(rows: Sequence[Mapping[str, Any]], name: str, std: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Mean d by look, and the gains (seeds, looks) in standard deviations of SFT answers."""
    d = np.mean([gains(r)["d"] for r in rows], axis=0)
    scale = [std[r["seed"]] if name == "gold" else 1.0 for r in rows]
    return d, np.array([gains(r)[name] / s for r, s in zip(rows, scale, strict=True)])


def band(out: go.Figure, column: int, d: np.ndarray, every: np.ndarray, colour: str, name: str, legend: bool) -> None:
    mean, half = (np.array(x) for x in zip(*(interval(y) for y in every.T), strict=True))
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    onward = np.maximum.accumulate(d)  # a band that turned back would cross itself
    out.add_scatter(
        x=[*onward, *onward[::-1]], y=[*(mean - half), *(mean + half)[::-1]], fill="toself", mode="lines",
        line={"width": 0}, fillcolor=f"rgba({red},{green},{blue},0.15)", showlegend=False, row=1, col=column,
    )  # fmt: skip
    out.add_scatter(
        x=d, y=mean, mode="lines+markers", line={"color": colour, "width": 2}, marker={"size": 4}, name=name,
        showlegend=legend, row=1, col=column,
    )  # fmt: skip


def fitted(out: go.Figure, column: int, d: np.ndarray, every: np.ndarray, form: str, colour: str, legend: bool) -> None:
    """The form, fitted to the mean over seeds."""
    a, b, _ = fit(d, every.mean(0), form)
    x = np.linspace(0.02, d.max(), 200)
    out.add_scatter(
        x=x, y=curve(x, a, b, form), mode="lines", line={"color": colour, "width": 1.5, "dash": "dot"},
        name="fitted form", showlegend=legend, row=1, col=column,
    )  # fmt: skip


def chosen(out: go.Figure, column: int, rows: Any, std: Mapping[int, float], colour: str, legend: bool) -> None:
    """Where the watcher stopped, one star a seed."""
    x, y = [], []
    for row in rows:
        at = [evaluation["update"] for evaluation in row["looks"]].index(row["chosen"])
        found = gains(row)
        x.append(found["d"][at])
        y.append(found["gold"][at] / std[row["seed"]])
    out.add_scatter(
        x=x, y=y, mode="markers", name="watcher's choice, by seed", showlegend=legend, row=1, col=column,
        marker={"symbol": "star", "size": 11, "color": colour, "line": {"color": "white", "width": 1}},
    )  # fmt: skip
