"""Figures of the report as plain plotly dictionaries: training curves, win rates, reward against KL, cost.

Colours are names such as "@ppo" that the page replaces by those of its light or dark theme. This module knows nothing
of files or HTML.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.report.names import plain_name, score_name
from pipelines.stages.table import STAGES

POINTS = 400  # of a curve; more cannot be seen
BEFORE = "_before"  # ends the name of what a metric was before training


def curves(
    stage: str, rows: Sequence[Mapping[str, Any]], warned: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """One chart for every known key of a stage's metrics with at least two finite values; warnings at their step."""
    charts: list[dict[str, Any]] = []
    for key, title, hint in STAGES[stage].curves if stage in STAGES else ():
        points = _points(key, rows)
        if len(points) < 2 or any(c["title"] == title for c in charts):
            continue
        points = _thinned(points)
        line = {
            "type": "scatter",
            "mode": "lines",
            "x": [x for x, _ in points],
            "y": [short(y) for _, y in points],
            "line": {"color": f"@{stage}", "width": 1.8},
            "hovertemplate": "step %{x}: %{y:.4g}<extra></extra>",
        }
        layout = {"xaxis": {"title": {"text": "step"}}, "height": 210}
        if 0 <= min(y for _, y in points) < max(y for _, y in points) / 2:
            layout["yaxis"] = {"rangemode": "tozero"}  # elsewhere the change would be a flat line far above it
        marks = [_warning_mark(w, points) for w in warned if finite(w.get("step"))]
        lines = [*map(_upright, marks), *_before(key, rows)]
        if lines:
            layout["shapes"] = lines
        charts.append(make_chart(f"{stage}-{key}", title, hint, [line, *marks], layout))
    return charts


def _points(key: str, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, float]]:
    """Step and value of a metric; what it was before a training stands at the step before the first."""
    points: list[tuple[Any, float]] = []
    for i, row in enumerate(rows):
        step, before = row.get("step", i + 1), row.get(f"{key}{BEFORE}")
        if finite(before) and finite(step):
            points.append((step - 1, float(before)))  # type: ignore[arg-type]
        if finite(row.get(key)):
            points.append((step, row[key]))
    return points


def _before(key: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A dashed line at what the metric was before the first training, where that is known."""
    found = [row[f"{key}{BEFORE}"] for row in rows if finite(row.get(f"{key}{BEFORE}"))][:1]
    dashed = {"color": "@muted", "width": 1.2, "dash": "dash"}
    return [
        {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": short(y), "y1": short(y), "line": dashed}
        for y in found
    ]


def _upright(mark: Mapping[str, Any]) -> dict[str, Any]:
    """A dotted line through the step of a warning."""
    x, dotted = mark["x"][0], {"color": "@open", "width": 1.2, "dash": "dot"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": dotted}


def _warning_mark(warned: Mapping[str, Any], points: Sequence[tuple[Any, float]]) -> dict[str, Any]:
    """A triangle on the curve at the step of a warning, with its words to hover over."""
    step = warned["step"]
    y = min(points, key=lambda p: abs(p[0] - step))[1]
    words = "<br>".join(textwrap.wrap(html.escape(str(warned.get("text", ""))), 60))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [step],
        "y": [short(y)],
        "name": "warning",
        "marker": {"symbol": "triangle-up", "size": 11, "color": "@open", "line": {"color": "@card", "width": 1}},
        "hovertemplate": f"step {step}: {words}<extra></extra>",
    }


def win_rates(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Bars from one half: how often each system wins, with intervals."""
    shown = [c for c in comparisons if finite(c.get("win_rate"))]
    if not shown:
        return None
    labels = [label(c) for c in shown]
    low = [100 * (c["win_rate"] - (c["ci95"] or [c["win_rate"]] * 2)[0]) for c in _with_ci(shown)]
    high = [100 * ((c["ci95"] or [c["win_rate"]] * 2)[1] - c["win_rate"]) for c in _with_ci(shown)]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": labels,
        "x": [short(100 * c["win_rate"]) for c in shown],
        "marker": {"color": [_colour(c["a"]) for c in shown]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": high,
            "arrayminus": low,
            "color": "@ink",
            "thickness": 1.4,
            "width": 5,
        },
        "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
    }
    half = {"type": "line", "x0": 50, "x1": 50, "y0": 0, "y1": 1, "yref": "paper"}
    layout = {
        "xaxis": {"range": [0, 103], "dtick": 25, "tickangle": 0, "title": {"text": "% won, ties as half"}},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "shapes": [half | {"line": {"color": "@muted", "width": 1.2, "dash": "dash"}}],
        "height": 90 + 38 * len(shown),
        "bargap": 0.45,
    }
    hint = "The dashed line is a tie; an interval that crosses it shows nothing."
    return make_chart("win-rates", "Win rates", hint, [bars], layout)


def reward_against_kl(
    rows: Sequence[Mapping[str, Any]],
    systems: Mapping[str, Mapping[str, Any]],
    kept: int | None = None,
    scale: float | None = 1.0,
) -> dict[str, Any] | None:
    """The path of PPO's training in KL and reward, and the systems on held-out prompts.

    A system that is far from all others in KL is described in words: with it in the chart nothing else could be
    distinguished.

    Args:
        rows: of PPO's metrics.
        systems: of the evaluation.
        kept: the update whose policy the stage wrote, where that was chosen.
        scale: from the scores of training to those of the evaluation; None where they are not the same thing.
    """
    factor = 1.0 if scale is None else scale
    points = [
        (short(r["objective/kl"]), short(factor * r["objective/scores"]), r.get("step", i + 1))
        for i, r in enumerate(rows)
        if finite(r.get("objective/kl")) and finite(r.get("objective/scores"))
    ]
    path = _thinned(points) if len(points) > 1 else []
    places = {n: (short(d["kl"]["mean"]), short(d["reward"]["mean"])) for n, d in systems.items() if _placed(d)}
    far = _far({n: kl for n, (kl, _) in places.items()}, max((p[0] for p in path), default=0.0))
    traces = [_path(path)] if path else []
    if chosen := [p for p in points if p[2] == kept]:
        traces.append(
            _place(f"Kept: update {kept}", *chosen[0][:2], "@ppo")
            | {"marker": {"color": "@ppo", "symbol": "star", "size": 13, "line": {"color": "@card", "width": 1}}}
        )
    traces += [_place(f"{display(n)}, held out", *at, _colour(n)) for n, at in places.items() if n not in far]
    if not traces:
        return None
    layout = {
        "xaxis": {"title": {"text": "KL to the reference, nats a response"}},
        "yaxis": {"title": {"text": "reward"}},
        "height": 300,
        "showlegend": True,
    }
    hint = "What the reward cost in distance from SFT. Reward that keeps rising with KL while gold falls is cheating."
    hint += " In training it is the recipe's sum of parts, in other units than held out." if scale is None else ""
    hint += "".join(f" Far off: {plain_name(n)} at KL {places[n][0]:.3g}, reward {places[n][1]:.3g}." for n in far)
    return make_chart("reward-kl", "Reward against KL", hint, traces, layout)


def _placed(system: Mapping[str, Any]) -> bool:
    return all(finite(system.get(k, {}).get("mean")) for k in ("kl", "reward"))


def _far(kl: Mapping[str, float], path: float) -> list[str]:
    """Systems with more than three times the KL of everything else."""
    return [n for n in kl if kl[n] > 3 * max([path, 1.0, *(v for m, v in kl.items() if m != n)])]


def _path(points: Sequence[tuple[float, float, Any]]) -> dict[str, Any]:
    """The line through the updates; as many of their numbers as can be read."""
    width, height = (max(p[i] for p in points) - min(p[i] for p in points) or 1.0 for i in (0, 1))
    named = [points[0], points[-1]]
    for p in points:
        if all(math.hypot((p[0] - q[0]) / width, (p[1] - q[1]) / height) > 0.12 for q in named):
            named.append(p)
    return {
        "type": "scatter",
        "mode": "lines+markers+text",
        "name": "PPO in training, by update",
        "x": [p[0] for p in points],
        "y": [p[1] for p in points],
        "customdata": [p[2] for p in points],
        "text": [str(p[2]) if p in named else "" for p in points],
        "textposition": "top center",
        "textfont": {"size": 10, "color": "@muted"},
        "line": {"color": "@ppo-soft", "width": 1.2},
        "marker": {"color": "@ppo-soft", "size": 5},
        "hovertemplate": "update %{customdata}: KL %{x:.3g}, reward %{y:.3g}<extra></extra>",
    }


def _place(name: str, kl: float, reward: float, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [kl],
        "y": [reward],
        "marker": {"color": colour, "size": 12, "line": {"color": "@card", "width": 2}},
        "hovertemplate": "KL %{x:.3g}, reward %{y:.3g}<extra></extra>",
    }


def proxy_and_gold(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Reward and an independent judge's score of every system side by side: both should rise.

    The judge is gold, or else the reward model that PPO does not optimise.
    """
    judge = "gold" if any("gold" in d for d in systems.values()) else "held_out_reward"
    known = {n: d for n, d in systems.items() if all(finite(d.get(k, {}).get("mean")) for k in (judge, "reward"))}
    if len(known) < 2:
        return None
    title = score_name(judge)
    traces = []
    for key, panel in ((judge, ""), ("reward", "2")):
        means = [d[key]["mean"] for d in known.values()]
        limits = [d[key].get("ci95") or [m, m] for d, m in zip(known.values(), means, strict=True)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "xaxis": f"x{panel}",
                "yaxis": f"y{panel}",
                "x": [display(n) for n in known],
                "y": [short(m) for m in means],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "thickness": 1.4,
                    "width": 5,
                    "color": "@muted",
                    "array": [h - m for (_, h), m in zip(limits, means, strict=True)],
                    "arrayminus": [m - lo for (lo, _), m in zip(limits, means, strict=True)],
                },
                "marker": {"color": [_colour(n) for n in known], "size": 11},
                "hovertemplate": "%{x}: %{y:.3g}<extra>" + score_name(key) + "</extra>",
            }
        )
    layout = {
        "xaxis": {"domain": [0, 0.43], "showgrid": False},
        "xaxis2": {"domain": [0.57, 1], "showgrid": False, "anchor": "y2"},
        "yaxis": {"title": {"text": title}},
        "yaxis2": {"title": {"text": "reward"}, "anchor": "x2"},
        "height": 300,
    }
    what = "gold is what was meant" if judge == "gold" else "the held-out one learnt from other prompts"
    hint = f"The reward is what PPO saw, {what}. They should rise together."
    return make_chart("proxy-gold", f"Reward and {title}", hint, traces, layout)


def cost(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Seconds of every stage."""
    known = [s for s in stages if finite(s.get("seconds"))]
    if not known:
        return None
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [html.escape(s["name"]) for s in known],
        "x": [short(s["seconds"]) for s in known],
        "marker": {"color": "@accent"},
        "hovertemplate": "%{y}: %{x:,.0f} s<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "seconds"}},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "height": 80 + 30 * len(known),
        "bargap": 0.4,
    }
    hint = "Wall-clock time of each stage when it last ran; what came before its checkpoint counts."
    return make_chart("cost", "Time", hint, [bars], layout)


def display(name: str) -> str:
    """A system's name, safe inside plotly's markup."""
    return html.escape(plain_name(name))


def label(comparison: Mapping[str, Any]) -> str:
    """For example "PPO over SFT, gold (greedy)"."""
    c = comparison
    greedy = " (greedy)" if c.get("decoding") == "greedy" else ""
    return f"{display(str(c['a']))} over {display(str(c['b']))}, {html.escape(str(c.get('by', '')))}{greedy} "


def _with_ci(comparisons: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{"ci95": None} | dict(c) for c in comparisons]


def _colour(name: str) -> str:
    return f"@{name}" if name in ("base", "sft", "ppo") else "@other"


def make_chart(
    identity: str, title: str, hint: str, data: list[dict[str, Any]], layout: dict[str, Any]
) -> dict[str, Any]:
    """One figure; its id is the identity in letters and digits."""
    slug = "".join(ch if ch.isalnum() else "-" for ch in identity)
    return {"id": f"chart-{slug}", "title": title, "hint": hint, "data": data, "layout": layout}


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(value: float) -> float:
    """Five digits: enough for the eye, and half the file."""
    return float(f"{value:.5g}")


def _thinned(points: list[Any]) -> list[Any]:
    """At most ``POINTS`` of them, evenly, the last one kept."""
    step = -(-len(points) // POINTS)
    return points[::step] + ([points[-1]] if (len(points) - 1) % step else [])
