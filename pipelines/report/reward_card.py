"""The reward model's section of the report: its card in words, rows and figures, and what the gate says of it.

Works on the plain values of ``report_card.json`` (made by ``reward.card.report_card``); it computes no statistics. This
module knows nothing of HTML.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from data.common.number_format import interval, number, percent
from pipelines.report.charts import finite, make_chart, short
from reward.card.rewardbench import in_words

PAIRS = 10  # of a bin of the calibration figure, at least
BARS = 24  # rows of the figure of slices; the table has all
PROBES = {
    "cut short": "cut short",
    "sentences repeated": "sentences repeated",
    "answer to another prompt": "for another prompt",
    "end token missing": "without its end token",
    "empty response": "empty response",
    "emptied": "empty response",  # of cards from before the rename
}


def from_summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the reward stage's metrics hold of the card, in the card's shape; empty where they hold nothing of it."""
    found = metrics.get("report_card")
    if not isinstance(found, dict) or not found:
        return {}
    shares = {k: {n: {"share": v} for n, v in (found.get(k) or {}).items()} for k in ("baselines", "probes")}
    error, temperature = found.get("calibration_error"), found.get("temperature")
    return shares | {
        "accuracy": {
            "share": metrics.get("pair_accuracy"),
            "ci95": metrics.get("pair_accuracy_ci95"),
            "n": metrics.get("pairs"),
        },
        "top1": {"share": found.get("top1")},
        "calibration": None if error is None else {"before": {"error": error}, "temperature": temperature},
        "length": {"longer_wins": {"share": found.get("longer_wins")}},
        "slices": {},
        "warnings": list(found.get("card_warnings") or []),
    }


def gate_outcome(card: Mapping[str, Any], recipe: str) -> dict[str, Any] | None:
    """``{"state": passed | failed | off, "lines"}`` by the recipe's ``reward.gate``; None where there is no gate,
    no whole card, or PPO does not optimise against the reward model. ``lines`` are those that the card fails; of a gate
    that is off, the default ones."""
    if "rankings" not in card or not recipe:
        return None
    try:
        found = yaml.safe_load(recipe)
        rewards = (found.get("ppo") or {}).get("reward") or [{"source": "model"}]
        gate = (found.get("reward") or {})["gate"]
        optimised = any(part.get("source", "model") == "model" for part in rewards)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return None
    gate = {"enabled": False} if gate in (False, "off") else gate
    if not isinstance(gate, dict) or (not optimised and gate.get("enabled") is not False):
        return None
    from reward.card.gate import card_failures, failures
    from reward.settings import GateConfig

    try:
        asked = GateConfig.model_validate(gate)
        lines = failures(card, asked) if asked.enabled else card_failures(card)
    except (ValidationError, KeyError, TypeError, AttributeError):  # a gate or a card of another version
        return None
    judged = "passed" if card["accuracy"].get("ci95") else "accuracy not judged"  # of too few prompts
    state = ("failed" if lines else judged) if asked.enabled else "off"
    return {"state": state, "lines": lines}


def failed_lines(card: Mapping[str, Any]) -> list[str]:
    """The gate's default lines that a card fails, whatever the recipe's gate is."""
    from reward.card.gate import card_failures

    try:
        return card_failures(card) if "rankings" in card else []
    except (KeyError, TypeError):  # a card of another version
        return []


def training_scale(recipe: str, metrics_of_stage: Mapping[str, Any]) -> float | None:
    """What PPO's scores in training are multiplied with to be in the reward model's own units, as evaluation's are.

    Args:
        recipe: the resolved recipe.
        metrics_of_stage: the reward stage's metrics.

    Returns:
        None where they cannot be: the recipe's reward has several terms, or in another way.
    """
    try:
        ppo = (yaml.safe_load(recipe) or {}).get("ppo") or {}
        parts = ppo.get("reward") or [{"source": "model"}]
        alone = len(parts) == 1 and parts[0].get("source", "model") == "model" and parts[0].get("weight", 1) == 1
        changed = any(parts[0].get(key) for key in ("normalise", "clip"))
        standardised = bool(ppo.get("standardise_scores"))
    except (yaml.YAMLError, AttributeError, TypeError, KeyError):
        return 1.0
    if not alone or changed:
        return None
    std = metrics_of_stage.get("score_std", metrics_of_stage.get("spread"))  # the second: runs from before the rename
    if not standardised:
        return 1.0
    return float(std) if isinstance(std, int | float) and finite(std) else None


def view(card: Mapping[str, Any], gate: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the template shows: tone, headline, detail, gate, warnings, facts and the rows of slices."""
    accuracy = card["accuracy"]
    low, high = accuracy.get("ci95") or (-1.0, -1.0)  # no interval
    if low < 0:
        tone, text = "open", "Too few held-out prompts to judge it"
    elif low > 0.5:
        tone, text = ("good" if round(low, 2) >= 0.8 else "open"), "Better than chance"
    else:
        tone, text = "bad", "Worse than chance" if high < 0.5 else "Not shown to be better than chance"
    if failed_lines(card):
        tone = "bad"
    among = f" of {accuracy['n']:,}" if isinstance(accuracy.get("n"), int) else " of the"
    share = percent(accuracy.get("share"))
    return {
        "tone": tone,
        "text": text,
        "detail": f"It orders {share}{among} held-out pairs as the labels do{_ci(accuracy)}." if share else "",
        "gate": gate,
        "warnings": [str(w)[:1].upper() + str(w)[1:] + "." for w in card.get("warnings") or []],
        "facts": facts(card),
        "slices": slice_rows(card),
    }


def facts(card: Mapping[str, Any]) -> dict[str, str]:
    """Label -> text of everything on the card that is one number; what is not there is left out."""
    ceiling, top1 = card.get("ceiling") or {}, card["top1"]
    calibration, length = card.get("calibration") or {}, card["length"]
    before, after = (calibration.get(k) or {} for k in ("before", "after"))
    wins, better = (length.get(k) or {} for k in ("longer_wins", "longer_is_better"))
    samples, slope = card.get("samples") or {}, length.get("score_per_token")
    error = f"{percent(before.get('error'))} → {percent(after.get('error'))}" if after else percent(before.get("error"))
    rows = {
        "Held-out rankings": _examined(card.get("held_out") or {}),
        "Pair accuracy": _share(card["accuracy"]),
        "Labels that agree with the annotator's scores": _share(ceiling),
        "Accuracy as a share of those": percent(ceiling.get("reached")),
        "RewardBench 2": in_words(card.get("rewardbench2") or {}),
        "Best response scored highest": _share(top1) + _compared_with("chance", percent(top1.get("chance"))),
        "Calibration error, before → after scaling" if after else "Calibration error": error,
        "Temperature": number(calibration.get("temperature")),
        "Score for 100 tokens more": f"{100 * slope:+.3g}" if finite(slope) else "",
        "Correlation of score and length": number(length.get("correlation")),
        "Longer response wins": _share(wins) + _compared_with("by the labels", percent(better.get("share"))),
        f"Standard deviation of scores over {samples.get('of') or 'samples'}": number(samples.get("std")),
    }
    return {label: text for label, text in rows.items() if text}


def slice_rows(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a slice: what it is cut by, its name, share, interval and number of pairs."""
    return [
        {
            "by": by,
            "name": name,
            "share": percent(s.get("share")),
            "ci": interval(s.get("ci95"), 100, 0),
            "pairs": s.get("n", ""),
        }
        for by, group in card["slices"].items()
        for name, s in group.items()
    ]


def figures(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy and the baselines, probes, slices and the reliability diagram: those that the card has."""
    if not card:
        return []
    baselines = [(n.replace("answer", "response"), s, "@base") for n, s in card["baselines"].items()]
    model = [("this model", card["accuracy"], "@reward")]
    taught = card.get("negatives") or ()
    probes = [(PROBES.get(n, n) + " (taught)" * (n in taught), s, "@reward") for n, s in card["probes"].items()]
    cut = [(f"{name} ({by})", s, "@reward") for by, group in card["slices"].items() for name, s in group.items()]
    made = [
        bars(
            "card-baselines",
            "Accuracy",
            "Of held-out pairs. It should be clearly above every baseline.",
            model + baselines,
        ),
        bars(
            "card-probes",
            "Damaged responses",
            "How often the whole response scores above itself damaged; near 100 %."
            + " Taught: its training rankings had such ones (reward.negatives)." * bool(taught),
            probes,
        ),
        reliability(card.get("calibration") or {}),
        bars("card-slices", "Accuracy by kind of pair", "Where the model is weak.", cut[:BARS]),
    ]
    return [c for c in made if c]


def bars(
    identity: str, title: str, hint: str, rows: Sequence[tuple[str, Mapping[str, Any], str]]
) -> dict[str, Any] | None:
    """Shares as horizontal bars with intervals, one (name, share, colour) each; the dashed line is a coin's."""
    known = [(n, s, colour) for n, s, colour in rows if finite(s.get("share"))]
    if not known:
        return None
    limits = [s.get("ci95") or [s["share"]] * 2 for _, s, _ in known]
    std = [
        (100 * (high - s["share"]), 100 * (s["share"] - low))
        for (low, high), (_, s, _) in zip(limits, known, strict=True)
    ]
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [html.escape(name) + " " for name, _, _ in known],
        "x": [short(100 * s["share"]) for _, s, _ in known],
        "customdata": [s.get("n") or "" for _, s, _ in known],
        "marker": {"color": [colour for _, _, colour in known]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "color": "@ink",
            "thickness": 1.4,
            "width": 4,
            "array": [short(up) for up, _ in std],
            "arrayminus": [short(down) for _, down in std],
        },
        "hovertemplate": "%{y}: %{x:.1f} %, n %{customdata}<extra></extra>",
    }
    coin = {"type": "line", "x0": 50, "x1": 50, "y0": 0, "y1": 1, "yref": "paper"}
    layout = {
        "xaxis": {"range": [0, 103], "dtick": 25, "tickangle": 0, "title": {"text": "%"}},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "shapes": [coin | {"line": {"color": "@muted", "width": 1.2, "dash": "dash"}}],
        "height": 80 + 28 * len(known),
        "bargap": 0.4,
    }
    return make_chart(identity, title, hint, [trace], layout)


def reliability(calibration: Mapping[str, Any]) -> dict[str, Any] | None:
    """How often the model was right against how sure it was, before and after temperature scaling."""
    traces: list[dict[str, Any]] = []
    for key, name, colour in (("before", "as trained", "@reward"), ("after", "after temperature scaling", "@other")):
        bins = (calibration.get(key) or {}).get("bins") or []
        known = merged([b for b in bins if finite(b.get("confidence")) and finite(b.get("right"))])
        if known:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": name,
                    "customdata": [b.get("n") for b in known],
                    "x": [short(100 * b["confidence"]) for b in known],
                    "y": [short(100 * b["right"]) for b in known],
                    "line": {"color": colour, "width": 1.6},
                    "marker": {"color": colour, "size": 7},
                    "hovertemplate": "said %{x:.0f} %, right %{y:.0f} %, pairs %{customdata}<extra>"
                    + name
                    + "</extra>",
                }
            )
    if not traces:
        return None
    layout = {
        "xaxis": {"range": [48, 102], "title": {"text": "said, %"}},
        "yaxis": {"range": [0, 104], "title": {"text": "right, %"}},
        "shapes": [
            {
                "type": "line",
                "x0": 50,
                "x1": 100,
                "y0": 50,
                "y1": 100,
                "line": {"color": "@muted", "width": 1.2, "dash": "dash"},
            }
        ],
        "height": 260,
        "showlegend": True,
    }
    hint = "On the dashed line it is as often right as it says. Below it, it is too sure."
    hint += f" A point stands for {PAIRS} pairs or more."
    return make_chart("card-reliability", "Calibration", hint, traces, layout)


def merged(bins: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Neighbouring bins put together until each has ``PAIRS`` pairs: a bin of one is right at 0 or 100 %.

    Bins that do not say how many pairs they hold stay as they are.
    """
    if not all(isinstance(b.get("n"), int) and b["n"] > 0 for b in bins):
        return list(bins)
    out: list[Mapping[str, Any]] = []
    for b in bins:
        out.append(_together(out.pop(), b) if out and out[-1]["n"] < PAIRS else b)
    if len(out) > 1 and out[-1]["n"] < PAIRS:
        last = out.pop()
        out.append(_together(out.pop(), last))
    return out


def _together(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    n = a["n"] + b["n"]
    return {"n": n} | {k: (a[k] * a["n"] + b[k] * b["n"]) / n for k in ("confidence", "right")}


def _examined(held_out: Mapping[str, Any]) -> str:
    """Which of them the card is about, where it is not about all."""
    some, of = held_out.get("examined"), held_out.get("of")
    return f"{some:,} of {of:,}, evenly spaced" if isinstance(some, int) and isinstance(of, int) and some < of else ""


def _share(s: Mapping[str, Any]) -> str:
    return percent(s.get("share")) + _ci(s) if finite(s.get("share")) else ""


def _ci(s: Mapping[str, Any]) -> str:
    found = interval(s.get("ci95"), 100, 0)
    return f" {found}" if found else ""


def _compared_with(what: str, value: str) -> str:
    return f", {what} {value}" if value else ""
