"""Settings that follow from the lengths and the looks of the rows: limits of tokens, and the template of stories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from data.corpus import Corpus, Split
from data.counting import MANY, Tally
from models.hub.download import local_folder
from models.hub.limits import limits_of_folder
from models.hub.registry import resolve_base
from pipelines.init.text import Line
from pipelines.recipe.derived import evaluation_prompts, response_limit
from pipelines.recipe.schema import Recipe
from pipelines.run.plan_details import NO_TEMPLATE, PlanDetails

GRAIN, LONGEST = 64, 4096
"""Limits are multiples of ``GRAIN`` tokens; none is raised above ``LONGEST``, for memory grows with it."""
SHOWN, COUNTED = 200, 512
"""Rows whose responses say whether they continue their prompts, and rows of a part whose tokens are counted."""
LIMITS: dict[str, str] = {
    name: field.annotation.ROWS_LIMIT
    for name, field in Recipe.model_fields.items()
    if field.annotation is not None and hasattr(field.annotation, "ROWS_LIMIT")
}
"""Groups of the recipe that have a limit of tokens for their rows, and its setting."""


def limits_by_rows(details: PlanDetails) -> dict[str, Line]:
    """For each stage the limit of tokens that differs from the default, with the reason.

    A limit is raised where the default would cut or drop more than 5 % of the rows, and lowered to the base's
    positions. Empty where the base's tokenizer is not on this machine.
    """
    some = replace(details, corpus=_some_rows(details.corpus))
    found = {}
    for stage, key in LIMITS.items():
        tallies: Mapping[str, Any] = some.tallies(stage) if stage in details.recipe.stages else {}
        tally = tallies.get("counts")
        if isinstance(tally, Tally) and (line := _limit(some, stage, key, tally)) is not None:
            found[stage] = line
    if (line := _response_in_evaluation(details)) is not None:
        found["evaluation"] = line
    return found


def _response_in_evaluation(details: PlanDetails) -> Line | None:
    """A shorter response in evaluation, where the longest held-out prompt leaves no more of a base's table of
    positions: it is refused there, while PPO leaves such prompts out."""
    recipe, base = details.recipe, details.opened
    if base is None or base.positions is None or "evaluate" not in recipe.stages or not isinstance(recipe.base, str):
        return None
    spec = resolve_base(recipe.base, base_dir=recipe.base_dir)
    folder = local_folder(spec.source, spec.revision)
    limits = None if folder is None else limits_of_folder(folder, spec.name)
    if limits is None or not limits.table:
        return None
    prompts = evaluation_prompts(recipe, details.corpus)
    room = base.positions - max((len(base.renderer.prompt_ids(p.messages)) for p in prompts), default=0)
    if not 0 < room < response_limit(recipe):
        return None
    why = f"the longest held-out prompt leaves no more of the base's {base.positions:,} positions"
    return Line(key="max_new_tokens", value=room, why=why)


def _some_rows(corpus: Corpus) -> Corpus:
    """Evenly spaced training rows of each part."""
    return replace(
        corpus,
        demonstrations=Split(_evenly(corpus.demonstrations.train)),
        rankings=Split(_evenly(corpus.rankings.train)),
        prompts=Split(_evenly(corpus.prompts.train)),
    )


def _evenly(rows: Sequence[Any]) -> Sequence[Any]:
    return rows[:: max(1, -(-len(rows) // COUNTED))]


def _limit(details: PlanDetails, stage: str, key: str, tally: Tally) -> Line | None:
    """The limit ``key`` of a stage whose rows ``tally`` counts; None where the default does."""
    config, base = getattr(details.recipe, stage), details.opened_for(stage)
    own, behind = int(getattr(config, key)), getattr(config, "ROOM_BEHIND", None)
    positions = None if base is None else base.positions
    if behind is None and positions is not None and own > positions:
        return Line(key=key, value=positions, why=f"the base has {positions:,} positions")
    room = LONGEST if positions is None else min(LONGEST, positions)
    if behind is not None:
        room -= getattr(config, behind)
    needed = -(-(tally.limit_for_95_percent() or 0) // GRAIN) * GRAIN
    raised = min(room, needed)
    if raised <= own or tally.lost <= MANY * tally.rows:
        return None
    whole = sum(n <= raised for n in tally.lengths) / tally.rows
    return Line(key=key, value=raised, why=f"{whole:.0%} of the rows are whole; by default {own:,}")


def continues(corpus: Corpus) -> bool:
    """Whether responses go on where their prompts end, as stories do: more than half begin with white space."""
    shown = [d.answer for d in corpus.demonstrations.train[:SHOWN]]
    shown = shown or [r.answers[0] for r in corpus.rankings.train[:SHOWN]]
    return sum(text[:1].isspace() for text in shown) > len(shown) / 2


def template_line(recipe: Recipe, details: PlanDetails) -> Line | None:
    """The template where the usual one would not do, or what ``auto`` stands for; None where the base is not here."""
    if details.opened is None:
        return None
    if getattr(details.opened.renderer.tokenizer, "chat_template", None):
        return Line(key="template", value="auto", why="the tokenizer's own chat template", written=False)
    if continues(details.corpus):
        return Line(key="template", value="text", why="responses begin with white space: they continue their prompts")
    return Line(key="template", value="dialogue", why=NO_TEMPLATE, written=False)
