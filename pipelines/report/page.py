"""A run folder as one self-contained ``report.html``: what happened, in words first.

Reads what is there - ``run.json``, ``recipe.yaml``, manifests, metrics, evaluation - and says nothing about the rest,
so that an unfinished run has a report as well. This module knows nothing of models and computes no statistics.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.common.errors import UserError
from data.common.number_format import duration, interval, number, p_value, percent, shown
from data.common.redaction import redact, redacted
from data.common.strict_json import read_object
from models.backbone.artifacts import MANIFEST, partial_folder
from pipelines.recipe.renamed import metrics_in_new_words
from pipelines.report import charts, first_screen, shapes
from pipelines.report import evaluation as report_evaluation
from pipelines.report import reward_card as report_reward
from pipelines.report.curves_csv import as_csv
from pipelines.report.first_screen import COUNTS
from pipelines.report.outdated import outdated
from pipelines.report.samples import dumps, packed, packed_samples
from pipelines.report.words import Words, answers_to_newcomers, headline
from pipelines.stages.table import STAGES, folders, title_of
from pipelines.workspace.run_folder import RECIPE, REPORT, RUN

SHOWN_ELSEWHERE = ("warnings", "probe", "report_card", "held_out_curves")  # shown elsewhere, or for machines only
OWN_FILES = ("evaluation/results.json", "evaluation/samples.jsonl", "reward/report_card.json", RECIPE)
CARD = "report_card.json"


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What was found in a run folder; every part may be empty."""

    path: Path
    run: Mapping[str, Any]
    recipe: str
    metrics: Mapping[str, list[dict[str, Any]]]
    manifests: Mapping[str, Mapping[str, Any]]
    results: Mapping[str, Any]
    samples: list[dict[str, Any]]
    card: Mapping[str, Any] = field(default_factory=dict)  # the reward model's report card
    notes: list[str] = field(default_factory=list)


def write_report(run_dir: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Another one there becomes the previous report, which ``say`` reports.

    Raises:
        UserError: the folder is missing or holds nothing of a run.
    """
    from models.backbone.artifacts import replace_text

    files = read_run(Path(run_dir))
    out = files.path / REPORT
    replace_text(out, page_of(files), say)
    return out


def page_of(files: RunFiles) -> str:
    """The page."""
    return render(view(files))


def read_run(path: Path) -> RunFiles:
    """Read a run folder; what cannot be read, or has another shape than trivet writes, is noted and left out.

    Raises:
        UserError: the folder is missing or holds nothing of a run.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; `trivet ls` lists the runs")
    notes: list[str] = []
    places = {s: path / name for s, name in folders().items()}
    lines = {s: _json_lines(_live(f) / "metrics.jsonl", notes, shapes.Row) for s, f in places.items()}
    metrics = {s: metrics_in_new_words(rows) for s, rows in lines.items()}
    manifests = {s: _json(f / MANIFEST, notes, shapes.Manifest) for s, f in places.items()}
    run = _json(path / RUN, notes, shapes.RUN_SHAPE)
    samples = _json_lines(places["evaluate"] / "samples.jsonl", notes, shapes.Sample)
    results = _json(places["evaluate"] / "results.json", notes, shapes.Results)
    if not (run or results or any(metrics.values()) or any(manifests.values())):
        raise UserError(f"{path}: no run.json, metrics or results here; give the folder that `trivet run` wrote")
    recipe = path / RECIPE
    return RunFiles(
        path=path,
        run=redacted(run),
        recipe=redact(recipe.read_text(encoding="utf-8", errors="replace")) if recipe.is_file() else "",
        metrics={s: rows for s, rows in metrics.items() if rows},
        manifests=redacted({s: m for s, m in manifests.items() if m}),
        results=redacted(results),
        samples=redacted(samples),
        card=_card(_first_card(path, run, notes), manifests["reward"], notes),
        notes=redacted(notes),
    )


def _live(final: Path) -> Path:
    """Where a stage's metrics grow: in the hidden folder while it runs, if that has any, else in its own."""
    partial = final.with_name(f".{final.name}.partial")
    return partial if (partial / "metrics.jsonl").is_file() else final


def view(files: RunFiles) -> dict[str, Any]:
    """Everything that the template shows, as plain values."""
    results, run = files.results, files.run
    accuracy = files.manifests.get("reward", {}).get("metrics") or {}
    stages = stage_rows(files)
    gate = report_reward.gate_outcome(files.card, files.recipe)
    found = {"share": "pair_accuracy", "ci95": "pair_accuracy_ci95", "n": "pairs"}  # where there is no card
    card = files.card or {"accuracy": {k: accuracy.get(v) for k, v in found.items()}}
    failed = report_reward.failed_lines(files.card)
    words = Words(
        results=results, card=card, gate=gate, failed=failed, command=command(files.path), seed=run.get("seed")
    )
    given = run.get("inputs") or {}  # results that were not asked of this run
    asked = tuple(s for s in first_screen.asked_for(files.recipe) if s not in given)
    words = replace(words, asked=asked, stages=stages, learnt=first_screen.first_curves(files.manifests))
    figures = _figures(files, stages)
    table = as_csv(files.metrics)
    samples, count = packed_samples(files.samples)
    warnings = [*outdated(files.path).values(), *map(str, results.get("warnings", [])), *training_warnings(files)]
    return {
        "name": run.get("name") or files.path.resolve().name,
        "seed": run.get("seed"),
        "headline": headline(words),
        "metrics": first_screen.metrics_in_short(results, words.main),
        "lost": first_screen.lost_rows(run, files.manifests, warnings),
        "evaluations": first_screen.evaluations(files.path),
        "own_files": [f for f in OWN_FILES if (files.path / f).is_file()],
        "curves_csv": packed(table) if table else "",
        "questions": answers_to_newcomers(words),
        "warnings": warnings,
        "notes": files.notes,
        "systems": system_rows(results),
        "comparisons": comparison_rows(results),
        "beside": report_evaluation.view(results),
        "baselines": {k.replace("_", " "): number(v) for k, v in (results.get("baselines") or {}).items()},
        "judge": report_evaluation.JUDGES.get(str(results.get("judge", "")), ""),
        "watched": any("held_out_reward" in d for d in (results.get("systems") or {}).values()),
        "figures": figures,
        "curve_groups": [(s, title_of(s), figures["curves"][s]) for s in STAGES if figures["curves"].get(s)],
        "reward_facts": {k.replace("_", " "): shown(v) for k, v in (_plain(accuracy) | learnt(accuracy)).items()},
        "card": report_reward.view(files.card, gate) if files.card else None,
        "samples": samples if count else "",
        "samples_count": count,
        "samples_total": len(files.samples),
        "stage_warnings": stage_warnings(files),
        "stages": stages,
        "total_seconds": duration(sum(s["seconds"] or 0 for s in stages), 1) if stages else "",
        "facts": facts(files),
        "recipe": files.recipe,
        "command": words.command,
    }


def command(path: Path) -> str:
    """The command that repeats the run from its resolved recipe, next to the old folder, relative where it can be."""
    here = Path.cwd()
    path = path.resolve()
    path = path.relative_to(here) if path.is_relative_to(here) else path
    return f"trivet run {shlex.quote(str(path / RECIPE))} --run-dir {shlex.quote(str(path) + '-again')}"


def stage_rows(files: RunFiles) -> list[dict[str, Any]]:
    """Name, status, key, parents, time and memory of every stage that left a trace, in order."""
    noted = files.run.get("stages") or {}
    rows = []
    for name in [*STAGES, *(s for s in noted if s not in STAGES)]:
        entry, manifest = first_screen.ended(files.path, noted.get(name) or {}), files.manifests.get(name) or {}
        if not (entry or manifest or name in files.metrics):
            continue
        seconds = entry.get("seconds")
        peak = entry.get("peak_memory")
        rows.append(
            {
                "name": name,
                "title": title_of(name),
                "status": str(entry.get("status") or ("done" if manifest else "unfinished")),
                "lines": [str(line) for line in entry.get("lines") or ()],
                "key": str(entry.get("key") or manifest.get("key") or ""),
                "parents": {k: str(v) for k, v in (manifest.get("parents") or {}).items()},
                "seconds": seconds,
                "time": duration(seconds, 1) if seconds is not None else "",
                "memory": f"{peak / 2**20:,.0f} MB" if peak else "",
                "tokens": f"{tokens:,}" if (tokens := entry.get("tokens")) else "",
            }
        )
    return rows


def training_warnings(files: RunFiles) -> list[str]:
    """What the stages noticed of themselves while they trained, with the step at which they did."""
    return [
        f"{title_of(stage)}{_at(stage, w)}: {w['text']}"
        for stage, found in stage_warnings(files).items()
        for w in found
    ]


def _at(stage: str, warned: Mapping[str, Any]) -> str:
    """The step of a warning; nothing of one about the data, before the first."""
    return f", {STAGES[stage].unit} {warned['step']}" if warned["step"] else ""


def stage_warnings(files: RunFiles) -> dict[str, list[dict[str, Any]]]:
    """Stage -> its warnings, each with ``step`` and ``text``."""
    out = {}
    for stage in STAGES:
        found = (files.manifests.get(stage, {}).get("metrics") or {}).get("warnings")
        found = found if isinstance(found, list) else []
        rows = [w for w in found if isinstance(w, dict) and "step" in w and "text" in w]
        if rows:
            out[stage] = rows
    return out


def facts(files: RunFiles) -> list[tuple[str, dict[str, str]]]:
    """What each stage counted and found, from its manifest; the reward model has a card of its own."""
    out = []
    for name in STAGES:
        found = files.manifests.get(name, {}).get("metrics") or {}
        if found and STAGES[name].facts:
            rows = {k.replace("_", " "): shown(v) for k, v in (_plain(found) | learnt(found)).items()}
            out.append((title_of(name), rows | counted(found)))
        elif rows := counted(found):
            out.append((f"{title_of(name)}: counts", rows))
    data = files.run.get("data")
    if isinstance(data, dict):
        out.insert(0, ("Data", {str(k).replace("_", " "): shown(v) for k, v in data.items()}))
    out += [(f"Source: {title}", rows) for title, rows in sources(files)]
    return out + data_check(files)


def data_check(files: RunFiles) -> list[tuple[str, dict[str, str]]]:
    """What the look at the data found before the first stage: doubts, and counts by part, lengths aside."""
    found = files.run.get("data_check")
    found = found if isinstance(found, dict) else {}
    doubts: dict[str, str] = {}
    for one in found.get("findings") or []:
        if isinstance(one, dict):
            kind, text = str(one.get("kind", "")), str(one.get("text", ""))
            doubts[kind] = f"{doubts[kind]}; {text}" if kind in doubts else text
    out = [("Data: doubtful", doubts)] if doubts else []
    facts = found.get("facts")
    for part, rows in (facts if isinstance(facts, dict) else {}).items():
        if isinstance(rows, dict) and (shown_rows := {k: _in_short(v) for k, v in rows.items() if k in IN_REPORT}):
            out.append((f"Data: {part}", shown_rows))
    return out


IN_REPORT = ("roles", "turns", "languages", "scripts", "duplicate rows", "repeated prompts", "liked", "not liked")
"""Of what was counted in each part, that which the report shows."""


def _in_short(value: Any) -> str:
    return ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) if isinstance(value, dict) else shown(value)


def sources(files: RunFiles) -> list[tuple[str, dict[str, str]]]:
    """What became of the rows of each source, where the run has noted it."""
    found = files.run.get("sources")
    counts = [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []
    return [
        (
            f"{c.get('source', '')} ({c.get('part', '')})",
            {k.replace("_", " "): _in_short(v) for k, v in c.items() if k not in ("source", "part") and v},
        )
        for c in counts
    ]


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics that are listed one by one: those with a section of their own and the counts are not."""
    return {k: v for k, v in metrics.items() if k not in SHOWN_ELSEWHERE and not k.endswith(COUNTS)}


def learnt(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What held-out rows showed of each role's training, in its sentence."""
    curves = metrics.get("held_out_curves")
    found = curves.items() if isinstance(curves, Mapping) else ()
    return {f"learnt: {role}": str(c["text"]) for role, c in found if isinstance(c, Mapping) and "text" in c}


def counted(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What a stage counted of its data: used, cut and dropped rows."""
    out: dict[str, str] = {}
    for group, counts in metrics.items():
        if group.endswith(COUNTS) and isinstance(counts, dict):
            part = group.removesuffix(COUNTS).rstrip("_")
            flat = {k.replace("_", " "): v for k, v in counts.items() if k != "by_source"}
            flat |= _by_source(counts.get("by_source"))
            part = part.replace("_", " ")
            out |= {f"{part}: {k}".removeprefix(": "): shown(v) for k, v in flat.items()}
    return out


def _by_source(found: Any) -> dict[str, Any]:
    """What each source lost, by ``cut of SOURCE`` and ``dropped of SOURCE``; nothing where one source gave all rows."""
    sources = {name: n for name, n in found.items() if isinstance(n, dict)} if isinstance(found, dict) else {}
    if len(sources) < 2:
        return {}
    return {f"{what} of {name}": n.get(what, "") for name, n in sources.items() for what in ("rows", "cut", "dropped")}


def system_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a system and decoding, every cell as (value, interval)."""
    rows = []
    for part, decoding in (("systems", "sampled"), ("greedy", "greedy")):
        for name, d in (results.get(part) or {}).items():
            cells = {
                k: _cell(d.get(k))
                for k in ("reward", "held_out_reward", "gold", "kl", "length", "distinct_1", "distinct_2")
            }
            cells["truncated"] = (percent(d["truncated"]), "") if "truncated" in d else ("", "")
            rows.append(
                {
                    "name": charts.plain_name(name),
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
            "a": charts.plain_name(c["a"]),
            "b": charts.plain_name(c["b"]),
            "by": str(c.get("by", "")).replace("_", " "),
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


def _figures(files: RunFiles, stages: list[dict[str, Any]]) -> dict[str, Any]:
    systems = files.results.get("systems") or files.results.get("greedy") or {}
    warned = stage_warnings(files)
    return {
        "wins": charts.win_rates(files.results.get("comparisons") or []),
        "frontier": frontier(files, systems),
        "proxy": charts.proxy_and_gold(systems),
        "curves": {s: charts.curves(s, files.metrics.get(s, []), warned.get(s, [])) for s in STAGES},
        "cost": charts.cost(stages),
        "card": report_reward.figures(files.card),
    }


def frontier(files: RunFiles, systems: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reward against KL of one run."""
    stage_metrics = {s: files.manifests.get(s, {}).get("metrics") or {} for s in ("reward", "ppo")}
    scale = report_reward.training_scale(files.recipe, stage_metrics["reward"])
    return charts.reward_against_kl(
        files.metrics.get("ppo", []), systems, stage_metrics["ppo"].get("kept_update"), scale
    )


def render(context: Mapping[str, Any]) -> str:
    """The page, everything inlined."""
    figures = context["figures"]
    every = (
        [figures[k] for k in ("wins", "frontier", "proxy", "cost")]
        + [c for g in figures["curves"].values() for c in g]
        + figures["card"]
    )
    return fill("report.html.jinja", [f for f in every if f], context)


def fill(template: str, every: list[dict[str, Any]], context: Mapping[str, Any]) -> str:
    """A template with its charts and their library in it."""
    from jinja2 import Environment, FileSystemLoader
    from jinja2.utils import htmlsafe_json_dumps

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["embed"] = lambda value: htmlsafe_json_dumps(value, dumps=dumps)
    plotly = _plotly() if every else ""
    return environment.get_template(template).render(**context, charts=every, plotly=plotly)


@cache
def _plotly() -> str:
    """The charts' library; base64 needs no escaping."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


# -- reading -----------------------------------------------------------------------------------------------------------


def _first_card(path: Path, run: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """That of the reward model which the run was given, or of its own, of a ready one that PPO has examined (perhaps
    stopped at the gate), else the one of an evaluation."""
    given = (run.get("inputs") or {}).get("reward")
    final = path / STAGES["ppo"].folder
    folders = (Path(given) if given else path / "reward", final, partial_folder(final), path / "evaluation")
    places = (folder / CARD for folder in folders)
    return next((found for place in places if (found := _json(place, notes, shapes.Shape))), {})


def _card(found: Mapping[str, Any], manifest: Mapping[str, Any], notes: list[str]) -> Mapping[str, Any]:
    """The report card, else what the manifest says of it."""
    card = shapes.whole_card(found) if found else None
    if found and card is None:
        notes.append("reward/report_card.json is no report card and was left out.")
    return redacted(card or report_reward.from_summary(manifest.get("metrics") or {}))


def _cell(value: Any) -> tuple[str, str]:
    if isinstance(value, dict):
        return number(value.get("mean")), interval(value.get("ci95"))
    return number(value), ""


def _json(path: Path, notes: list[str], shape: type[BaseModel]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        name = path.name if shape is shapes.RUN_SHAPE else f"{path.parent.name}/{path.name}"
        return shapes.checked(shape, read_object(path), name, notes)
    except UserError:
        notes.append(f"{path.parent.name}/{path.name} is damaged and was left out.")
        return {}


def _json_lines(path: Path, notes: list[str], shape: type[BaseModel]) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a last line that is still being written is no damage."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows, lines = [], text.split("\n")  # not splitlines: responses may hold U+2028
    for i, line in enumerate(lines):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            if i < len(lines) - 1:
                notes.append(f"{path.parent.name}/{path.name}, line {i + 1} is damaged and was left out.")
            continue
        if isinstance(row, dict):
            rows.append(row)
    return shapes.checked_rows(shape, rows, f"{path.parent.name}/{path.name}", notes)
