"""How each stage is started: what it loads, and the call. Heavy libraries are imported inside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError
from data.common.strict_json import read_object
from data.splits import Split

if TYPE_CHECKING:
    from pipelines.execution.loaded_models import LoadedModels
    from stages.stage import StageContext, StageResult


def pretrain(context: StageContext, loaded: LoadedModels) -> StageResult:
    from models.hub.load import given_tokenizer
    from stages import pretrain as stage

    recipe = loaded.recipe
    assert not isinstance(recipe.base, str)
    source = recipe.base.pretrain.given_tokenizer
    given = None if source is None else given_tokenizer(source, recipe.base_dir)
    return stage.run(context, recipe.base.pretrain, given)


def continued(context: StageContext, loaded: LoadedModels) -> StageResult:
    from models.hub.load import dtype_of
    from stages import continued as stage

    settings, spec = loaded.recipe.continued, loaded.first_spec
    assert settings is not None
    return stage.run(context, settings, spec, dtype_of(spec, loaded.recipe.runtime.dtype, context.processes.device))


def sft(context: StageContext, loaded: LoadedModels) -> StageResult:
    from stages import sft as stage

    return stage.run(context, loaded.recipe.sft)


def distil(context: StageContext, loaded: LoadedModels) -> StageResult:
    from stages import distil as stage

    settings = loaded.recipe.distil
    assert settings is not None
    if "sft" in context.inputs:
        loaded.load("sft", "sft", context.inputs["sft"])
    opened = loaded.open_model(settings.teacher)
    teacher = stage.Teacher(name=settings.teacher, base=opened.base, role=opened.role, renderer=opened.renderer)
    return stage.run(context, settings, teacher)


def rankings(context: StageContext, loaded: LoadedModels) -> StageResult:
    from stages import rankings as stage

    settings = loaded.recipe.rankings
    if "sft" in context.inputs:
        loaded.load("sft", "sft", context.inputs["sft"])
    assert settings is not None
    return stage.run(context, settings)


def reward(context: StageContext, loaded: LoadedModels) -> StageResult:
    from stages import reward_model
    from stages.rankings import read_rankings

    if "sft" in context.inputs and not loaded.reward_has_own_base:
        loaded.load("sft", "sft", context.inputs["sft"])
    if "rankings" in context.inputs:
        train, held_out = read_rankings(context.inputs["rankings"])
        sampled = Split(train=tuple(train), held_out=tuple(held_out))
        context = replace(context, corpus=replace(context.corpus, rankings=sampled))
    return reward_model.run(context, loaded.recipe.reward)


def ppo(context: StageContext, loaded: LoadedModels) -> StageResult:
    from reward.card import gate as reward_gate
    from stages.ppo import stage as ppo_stage

    if "model" in {part.kind for part in loaded.recipe.ppo.reward} and "reward" in context.inputs:
        reward_gate.require(context.inputs["reward"], loaded.recipe.reward.gate, context.warn)
    examine_terms(context, loaded)
    if "sft" in context.inputs:
        loaded.load("sft", "reference", context.inputs["sft"])
    else:  # without SFT the reference is the base itself: an adapter that changes nothing
        context.base.add_role("reference", context.adapter, seed=context.seed)
    model = loaded.load_reward(context.inputs["reward"]) if "reward" in context.inputs else None
    judge = loaded.load_holdout_model(context.inputs["reward"]) if "reward" in context.inputs else None
    return ppo_stage.run(context, loaded.recipe.ppo, model, judge)


UNEXAMINED = "ppo.reward: nobody has examined the reward"
NO_RANKINGS = "there are no held-out rankings (data.rankings) for its report card and the gate"
NO_PAIR = "no held-out ranking has two responses of different rank that are not the same tokens"


def examine_terms(context: StageContext, loaded: LoadedModels) -> None:
    """Write the card of a reward that no stage has trained, and ask the gate; a resumed stage has its card already.

    Raises:
        GateStopped: the card does not pass.
    """
    from models.backbone.artifacts import write_json
    from reward.card.examine import FILE
    from reward.card.gate import require_terms
    from reward.card.of_terms import card_of_terms, unasked
    from reward.settings import READY, is_examined
    from reward.terms.composition import compose
    from reward.terms.judge import summaries

    recipe, rankings = loaded.recipe, context.corpus.rankings
    ready = any(part.kind in READY for part in recipe.ppo.reward)
    if not is_examined(recipe.ppo.reward):
        return
    if not rankings.held_out:
        if ready:
            context.warn(f"{UNEXAMINED}: {NO_RANKINGS}")
        return
    if why := unasked(recipe.ppo.reward, rankings.held_out, recipe.base_dir, run_code=True):
        context.warn(f"{UNEXAMINED} on data.rankings, and the gate is not asked: {why}")
        return
    file, of = context.out / FILE, {"rankings": context.corpus.fingerprint("rankings")}

    def card() -> dict[str, Any]:
        found = read_object(file) if file.is_file() else {}
        if found.get("examined_on") != of or "accuracy" not in found:
            reward = compose(recipe.ppo.reward, None, recipe.base_dir, device=context.processes.device)
            try:
                made = card_of_terms(
                    reward,
                    context.renderer,
                    rankings.train,
                    rankings.held_out,
                    seed=context.seed,
                    phase=context.bar.phase,
                )
            except UserError as error:
                if ready:
                    raise
                context.warn(f"{UNEXAMINED} on data.rankings, and the gate is not asked: {error}")
                return {}
            for text in summaries([source for _, _, source in reward.parts]):
                context.say(text)
            for text in reward.unread():
                context.warn(f"ppo.reward, on the rankings of its report card: {text}")
            if not made:
                context.warn(f"{UNEXAMINED} on data.rankings, and the gate is not asked: {NO_PAIR}")
                return {}
            write_json(file, found := made | {"examined_on": of})
        return found

    require_terms(context.processes.on_main(card), file, recipe.reward.gate, context.warn)


def evaluate(context: StageContext, loaded: LoadedModels) -> StageResult:
    from pipelines.evaluate import stage as evaluating

    return evaluating.evaluate(context, loaded)
