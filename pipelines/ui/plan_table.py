"""A plan as a page shows it, from the JSON of ``trivet plan --json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.common.number_format import duration, size

COLUMNS = ("stage", "status", "why", "steps", "tokens", "memory", "disk", "time")


def rows(plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row a stage, every cell a text; ? is not known before the base is there."""
    return [
        {
            "stage": one["name"],
            "status": one["status"],
            "why": one["why"],
            "steps": _count(one["steps"], ""),
            "tokens": _count(one["tokens"], "?"),
            "memory": "?" if one["memory"] is None else size(one["memory"]),
            "disk": "?" if one["disk"] is None else size(one["disk"]),
            "time": "" if one["seconds"] is None else f"about {duration(one['seconds'])}",
        }
        for one in plan["stages"]
    ]


def _count(number: int | None, unknown: str) -> str:
    return unknown if number is None else f"{number:,}"


def headline(plan: Mapping[str, Any]) -> str:
    """Time and peak memory of what is still to be done, in a sentence."""
    todo = [one for one in plan["stages"] if one["status"] in ("new", "stale")]
    if not todo:
        return "Every stage is finished: a run has nothing to do."
    known = [one["seconds"] for one in todo if one["seconds"] is not None]
    memory = [one["memory"] for one in todo if one["memory"] is not None]
    time = f"about {duration(sum(known))}" if len(known) == len(todo) else "a time that is not known yet"
    peak = f", at most about {size(max(memory))} of memory" if memory else ""
    stages = f"{len(todo)} stage{'s' * (len(todo) != 1)}"
    return f"{stages} to run: {time}{peak}."


def warnings(plan: Mapping[str, Any]) -> list[str]:
    """What the plan warns of, of stages and of the data."""
    stages = [f"{one['name']}: {one[key]}" for one in plan["stages"] for key in ("too_large", "warning") if one[key]]
    return [*stages, *plan["findings"], *plan["warnings"]]


def reasons(plan: Mapping[str, Any]) -> list[str]:
    """Why settings that nobody gave have their values, and what the times stand on."""
    chosen = [f"{one['name']}: {text}" for one in plan["stages"] for text in (one["chosen"] or "").splitlines()]
    return [*chosen, *plan["rehearsed"], *filter(None, [plan["seconds_assume"]])]


def replaced(plan: Mapping[str, Any]) -> list[str]:
    """Finished stages that a run would do again, with the reason: their results become the previous ones."""
    return [f"{one['name']}: {one['why']}" for one in plan["stages"] if one["status"] == "stale"]
