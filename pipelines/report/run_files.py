"""What lies in a run folder, as the report reads it: damaged or foreign parts are noted and left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from data.common.errors import UserError
from data.common.redaction import redact, redacted
from data.common.strict_json import read_object
from models.backbone.artifacts import MANIFEST, partial_folder
from pipelines.recipe.renamed import metrics_in_new_words
from pipelines.recipe.schema import settings_yaml
from pipelines.report import reward_card as report_reward
from pipelines.report import shapes
from pipelines.stages.table import STAGES, folders
from pipelines.workspace.kept_recipes import kept_file
from pipelines.workspace.run_folder import RECIPE, RUN

CARD = "report_card.json"


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What was found in a run folder; every part may be empty."""

    path: Path
    run: Mapping[str, Any]
    recipe: str  # of the newest call
    metrics: Mapping[str, list[dict[str, Any]]]
    manifests: Mapping[str, Mapping[str, Any]]
    results: Mapping[str, Any]
    samples: list[dict[str, Any]]
    card: Mapping[str, Any] = field(default_factory=dict)  # the reward model's report card
    notes: list[str] = field(default_factory=list)
    recipes: Mapping[str, str] = field(default_factory=dict)  # of each stage that left a trace, its own recipe

    def recipe_of(self, *stages: str) -> str:
        """The recipe of the first of these stages that left a trace; that of the newest call where none did.

        A finished result has the recipe that it was made with, as far as that was kept. A stage that runs, failed or
        was stopped has the newest call's.
        """
        return next((self.recipes[stage] for stage in stages if stage in self.recipes), self.recipe)

    @property
    def shown_recipe(self) -> str:
        """The recipe of what the page is about: of the evaluation, else of the last stage that left a trace."""
        return self.recipe_of(*reversed(STAGES))


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
    newest = redact(recipe.read_text(encoding="utf-8", errors="replace")) if recipe.is_file() else ""
    noted = run.get("stages") or {}
    traces = [s for s in places if noted.get(s) or manifests[s] or metrics[s]]
    finished = [s for s in traces if manifests[s] and not _in_progress(noted.get(s) or {}, places[s])]
    return RunFiles(
        path=path,
        run=redacted(run),
        recipe=newest,
        metrics={s: rows for s, rows in metrics.items() if rows},
        manifests=redacted({s: m for s, m in manifests.items() if m}),
        results=redacted(results),
        samples=redacted(samples),
        card=_card(_first_card(path, run, notes), manifests["reward"], notes),
        recipes=dict.fromkeys(traces, newest) | _kept_recipes(path, finished, notes),
        notes=redacted(notes),
    )


def _live(final: Path) -> Path:
    """Where a stage's metrics grow: in the hidden folder while it runs, if that has any, else in its own."""
    partial = final.with_name(f".{final.name}.partial")
    return partial if (partial / "metrics.jsonl").is_file() else final


def _in_progress(entry: Mapping[str, Any], final: Path) -> bool:
    """Whether a stage runs, failed or was stopped, perhaps beside its result of an earlier call."""
    return (entry.get("status") or "done") != "done" or _live(final) != final


def _kept_recipes(run: Path, finished: Sequence[str], notes: list[str]) -> dict[str, str]:
    """Stage -> the recipe that its result was made with, of those that kept one."""
    out, texts = {}, dict[str, str]()
    for stage in finished:
        file = kept_file(run, stage)
        found = _json(file, notes, shapes.KeptRecipe) if file is not None else {}
        if settings := found.get("recipe"):
            values = json.dumps(settings)
            texts.setdefault(values, redact(settings_yaml(settings)))
            out[stage] = texts[values]
    return out


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
