"""What the stages of a run noted of themselves: their rows, warnings, counts, and what was found in the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.common.number_format import duration, shown
from pipelines.report import first_screen
from pipelines.report.first_screen import COUNTS
from pipelines.report.run_files import RunFiles
from pipelines.stages.table import STAGES, title_of

SHOWN_ELSEWHERE = ("warnings", "probe", "report_card", "held_out_curves")  # shown elsewhere, or for machines only


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
            out.append((title_of(name), found_in(found) | counted(found)))
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


def found_in(metrics: Mapping[str, Any]) -> dict[str, str]:
    """A stage's metrics one by one, without those that have a section of their own and the counts."""
    plain = {k: v for k, v in metrics.items() if k not in SHOWN_ELSEWHERE and not k.endswith(COUNTS)}
    return {k.replace("_", " "): shown(v) for k, v in (plain | learnt(metrics)).items()}


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
