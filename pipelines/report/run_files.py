"""What lies in a run folder, as the report reads it: damaged or foreign parts are noted and left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.common.errors import UserError
from data.common.redaction import redact, redacted
from data.common.strict_json import read_object
from models.backbone.artifacts import MANIFEST, partial_folder
from pipelines.recipe.renamed import metrics_in_new_words
from pipelines.report import reward_card as report_reward
from pipelines.report import shapes
from pipelines.stages.table import STAGES, folders
from pipelines.workspace.run_folder import RECIPE, RUN

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
