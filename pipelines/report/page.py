"""A run folder as one self-contained ``report.html``: what happened, in words first.

Reads what is there - ``run.json``, recipes, manifests, metrics, evaluation - and says nothing about the rest, so that
an unfinished run has a report as well. This module knows nothing of models and computes no statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from data.common.number_format import duration, number
from pipelines.report import charts, first_screen
from pipelines.report import evaluation as report_evaluation
from pipelines.report import reward_card as report_reward
from pipelines.report.again import command, seed_of
from pipelines.report.curves_csv import as_csv
from pipelines.report.evaluation import comparison_rows, shown_columns, system_rows
from pipelines.report.names import judge_name
from pipelines.report.outdated import outdated
from pipelines.report.run_files import RunFiles, read_run
from pipelines.report.samples import dumps, packed, packed_samples
from pipelines.report.stage_facts import facts, found_in, stage_rows, stage_warnings, training_warnings
from pipelines.report.words import Words, answers_to_newcomers, headline
from pipelines.stages.table import STAGES, title_of
from pipelines.workspace.run_folder import RECIPE, REPORT

OWN_FILES = ("evaluation/results.json", "evaluation/samples.jsonl", "reward/report_card.json", RECIPE)


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


def view(files: RunFiles) -> dict[str, Any]:
    """Everything that the template shows, as plain values."""
    results, run = files.results, files.run
    stages = stage_rows(files)
    gate = gate_of(files)
    words = _words(files, stages, gate)
    figures = _figures(files, stages)
    table = as_csv(files.metrics)
    systems = system_rows(results)
    samples, count = packed_samples(files.samples)
    warnings = [*outdated(files.path).values(), *map(str, results.get("warnings", [])), *training_warnings(files)]
    return {
        "name": run.get("name") or files.path.resolve().name,
        "seed": words.seed,
        "headline": headline(words),
        "metrics": first_screen.metrics_in_short(results, words.main),
        "lost": first_screen.lost_rows(run, files.manifests, warnings),
        "evaluations": first_screen.evaluations(files.path),
        "own_files": [f for f in OWN_FILES if (files.path / f).is_file()],
        "curves_csv": packed(table) if table else "",
        "questions": answers_to_newcomers(words),
        "warnings": warnings,
        "notes": files.notes,
        "systems": systems,
        "columns": shown_columns(systems),
        "comparisons": comparison_rows(results),
        "beside": report_evaluation.view(results),
        "baselines": {k.replace("_", " "): number(v) for k, v in (results.get("baselines") or {}).items()},
        "judge": judge_name(results["judge"]) if results.get("judge") else "",
        "figures": figures,
        "curve_groups": [(s, title_of(s), figures["curves"][s]) for s in STAGES if figures["curves"].get(s)],
        "reward_facts": found_in(reward_metrics(files)),
        "card": report_reward.view(files.card, gate) if files.card else None,
        "samples": samples if count else "",
        "samples_count": count,
        "samples_total": len(files.samples),
        "stage_warnings": stage_warnings(files),
        "stages": stages,
        "total_seconds": duration(sum(s["seconds"] or 0 for s in stages), 1) if stages else "",
        "facts": facts(files),
        "recipe": files.shown_recipe,
        "command": words.command,
    }


def _words(files: RunFiles, stages: list[dict[str, Any]], gate: Any) -> Words:
    """What the page says in sentences."""
    accuracy = reward_metrics(files)
    found = {"share": "pair_accuracy", "ci95": "pair_accuracy_ci95", "n": "pairs"}  # where there is no card
    given = files.run.get("inputs") or {}  # results that were not asked of this run
    return Words(
        results=files.results,
        card=files.card or {"accuracy": {k: accuracy.get(v) for k, v in found.items()}},
        gate=gate,
        failed=report_reward.failed_lines(files.card),
        command=command(files),
        seed=seed_of(files),
        asked=tuple(s for s in first_screen.asked_for(files.shown_recipe) if s not in given),
        stages=stages,
        learnt=first_screen.first_curves(files.manifests),
    )


def reward_metrics(files: RunFiles) -> Mapping[str, Any]:
    """What the reward stage found of its model, as its manifest says."""
    return files.manifests.get("reward", {}).get("metrics") or {}


def gate_of(files: RunFiles) -> dict[str, Any] | None:
    """What the card means for the gate before the PPO of this run; without PPO, for that of the reward stage."""
    return report_reward.gate_outcome(files.card, files.recipe_of("ppo", "reward"))


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
    kept = (files.manifests.get("ppo", {}).get("metrics") or {}).get("kept_update")
    scale = report_reward.training_scale(files.recipe_of("ppo"), reward_metrics(files))
    return charts.reward_against_kl(files.metrics.get("ppo", []), systems, kept, scale)


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
