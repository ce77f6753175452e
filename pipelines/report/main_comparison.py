"""The comparison that a run is about, of all that its evaluation made. Works on the values of ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OPPOSITE = {"better": "worse", "worse": "better"}


def main_comparison(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """That of PPO, else of the last system that a stage has made, sampled, by the judge; None where there is none.

    The base comes last: where it alone is compared with another system, that one is the run's, and the comparison is
    turned round.
    """
    known = list(results.get("comparisons") or [])
    places = {name: place for place, name in enumerate(results.get("systems") or {})}
    known.sort(
        key=lambda c: (
            c.get("a") != "ppo",
            c.get("decoding", "sampled") != "sampled",
            c.get("a") == "base",
            -places.get(str(c.get("a")), 0),
        )
    )
    if not known:
        return None
    return turned(known[0]) if known[0].get("a") == "base" else known[0]


def turned(c: Mapping[str, Any]) -> dict[str, Any]:
    """The same comparison from the other system's side."""
    out = dict(c) | {"a": c.get("b"), "b": c.get("a"), "wins": c.get("losses"), "losses": c.get("wins")}
    out |= _share(c)
    if isinstance(c.get("length_controlled"), Mapping):
        out["length_controlled"] = dict(c["length_controlled"]) | _share(c["length_controlled"])
    if isinstance(difference := c.get("difference"), Mapping):
        mean, ci = difference.get("mean"), difference.get("ci95")
        turned_ci = None if not ci else [-ci[1], -ci[0]]
        out["difference"] = dict(difference) | {"mean": None if mean is None else -mean, "ci95": turned_ci}
    out |= {"verdict": OPPOSITE.get(str(c.get("verdict")), c.get("verdict"))}
    if c.get("verdict") in OPPOSITE and c.get("verdict_text") and out["ci95"]:
        low, high = out["ci95"]
        shown = f"{100 * out['win_rate']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        out["verdict_text"] = f"{out['verdict']}: wins {shown} of {c.get('n')} prompts"
    return out


def _share(found: Mapping[str, Any]) -> dict[str, Any]:
    rate, ci = found.get("win_rate"), found.get("ci95")
    return {"win_rate": None if rate is None else 1 - rate, "ci95": None if not ci else [1 - ci[1], 1 - ci[0]]}
