"""What stands before everything else: what was asked for, how stages that do not run ended, what of the data was lost,
the metrics asked for, and the run's other evaluations.

Works on plain values, and reads a few small files of the run folder; computes no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.common.errors import UserError
from data.common.number_format import number
from data.common.redaction import redact
from data.common.strict_json import read_object
from data.counting import unknown_text
from pipelines.report.names import plain_name
from pipelines.report.words import STOPPED
from pipelines.stages.table import STAGES, title_of
from pipelines.workspace.run_folder import FAILED, REPORT, RUN, holder

COUNTS = "counts"  # ends the names of a stage's counts of its data
LOG = "error.log"  # of the last failure
SHOWN_LOG = 300  # characters of its last line


def asked_for(recipe: str) -> tuple[str, ...]:
    """The stages of a resolved recipe; none where it does not say."""
    try:
        found = yaml.safe_load(recipe)
        stages = found.get("stages") if isinstance(found, dict) else None
    except yaml.YAMLError:
        return ()
    return tuple(str(s) for s in stages) if isinstance(stages, list) else ()


def ended(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a stage that has failed, with where the log is, or of any other.

    One that runs by its own account, but in a folder that no process holds, has failed or was stopped.
    """
    said = [str(line) for line in entry.get("lines") or ()]
    failed = entry.get("status") == FAILED
    if not failed and (entry.get("status") != "running" or holder(path)):
        return dict(entry)
    log, noted = path / LOG, path / RUN
    if not (log.is_file() and noted.is_file() and log.stat().st_mtime >= noted.stat().st_mtime):
        return dict(entry) if failed else {**entry, "status": STOPPED}
    if not failed:
        lines = [x for x in log.read_text(encoding="utf-8", errors="replace").splitlines() if x.strip()]
        said = [redact(line)[:SHOWN_LOG] for line in lines[-1:]]
    return {**entry, "status": FAILED, "lines": [*said, f"The log is {LOG} in the run folder"]}


def first_curves(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Stage -> the held-out curve of the first role that it trained."""
    out = {}
    for stage in STAGES:
        found = (manifests.get(stage, {}).get("metrics") or {}).get("held_out_curves")
        curves = [c for c in found.values() if isinstance(c, Mapping)] if isinstance(found, Mapping) else []
        if curves and "text" in curves[0]:
            out[stage] = curves[0]
    return out


def lost_rows(
    run: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]], warned: Sequence[str] = ()
) -> list[str]:
    """A sentence for everything of the data that was rejected, cut, dropped or not known; empty where nothing was.

    What a warning says already, of so many rows that it is one, is left out.
    """
    data = run.get("data")
    rejected = data.get("rejected rows") if isinstance(data, Mapping) else None
    out = [f"{rejected:,} rows of the files were rejected"] if isinstance(rejected, int) and rejected else []
    for stage in STAGES:
        for group, found in (manifests.get(stage, {}).get("metrics") or {}).items():
            if group.endswith(COUNTS) and isinstance(found, Mapping):
                part = group.removesuffix(COUNTS).replace("_", " ").strip()
                for text in (_lost(found), _unknown(found)):
                    if text and not any((text.partition(" rows ")[2] or text) in w for w in warned):
                        out.append(f"{title_of(stage)}{f' ({part})' if part else ''}: {text}")
    return out


def _lost(counts: Mapping[str, Any]) -> str:
    """What a stage lost of its rows, with why rows were dropped where that is counted."""
    cut, dropped, rows = (n if isinstance(n := counts.get(k), int) else 0 for k in ("cut", "dropped", "rows"))
    whys = [f"{v:,} {k.removeprefix('dropped: ')}" for k, v in counts.items() if k.startswith("dropped: ") and v]
    limit = counts.get("limit")
    to = f" to {limit:,} tokens" if isinstance(limit, int) else ""
    parts = [f"{cut:,} cut{to}"] if cut else []
    whys = [whys[0].partition(" ")[2]] if len(whys) == 1 else whys
    parts += [f"{dropped:,} dropped" + (f" ({', '.join(whys)})" if whys else "")] if dropped else []
    return f"of {rows:,} rows {' and '.join(parts)}" if parts else ""


def _unknown(counts: Mapping[str, Any]) -> str:
    """How many tokens of a stage's rows its tokenizer does not know; empty where it knows all."""
    unknown, tokens = (n if isinstance(n := counts.get(k), int) else 0 for k in ("unknown_tokens", "tokens"))
    return unknown_text(unknown, tokens) if unknown else ""


def metric_values(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metric -> system (with its decoding where that is greedy) -> value, of all metrics that are one number."""
    out: dict[str, dict[str, float]] = {}
    for part, decoding in (("systems", ""), ("greedy", " greedy")):
        for name, described in (results.get(part) or {}).items():
            for metric, value in (described.get("metrics") or {}).items():
                mean = value.get("mean") if isinstance(value, Mapping) else value
                if isinstance(mean, int | float) and not isinstance(mean, bool) and metric not in HIDDEN:
                    out.setdefault(metric, {})[name + decoding] = float(mean)
    return out


HIDDEN = ("references_n", "self_bleu_n")
"""Counts next to metrics."""


def metrics_in_short(results: Mapping[str, Any], main: Mapping[str, Any] | None) -> list[str]:
    """Each metric that was asked for, of the two systems that the headline is about, else of the last system."""
    greedy = " greedy" if (main or {}).get("decoding") == "greedy" else ""
    wanted = [f"{main[k]}{greedy}" for k in ("b", "a")] if main else []
    out = []
    for metric, values in metric_values(results).items():
        systems = [s for s in wanted if s in values] or list(values)[-1:]
        shown = " → ".join(f"{plain_name(s)} {number(values[s])}" for s in systems)
        out.append(f"{metric.replace('_', ' ')}: {shown}")
    return out


def evaluations(path: Path) -> list[tuple[str, str]]:
    """Other evaluations of a run's results: the report's address from the run folder, and what was evaluated."""
    out = []
    for folder in sorted((path / "evaluations").glob("*")):
        results = folder / "evaluation" / "results.json"
        if not results.is_file():
            continue
        page = folder / REPORT
        place = page if page.is_file() else results
        try:
            found = read_object(results)
        except UserError:
            continue
        out.append((place.relative_to(path).as_posix(), _evaluated(found)))
    return out


def _evaluated(results: Mapping[str, Any]) -> str:
    systems: Sequence[str] = list(results.get("systems") or results.get("greedy") or {})
    return f"{', '.join(map(plain_name, systems))} on {results.get('prompts', '?')} prompts"
