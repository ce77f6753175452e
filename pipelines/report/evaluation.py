"""The report's tables of ``results.json``: systems, comparisons, metrics, judges and the harness. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.common.number_format import interval, number, p_value, percent, signed
from evaluation.adversaries import named
from pipelines.report.first_screen import HIDDEN
from pipelines.report.names import judge_name, plain_name, score_name


def view(results: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of metrics, judges and harness tasks; empty lists where there is nothing."""
    return {
        "metrics": _metrics(results),
        "differences": _differences(results),
        "judges": _judges(results),
        "harness": _harness(results),
    }


def _metrics(results: Mapping[str, Any]) -> dict[str, Any]:
    """Columns and one row a system and decoding; words and nested values stay in ``results.json``."""
    rows, columns = [], dict[str, None]()
    for part, decoding in (("systems", "sampled"), ("greedy", "greedy")):
        for name, described in (results.get(part) or {}).items():
            found = described.get("metrics") or {}
            cells = {k: _cell(v) for k, v in found.items() if k not in HIDDEN and (_is_mean(v) or _is_number(v))}
            columns |= dict.fromkeys(cells)
            rows.append({"name": plain_name(name), "decoding": decoding, "cells": cells})
    return {"columns": list(columns), "rows": [r for r in rows if r["cells"]]}


def _differences(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric and pair of systems: the difference, its p after Holm, and what may be said."""
    return [
        {
            "metric": str(c.get("metric", "")).replace("_", " "),
            "a": plain_name(c.get("a")),
            "b": plain_name(c.get("b")),
            "decoding": c.get("decoding", "sampled"),
            "mean": signed((c.get("difference") or {}).get("mean")),
            "ci": interval((c.get("difference") or {}).get("ci95"), digits=3),
            "p": p_value(c.get("p_value_holm")),
            "verdict": c.get("verdict", ""),
            "text": c.get("verdict_text", ""),
        }
        for c in results.get("metric_comparisons") or []
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_mean(value: Any) -> bool:
    return isinstance(value, dict) and "mean" in value


def _cell(value: Any) -> tuple[str, str]:
    if isinstance(value, dict):
        return number(value.get("mean")), interval(value.get("ci95"))
    return number(value), ""


def _judges(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every judge with its adversaries: how often each won against the reference system."""
    out = []
    for name, judge in (results.get("judges") or {}).items():
        tokens = judge.get("tokens") or {}
        known = judge.get("accuracy") or {}
        spent = sum(tokens.values()) + sum((judge.get("adversary_tokens") or {}).values())
        out.append(
            {
                "name": judge_name(name),
                "reliable": judge.get("reliable"),
                "accuracy": percent(known.get("share")) if known else "",
                "accuracy_ci": interval(known.get("ci95"), 100, 0),
                "flip_rate": percent(judge["flip_rate"]) if "flip_rate" in judge else "",
                "tokens": f"{spent:,}" if tokens else "",
                "adversaries": [
                    (named(a), percent(found.get("win_rate")), interval(found.get("ci95"), 100, 0))
                    for a, found in (judge.get("adversaries") or {}).items()
                ],
            }
        )
    return out


def _harness(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a system, task and metric."""
    rows = []
    for name, tasks in ((results.get("lm_eval") or {}).get("systems") or {}).items():
        for task, found in tasks.items():
            for metric, value in found.items():
                if isinstance(value, dict):
                    error = f"± {number(value['stderr'])}" if value.get("stderr") is not None else ""
                    rows.append(
                        {
                            "system": plain_name(name),
                            "task": task,
                            "metric": metric,
                            "n": found.get("n", ""),
                            "value": number(value.get("value")),
                            "error": error,
                        }
                    )
    return rows


COLUMNS = {
    "gold": "Gold",
    "reward": "Reward",
    "held_out_reward": "Held-out reward",
    "kl": "KL, nats",
    "length": "Length, tokens",
    "distinct_1": "Distinct-1",
    "distinct_2": "Distinct-2",
    "truncated": "Cut off",
}


def shown_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Keys and titles of the table of systems: those of which a system has a value."""
    return {key: title for key, title in COLUMNS.items() if any(row["cells"][key][0] for row in rows)}


def system_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a system and decoding, every cell as (value, interval)."""
    rows = []
    for part, decoding in (("systems", "sampled"), ("greedy", "greedy")):
        for name, d in (results.get(part) or {}).items():
            cells = {key: _cell(d.get(key)) for key in COLUMNS if key != "truncated"}
            cells["truncated"] = (percent(d["truncated"]), "") if "truncated" in d else ("", "")
            rows.append(
                {
                    "name": plain_name(name),
                    "key": name,
                    "decoding": decoding,
                    "n": d.get("n", ""),
                    "cells": cells,
                }
            )
    return rows


def comparison_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every comparison with its verdict, numbers as text."""
    return [
        {
            "a": plain_name(c["a"]),
            "b": plain_name(c["b"]),
            "by": score_name(c.get("by", "")),
            "decoding": c.get("decoding", "sampled"),
            "counts": f"{c.get('wins', '')} / {c.get('ties', '')} / {c.get('losses', '')}",
            "win_rate": percent(c.get("win_rate")),
            "ci": interval(c.get("ci95"), 100, 0),
            "p": p_value(c.get("p_value")),
            "p_holm": p_value(c.get("p_value_holm")),
            "fair": percent((c.get("length_controlled") or {}).get("win_rate")),
            "fair_ci": interval((c.get("length_controlled") or {}).get("ci95"), 100, 0),
            "fair_note": str((c.get("length_controlled") or {}).get("note") or ""),
            "detectable": f"±{percent(c['minimum_detectable'])}" if "minimum_detectable" in c else "",
            "verdict": c.get("verdict", ""),
        }
        for c in results.get("comparisons") or []
    ]
