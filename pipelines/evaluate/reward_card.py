"""The reward model's report card in an evaluation: the stage's own, or a new one on other rankings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from data.common.errors import UserError, located
from data.counting import Tally, tell
from data.records import RankedAnswers
from data.sources import load_records
from data.storage.views import origin_of
from evaluation.answers import SystemResponses
from evaluation.held_out import Evaluator
from pipelines.execution.loaded_models import LoadedModels
from reward.card.examine import FILE, examine, examined, summary
from reward.card.rewardbench import in_its_shape, in_words, rewardbench2, scored_rows
from reward.card.scored_once import ScoredOnce
from reward.model import RewardModel
from stages.stage import StageContext

REWARDBENCH = "rewardbench2"
CARD = "reward model's card"


def card_for(
    context: StageContext, loaded: LoadedModels, evaluator: Evaluator, answers: Sequence[SystemResponses]
) -> tuple[dict[str, Any], list[str]]:
    """The card, and doubts about it; no card without a reward model or without a ranking to ask it about.

    With ``evaluation.rankings`` the model is asked about those; otherwise the card that the reward stage wrote counts,
    and a model without one is asked about the held-out rankings of the recipe.

    Raises:
        UserError: the file of rankings holds none that can be used.
    """
    if evaluator.reward is None:
        return {}, []
    recipe = loaded.recipe
    own = context.inputs["reward"] / FILE
    train, held_out = context.corpus.rankings.train, context.corpus.rankings.held_out
    if recipe.evaluation.rankings is not None:
        file = recipe.evaluation.rankings
        loaded_rows = load_records([file], "rankings", recipe.data, seed=recipe.seed, base_dir=recipe.base_dir)
        held_out, rejected = loaded_rows.records, loaded_rows.rejected
        if rejected:
            context.warn(
                f"evaluation.rankings: {len(rejected):,} of {loaded_rows.read:,} rows cannot be used (the first is "
                f"{rejected[0].source}: {rejected[0].reason})"
            )
    elif own.is_file():
        return _read(own.read_text(encoding="utf-8")), []
    if not held_out:
        return {}, []
    tally = counted(evaluator.reward, held_out)
    tell(tally, CARD, context.say, context.warn)
    scored = ScoredOnce(model=evaluator.reward, phase=context.bar.phase)
    sampled = next((a for a in answers if a.name == "sft" and a.decoding == "sampled"), None)
    card = examine(
        scored,
        train,
        examined(held_out),
        of=len(held_out),
        samples=list(sampled.reward or ()) if sampled is not None else (),
        sampled_from="SFT responses to the held-out prompts" if sampled is not None else "",
        seed=recipe.seed,
    )
    card |= {"counts": tally.as_dict()} if card else {}
    if card and recipe.evaluation.rankings is not None and in_its_shape(held_out):
        card[REWARDBENCH] = rewardbench2(scored_rows(scored, held_out))
        context.say(f"RewardBench 2: {in_words(card[REWARDBENCH]) or 'no subset has a score'}")
    return card, [f"{CARD}: {text}"] if (text := tally.warning()) else []


def counted(model: RewardModel, rankings: Sequence[RankedAnswers]) -> Tally:
    """What the model's limit cuts off the rankings that it is asked about, and what its tokenizer does not know."""
    sign = model.renderer.unknown_id
    tally = Tally(unit="rankings", key="reward.max_tokens", limit=model.max_tokens, sign=sign)
    for place, ranking in enumerate(rankings):
        rows = zip(ranking.answers, ranking.finished, strict=True)
        with located(ranking.prompt.source):
            made = [
                model.renderer.fitted(ranking.prompt.messages, text, done, max_tokens=model.max_tokens)
                for text, done in rows
            ]
        tally.record(made, source=origin_of(rankings, place))
    return tally


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{FILE} of the reward stage is damaged ({error}); run the reward stage again") from error
    return found if isinstance(found, dict) else {}


def in_short(card: dict[str, Any]) -> dict[str, Any]:
    """What ``results.json`` holds of a card: held-out pair accuracy first."""
    if not card:
        return {}
    accuracy = card.get("accuracy") or {}
    more = {REWARDBENCH: card[REWARDBENCH]} if REWARDBENCH in card else {}
    return {"pair_accuracy": accuracy.get("share"), "ci95": accuracy.get("ci95")} | summary(card) | more
