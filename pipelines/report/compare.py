"""Several runs on one page: what differs in their recipes, what became of each, and their curves over each other.

Reads each run as its own report does and computes no statistics: an interval here is the run's own. This module knows
nothing of HTML.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.common.errors import UserError
from data.common.number_format import duration
from pipelines.report import charts
from pipelines.report.evaluation import system_rows
from pipelines.report.page import fill, frontier, gate_of, view
from pipelines.report.run_files import RunFiles, read_run
from pipelines.report.stage_facts import stage_rows
from pipelines.stages.table import STAGES, title_of
from pipelines.workspace.run_folder import check_outside

COLOURS = ("@ppo", "@sft", "@reward", "@other", "@base", "@pretrain")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = {"PPO": "diamond", "SFT": "square"}
MAX_RUNS = len(COLOURS)


def write_comparison(runs: Sequence[Path], out: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """Write one self-contained page about several runs and return its path.

    Raises:
        UserError: fewer than two runs, one twice, too many, or a folder that holds nothing of a run.
    """
    from models.backbone.artifacts import check_destination, replace_text

    folders = [Path(run).resolve() for run in runs]
    if not 2 <= len(folders) <= MAX_RUNS:
        raise UserError(f"trivet report: a comparison takes 2 to {MAX_RUNS} runs, here are {len(folders)}")
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise UserError(f"{runs[i]}: named twice; give different runs")
    check_destination(out, "--out")
    check_outside(out, "--out")
    files = dict(zip(names(folders), map(read_run, folders), strict=True))
    made = page(files)
    try:
        replace_text(out, made, say)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return out


def names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; where two are equal, the paths below the folder that all share."""
    if len({f.name for f in folders}) == len(folders):
        return [f.name for f in folders]
    common = os.path.commonpath(folders)
    return [str(f.relative_to(common)) for f in folders]


def page(runs: Mapping[str, RunFiles]) -> str:
    """The page of the runs by name."""
    figures = _figures(runs)
    context = {
        "names": list(runs),
        "colours": [c[1:] for c in COLOURS],
        "runs": [_about(name, files) for name, files in runs.items()],
        "recipes": recipe_differences({name: files.shown_recipe for name, files in runs.items()}),
        "systems": _systems(runs),
        "notes": _notes(runs) + [f"{name}: {note}" for name, files in runs.items() for note in files.notes],
        "costs": _costs(runs),
        "frontier": figures["frontier"],
        "groups": figures["groups"],
    }
    every = [f for f in [figures["frontier"], *(c for _, _, group in figures["groups"] for c in group)] if f]
    return fill("compare.html.jinja", every, context)


def recipe_differences(recipes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Settings that are not the same in all runs, dotted, each with its value in every run ('–' where it has none)."""
    flat = {name: _flat(_loaded(text)) for name, text in recipes.items()}
    keys = dict.fromkeys(key for one in flat.values() for key in one)
    rows = [{"key": key, "values": [one.get(key, "–") for one in flat.values()]} for key in keys]
    return [row for row in rows if len(set(row["values"])) > 1]


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for key, one in value.items() for k, v in _flat(one, f"{prefix}{key}.").items()}
    if not prefix:
        return {}
    if isinstance(value, list | dict):
        return {prefix[:-1]: yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()}
    return {prefix[:-1]: "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)}


def _about(name: str, files: RunFiles) -> dict[str, Any]:
    """Headline, the five short answers and the gate of one run."""
    seen = view(files)
    return {k: seen[k] for k in ("headline", "questions", "seed", "warnings")} | {
        "name": name,
        "path": str(files.path),
        "gate": gate_of(files),
    }


def _systems(runs: Mapping[str, RunFiles]) -> list[dict[str, Any]]:
    """One row a system and run, the same system of all runs together."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for i, (name, files) in enumerate(runs.items()):
        for row in system_rows(files.results):
            found.setdefault((row["key"], row["decoding"]), []).append(row | {"run": name, "number": i})
    return [row | {"first": i == 0} for group in found.values() for i, row in enumerate(group)]


def _notes(runs: Mapping[str, RunFiles]) -> list[str]:
    """What a reader of the table must know before comparing numbers across runs."""
    out = []
    evaluated = {n: f for n, f in runs.items() if f.results}
    if missing := [n for n in runs if n not in evaluated]:
        out.append(f"Not evaluated: {', '.join(missing)}.")
    if _differ(evaluated, "reward"):
        out.append("The runs have different reward models: rewards of one cannot be set against those of another.")
    if _differ(evaluated, "sft"):
        out.append("The runs have different SFT models: KL and win rates are each against the run's own.")
    settings = {n: f.results.get("settings") or {} for n, f in evaluated.items()}
    values = {key: {n: str(s[key]) for n, s in settings.items() if key in s} for key in (*HOW_SAMPLED, "prompts")}
    unlike = {key: of_run for key, of_run in values.items() if len(set(of_run.values())) > 1}
    prompts = {n: {str(r.get("prompt")) for r in f.samples} for n, f in evaluated.items()}
    if len({frozenset(p) for p in prompts.values()}) > 1:
        out.append("The runs were not evaluated on the same prompts.")
    elif "prompts" in unlike and "samples_per_prompt" not in unlike:  # a prompt is told as often as it is asked
        out.append("The runs were evaluated on prompts of the same texts, in another order or behind other turns.")
    for key in [key for key in HOW_SAMPLED if key in unlike]:
        said = "; ".join(f"{value} in {n}" for n, value in unlike[key].items())
        out.append(f"The runs' responses were not sampled alike: evaluation's {key} is {said}.")
    return out


HOW_SAMPLED = ("temperature", "max_new_tokens", "samples_per_prompt")  # another seed alone changes no expectation


def _differ(runs: Mapping[str, RunFiles], stage: str) -> bool:
    """Whether runs were evaluated with different results of a stage, or hold different ones."""
    return any(len({_key(f, stage, first) for f in runs.values()} - {""}) > 1 for first in ("evaluation", "run"))


def _key(files: RunFiles, stage: str, first: str) -> str:
    """The key of a stage's result: of the one that evaluation was given, or of the run's own, if only one is known."""
    noted = (files.run.get("stages") or {}).get(stage) or {}
    own = str(noted.get("key") or (files.manifests.get(stage) or {}).get("key") or "")
    given = ((files.manifests.get("evaluate") or {}).get("parents") or {}).get(stage, "")
    return (given or own) if first == "evaluation" else (own or given)


def _costs(runs: Mapping[str, RunFiles]) -> list[dict[str, Any]]:
    """Stage -> time, tokens and memory in every run; ``same`` where all have the very same result."""
    rows = {name: {s["name"]: s for s in stage_rows(files)} for name, files in runs.items()}
    stages = [s for s in STAGES if any(s in one for one in rows.values())]
    out = []
    for stage in stages:
        cells = [one.get(stage) for one in rows.values()]
        keys = {c["key"] if c else "" for c in cells}
        out.append({"title": title_of(stage), "cells": cells, "same": len(keys) == 1 and "" not in keys})
    total = [sum(s["seconds"] or 0 for s in one.values()) for one in rows.values()]
    cells = [{"time": duration(t, 1), "status": "done"} for t in total]
    return [*out, {"title": "In all", "cells": cells, "same": False}]


def _figures(runs: Mapping[str, RunFiles]) -> dict[str, Any]:
    """Training curves of all runs over each other by stage, and reward against KL."""
    groups = []
    for stage in STAGES:
        per_run = [{c["id"]: c for c in charts.curves(stage, files.metrics.get(stage, []))} for files in runs.values()]
        known = dict.fromkeys(identity for one in per_run for identity in one)
        if known:
            merged = [_merged([one.get(identity) for one in per_run], list(runs)) for identity in known]
            groups.append((stage, title_of(stage), merged))
    near = [{k: v for k, v in (f.results.get("systems") or {}).items() if k != "base"} for f in runs.values()]
    paths = [frontier(files, systems) for files, systems in zip(runs.values(), near, strict=True)]
    return {"groups": groups, "frontier": _merged(paths, list(runs)) if any(paths) else None}


def _merged(figures: Sequence[dict[str, Any] | None], runs: Sequence[str]) -> dict[str, Any]:
    """One figure with the traces of every run in its colour."""
    first = next(f for f in figures if f)
    traces = []
    for i, (figure, run) in enumerate(zip(figures, runs, strict=True)):
        for trace in (figure or {}).get("data", []):
            title = f"{run}: {html.unescape(trace['name'])}" if "name" in trace else run
            own = {"name": _plain(title), "hoverlabel": {"namelength": -1}}
            if "line" in trace:
                own["line"] = trace["line"] | {"color": COLOURS[i], "dash": DASHES[i]}
            if "marker" in trace:
                system = str(trace.get("name", "")).split(",")[0]
                symbol = trace["marker"].get("symbol") or SYMBOLS.get(system, "circle")
                own["marker"] = trace["marker"] | {"color": COLOURS[i], "symbol": symbol}
            own["hovertemplate"] = trace["hovertemplate"].replace("<extra></extra>", f"<extra>{_plain(run)}</extra>")
            traces.append(trace | own)
    layout = {k: v for k, v in first["layout"].items() if k != "shapes"}
    return first | {"data": traces, "layout": layout}


def _plain(text: str) -> str:
    """Safe inside plotly's markup, and short enough for a legend."""
    return html.escape(text if len(text) <= 48 else text[:45] + "...")
