"""The doctor's look at a run's data, with what only its recipe and base know: tokens, limits, and what is evaluated."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from data.checks import token_counter
from data.common.intervals import MINIMUM
from data.counting import Tally
from data.doctor.corpus import Health, examine
from data.doctor.entry import Finding
from data.tokens import special_texts
from pipelines.execution.progress import Progress
from pipelines.recipe.derived import evaluation_prompts
from pipelines.run.parts import RunParts
from pipelines.run.plan_details import PlanDetails
from pipelines.stages.table import STAGES, bases_made

CHECKS = 3
"""Raised when the checks find something else in the same rows: what was remembered before is then not taken."""
KEPT = 20
"""Places of a finding that ``run.json`` keeps."""


def health_of(pipeline: RunParts) -> Health:
    """What the records hold and what is doubtful in them; lengths in tokens where the tokenizer is on this machine.

    What was found in files of some megabytes is remembered, as their fingerprints are.
    """
    corpus, opened = pipeline.corpus, _details(pipeline).opened
    tokenizer = None if opened is None else opened.renderer.tokenizer

    def examined() -> str:
        if tokenizer is None:
            return json.dumps(examine(corpus).as_dict())
        special = special_texts(tokenizer)
        return json.dumps(examine(corpus, token_counter(tokenizer), special=special).as_dict())

    name = _named(tokenizer)
    found = Health.from_dict(json.loads(examined() if name is None else corpus.memo.get(name, examined)))
    return Health(findings=(*found.findings, *_too_few(pipeline)), facts=found.facts)


def check_data(pipeline: RunParts, progress: Progress) -> dict[str, Any]:
    """Tell what is doubtful, before the first stage, and return all that was found for ``run.json``."""
    found = health_of(pipeline)
    for finding in found.findings:
        progress.warn(finding.text)
    short = [finding.as_dict() | {"places": list(finding.places[:KEPT])} for finding in found.findings]
    return {"findings": short, "facts": found.facts}


def limits_of(pipeline: RunParts) -> dict[str, dict[str, Any]]:
    """For each stage and side what its limit of tokens cuts of the rows; empty where no tokenizer is there."""
    details = _details(pipeline)
    out = {}
    for stage in pipeline.recipe.stages:
        limited = {} if STAGES[stage].role == "base" else details.tallies(stage)  # documents are packed, not cut
        for group, tally in limited.items():
            assert isinstance(tally, Tally)
            name = stage if group == "counts" else f"{stage} ({group.removesuffix('_counts').replace('_', ' ')})"
            out[name] = tally.as_dict() | {"what": tally.unit}
    return out


def _details(pipeline: RunParts) -> PlanDetails:
    made = bases_made(pipeline.run_dir, pipeline.given)
    return PlanDetails(pipeline.recipe, pipeline.corpus, pipeline.processes.device, made)


def _named(tokenizer: Any) -> str | None:
    """The name of what is found with this tokenizer's counts; None where it cannot be told from another one."""
    if tokenizer is None:
        return f"findings {CHECKS}"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else f"findings {CHECKS} by {hashlib.sha256(backend.to_str().encode()).hexdigest()}"


def _too_few(pipeline: RunParts) -> Iterator[Finding]:
    """Prompts that evaluation asks for and the data has not, and so few that nothing could be shown."""
    recipe, held_out = pipeline.recipe, pipeline.corpus.prompts.held_out
    there, asked = len(held_out), recipe.evaluation.prompts
    if "evaluate" not in recipe.stages or not there:
        return
    if there < asked and "prompts" in recipe.evaluation.model_fields_set:
        text = f"evaluation.prompts asks for {asked:,}, and {there:,} are held out: evaluation takes these"
        yield Finding(kind="few held-out prompts", count=there, text=text)
    taken = evaluation_prompts(recipe, pipeline.corpus)
    if (unlike := len({prompt.group for prompt in taken})) < MINIMUM:
        enough = _first_with([prompt.group for prompt in held_out], MINIMUM)
        cure = _more(pipeline) if enough is None else f"set evaluation.prompts to {enough} or more"
        of = "" if unlike == len(taken) else f" of {unlike:,} group{'s' * (unlike > 1)}"
        text = (
            f"evaluation has {len(taken):,} prompts{of}: below {MINIMUM} no interval is given, and nothing can be "
            f"shown to be better or worse; {cure} (200 tell more)"
        )
        yield Finding(kind="too few held-out prompts for an interval", count=unlike, text=text)


def _first_with(groups: Sequence[str], wanted: int) -> int | None:
    """How many of them, from the first on, are of so many different groups; None where all of them are of fewer."""
    seen = set[str]()
    for count, group in enumerate(groups, 1):
        seen.add(group)
        if len(seen) == wanted:
            return count
    return None


def _more(pipeline: RunParts) -> str:
    """How more prompts are held out: by a larger share, where the prompts that there are suffice."""
    present = pipeline.recipe.data.held_out
    if isinstance(present, float):
        unlike = len({prompt.group for prompt in pipeline.corpus.prompts.held_out})
        wanted = present * 1.25 * MINIMUM / unlike  # by hashes, so that what the present share has met is what counts
        share = math.ceil(round(100 * wanted, 6)) / 100
        if present < share <= 0.5:
            return f"hold out more prompts (data.held_out of {share:g} of these)"
    return "hold out more prompts"
