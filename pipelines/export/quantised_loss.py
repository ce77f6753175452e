"""What quantising a model costs: the run's own evaluation of the quantised weights against the stage they are of."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.common.number_format import interval, number, percent
from evaluation.settings import LmEvalConfig
from models.backbone.artifacts import MANIFEST
from models.hub.gguf_base import import_gguf
from pipelines.evaluate.references import references_for
from pipelines.execution.progress import Progress
from pipelines.recipe.derived import evaluation_prompts
from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES

PROMPTS = 64  # held-out prompts, at most: a few minutes of a small model on a CPU


def inputs_of_finished(run: Pipeline, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Folders of what a run has finished or was given, for a pipeline that evaluates them elsewhere.

    Bases that others of them were trained into are left out: the run's own is enough.
    """
    there = {name: run.run_dir / stage.folder for name, stage in STAGES.items() if stage.role is not None}
    own = {name: str(path) for name, path in there.items() if (path / MANIFEST).is_file()}
    inputs = own | {name: str(path) for name, path in run.given.items()} | dict(given or {})
    unused = [name for name, stage in STAGES.items() if stage.role == "base" and name != run.recipe.base_stage]
    return {name: path for name, path in inputs.items() if name not in unused}


def quantised_loss(pipeline: Pipeline, stage: str, file: Path, kind: str) -> list[str]:
    """Evaluate the weights of a quantised GGUF file on the run's held-out prompts, and say what was lost.

    The weights are those of the file, dequantised and computed with as the run computes; a program that rounds
    activations too (llama.cpp does) may lose a little more.

    Args:
        pipeline: a finished run.
        stage: whose model was quantised.
        file: the GGUF file.
        kind: its type.

    Returns:
        Sentences, for the terminal and the model card: perplexity of the held-out responses and greedy agreement, and
        where the run has a judge (gold, or a reward model) the win rate, each with its prompts.
    """
    if not evaluation_prompts(pipeline.recipe, pipeline.corpus):
        return [f"What {kind} loses is not known: the run holds out no prompts to evaluate it on (`data.held_out`)."]
    with tempfile.TemporaryDirectory(prefix=".quantised-", dir=file.parent.parent) as scratch:
        folder = Path(scratch) / kind
        import_gguf(file, folder)
        name = "base" if stage == "pretrain" else stage
        results, rows = _evaluated(pipeline, name, folder, Path(scratch) / "run")
    return sentences(results, rows, name, kind)


def _evaluated(run: Pipeline, name: str, folder: Path, run_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and rows of samples of the run's evaluation of a stage and a folder."""
    recipe, own = run.recipe, run.recipe.evaluation
    prompts = evaluation_prompts(recipe, run.corpus)[:PROMPTS]
    known = any(references_for(recipe, run.corpus, prompts))
    settings = own.model_copy(
        update={
            "systems": (name, f"path:{folder}"),
            "prompts": len(prompts),
            "samples_per_prompt": 1,
            "greedy": True,
            "metrics": ("perplexity",) if known else (),
            "judges": (),
            "lm_eval": LmEvalConfig(),
            "rankings": None,
        }
    )
    changes = {
        "stages": ("evaluate",),
        "rankings": None,
        "evaluation": settings,
        "runtime": recipe.runtime.model_copy(update={"rollouts": type(recipe.runtime)().rollouts}),
    }
    other = Pipeline(recipe.model_copy(update=changes), run_dir, inputs_of_finished(run))
    other.run(only=["evaluate"], progress=Progress(active=False))
    found = run_dir / STAGES["evaluate"].folder
    lines = (found / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((found / "results.json").read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def sentences(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], name: str, kind: str) -> list[str]:
    """The results in words.

    Args:
        results: of an evaluation of two systems.
        rows: of its samples.
        name: the stage's; the other system is that of the quantised weights.
        kind: the type of the quantised weights.
    """
    systems, out = results["systems"], []
    other = next(one for one in systems if one != name)
    before, after = (systems[one].get("metrics", {}).get("perplexity") for one in (name, other))
    if before is not None and after is not None:
        out.append(
            f"{kind}: perplexity of the held-out responses is {number(after)}, and {number(before)} before quantising "
            f"({100 * (after / before - 1):+.2g} %)."
        )
    else:
        out.append(f"{kind}: no perplexity, since the held-out prompts have no responses to evaluate it on.")
    greedy = [row["systems"] for row in rows if row["decoding"] == "greedy"]
    same = [row[name]["response"] == row[other]["response"] for row in greedy]
    if same:
        share = percent(sum(same) / len(same))
        out.append(f"{kind}: greedy responses to {share} of {len(same)} held-out prompts stay the same.")
    for c in results.get("comparisons") or []:
        if (c.get("a"), c.get("b")) == (other, name):
            ci = interval(c.get("ci95"), 100, 1) or "(too few prompts for an interval)"
            out.append(
                f"{kind}: wins {100 * c['win_rate']:.1f} % of {c['n']} prompts {ci} against `{name}` by {c['by']}, "
                f"{c['decoding']} ({c['wins']} wins, {c['ties']} ties, {c['losses']} losses)."
            )
    return out
