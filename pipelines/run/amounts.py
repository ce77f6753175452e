"""Settings that a recipe leaves open and that follow from its data (``pipelines.recipe.amounts`` has the laws).

They are part of the resolved recipe and of the stages' keys. Of a folder tokens are counted by its tokenizer; of a hub
id they are estimated, whether it is on this machine or not, so that a download changes no key. A base from scratch
keeps the settings' own lengths, which its context bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.corpus import Corpus
from data.records import Message
from models.hub.registry import resolve_base
from pipelines.loading.checks import AMOUNTS
from pipelines.recipe import amounts
from pipelines.recipe.schema import Recipe
from pipelines.run.fit import with_settings
from pipelines.run.plan_details import Opened, opened
from pipelines.stages.table import STAGES

SAMPLE = 256  # rows whose tokens are counted, evenly spaced


@dataclass(frozen=True)
class Settled:
    """A recipe with nothing left open, and a sentence for each stage of what was chosen and why."""

    recipe: Recipe
    why: dict[str, str]


def is_open(recipe: Recipe, group: str, name: str) -> bool:
    """Whether the recipe leaves a setting to its data."""
    config = getattr(recipe, group)
    return config is not None and group in recipe.stages and name not in config.model_fields_set


def leaves_open(recipe: Recipe) -> bool:
    """Whether anything of a recipe follows from its data, which is to be read for it."""
    return any(is_open(recipe, *dotted.split(".")) for dotted in AMOUNTS)


def settled(recipe: Recipe, corpus: Corpus) -> Settled:
    """The recipe with passes, batches and lengths by its data."""
    found: dict[str, Any] = {}
    why: dict[str, str] = {}
    rows = {name: stage.learns(recipe, corpus) for name, stage in STAGES.items() if stage.learns is not None}
    for stage, (count, unit) in rows.items():
        found |= (chosen := _passes(recipe, stage, count))
        if chosen:
            named = " and ".join(f"{key.split('.')[1]} {value:g}" for key, value in chosen.items())
            config = getattr(with_settings(recipe, chosen), stage)
            steps = round(amounts.steps_of(count, config.batch) * config.epochs)
            why[stage] = (
                f"{named}: chosen for {count:,} {unit}: {steps:,} steps; {amounts.STEPS} are aimed at, in 1 to "
                f"{amounts.PASSES} passes"
            )
    lengths, why_of_lengths = _lengths(recipe, corpus)
    return Settled(with_settings(recipe, found | lengths) if found or lengths else recipe, why | why_of_lengths)


def _passes(recipe: Recipe, stage: str, rows: int) -> dict[str, Any]:
    config, open_batch, open_epochs = (
        getattr(recipe, stage),
        is_open(recipe, stage, "batch"),
        is_open(recipe, stage, "epochs"),
    )
    if not rows or not (open_batch or open_epochs):
        return {}
    batch = amounts.batch_for(rows, None if open_epochs else config.epochs) if open_batch else config.batch
    found: dict[str, Any] = {f"{stage}.epochs": float(amounts.passes_for(rows, batch))} if open_epochs else {}
    return found | ({f"{stage}.batch": batch} if open_batch else {})


def _lengths(recipe: Recipe, corpus: Corpus) -> tuple[dict[str, int], dict[str, str]]:
    """``max_new_tokens`` of rankings and PPO, where they are open and some responses show how long one is."""
    stages = [stage for stage in ("rankings", "ppo") if is_open(recipe, stage, "max_new_tokens")]
    responses, unit = _responses(corpus)
    if not stages or not responses or not isinstance(recipe.base, str) or recipe.continued:
        return {}, {}
    spec = resolve_base(recipe.base, base_dir=recipe.base_dir, new_tokens=recipe.adapter.new_tokens)
    base, folder = None, Path(spec.source).is_dir()
    stop, reserved = recipe.stop or spec.stop, recipe.adapter.positions
    if folder and (base := opened(spec, recipe.template_source, stop, reserved)) is None:
        return {}, {}  # whoever loads the base says what is wrong
    count = _counter(base)
    lengths = [count(messages, response) for messages, response in responses]
    room = None
    if base and base.positions is not None:
        prompts = [len(base.renderer.prompt_ids(p.messages)) for p in _some(corpus.prompts.train)]
        room = amounts.room_for_response(base.positions, prompts)
    longest = amounts.longest_response(lengths, room)
    about = "" if base else f", at {amounts.BYTES} bytes a token"
    bound = f", as far as the base's {base.positions:,} positions allow" if base and room and longest >= room else ""
    bound = bound or (f", at most {amounts.LONGEST}" if longest == amounts.LONGEST else "")
    text = f"max_new_tokens {longest}: chosen to hold {amounts.WHOLE * 100:g} % of the {unit}{about}{bound}"
    return {f"{stage}.max_new_tokens": longest for stage in stages}, dict.fromkeys(stages, text)


def _responses(corpus: Corpus) -> tuple[list[tuple[tuple[Message, ...], str]], str]:
    """Conversations with good responses, and what they are called."""
    if shown := _some(corpus.demonstrations.train):
        return [(d.prompt.messages, d.answer) for d in shown], "demonstrations' responses"
    ranked = _some(corpus.rankings.train)
    best = [(r.prompt.messages, r.answers[r.ranks.index(min(r.ranks))]) for r in ranked]
    return best, "best responses of the rankings"


def _counter(base: Opened | None) -> Callable[[Sequence[Message], str], int]:
    if base is None:
        return lambda messages, response: amounts.tokens_of(response)
    return lambda messages, response: len(base.renderer.answer_ids(messages, response))


def _some(rows: Sequence[Any]) -> list[Any]:
    count = min(SAMPLE, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
