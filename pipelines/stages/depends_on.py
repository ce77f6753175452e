"""The part of the recipe that each stage's result depends on, and the steps that it takes.

``left_out`` names settings that change no result; they are in no key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.source_settings import as_source
from data.splits import Corpus, in_holdout
from evaluation.settings import OPTIMISED
from evaluation.systems import parse
from models.backbone.settings import AdapterConfig
from pipelines.recipe.derived import choosing, offered, response_limit
from pipelines.recipe.schema import Recipe
from pipelines.stages.keys import base_key, dump, folder_hash, rendering_key
from reward.settings import REMOTE_TRAITS, RewardPart
from stages.settings import RewardConfig, SFTConfig


def rendering_of(recipe: Recipe) -> dict[str, Any]:
    """How the recipe's conversations are written."""
    made = rendering_key(recipe.template, recipe.stop, recipe.base_dir, recipe.template_args)
    return made | ({"stop_strings": list(recipe.stop_strings)} if recipe.stop_strings else {})


def adapter_settings(recipe: Recipe) -> Any:
    """How roles are tuned; what is unset, and LoRA's usual beginning, goes without saying, as in keys of before."""
    adapter = recipe.adapter
    later = [*("init_rank", "orthogonality", "budget", "modules_to_save", "new_tokens")]
    later += ["virtual_tokens", "encoder", "encoder_width"]
    unset = tuple(n for n in later if getattr(adapter, n) == AdapterConfig.model_fields[n].default)
    return dump(adapter, (*unset, *(("init",) if adapter.init == "kaiming" else ())))


def pretrain_settings(recipe: Recipe, left_out: tuple[str, ...]) -> Any:
    """What is predicted goes without saying where it is the next token, and so does a tokenizer that is trained, as in
    keys of before; a given one is known by its files."""
    if isinstance(recipe.base, str):
        return None
    config = recipe.base.pretrain
    usual = (
        *(("objective",) if config.objective == "causal" else ()),
        *(("given_tokenizer",) if config.given_tokenizer is None else ()),
    )
    found = dump(config, (*usual, *left_out))
    if config.given_tokenizer is None:
        return found
    return found | {
        "tokenizer_files": _contents(config.given_tokenizer, recipe.base_dir, "base.pretrain.given_tokenizer")
    }


def _contents(source: str, base_dir: Path, key: str) -> str:
    """Every byte of a folder, or what a base is known by.

    Raises:
        UserError: there is no such base; the recipe's key is named.
    """
    folder = base_dir / Path(source).expanduser()
    try:
        return folder_hash(folder) if folder.is_dir() else base_key(source, base_dir)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def continued_settings(recipe: Recipe, left_out: tuple[str, ...]) -> Any:
    return dump(recipe.continued, left_out)


def sft_settings(recipe: Recipe, left_out: tuple[str, ...]) -> Any:
    return dump(recipe.sft, (*_unwatched(recipe.sft), *left_out))


def distil_settings(recipe: Recipe, left_out: tuple[str, ...]) -> Any:
    """With the teacher's contents: of a folder every byte, and so its manifest, which knows its base's fingerprint."""
    config = recipe.distil
    if config is None:
        return None
    teacher = _contents(config.teacher, recipe.base_dir, "distil.teacher")
    return dump(config, (*_unwatched(config), *left_out)) | {"teacher_files": teacher}


HELD_OUT = ("held_out_every", "held_out_rows", "keep", "patience")


def _unwatched(config: SFTConfig | RewardConfig) -> tuple[str, ...]:
    """The settings of the held-out curve, where it chooses no weights: it changes nothing then."""
    return HELD_OUT if config.keep == "last" and config.patience is None else ()


def rankings_settings(recipe: Recipe, left_out: tuple[str, ...]) -> Any:
    settings = dump(recipe.rankings, left_out)
    return settings if recipe.rankings is None else settings | _sampled_by(recipe)


def reward_settings(recipe: Recipe, left_out: tuple[str, ...]) -> Any:
    # keys are as they were before there were negatives, or a share of them
    share = ("negatives_share",) if recipe.reward.negatives_share == 1 else ()
    unset = share if recipe.reward.negatives else ("negatives", "negatives_share")
    return dump(recipe.reward, ("gate", *unset, *_unwatched(recipe.reward), *left_out))  # the gate comes later


def ppo_settings(recipe: Recipe, left_out: tuple[str, ...]) -> dict[str, Any]:
    """PPO's settings without those that say how a remote scorer is asked, so that a longer time-out may resume."""
    # which change nothing where they are null
    unset = tuple(name for name in ("keep_every", "importance_cap") if not getattr(recipe.ppo, name))
    unset += () if recipe.ppo.ptx_coef else tuple(n for n in type(recipe.ppo).model_fields if n.startswith("ptx_"))
    settings = dump(recipe.ppo, (*unset, *left_out)) | {"reward": _parts(recipe.ppo.reward)}
    monitored = {f"held_out_{k}": v for k, v in _sampled_by(recipe).items()} if recipe.reward.holdout else {}
    return {"ppo": settings, "reward_max_tokens": recipe.reward.max_tokens, **_sampled_by(recipe), **monitored}


def _sampled_by(recipe: Recipe) -> dict[str, str]:
    """Servers draw other tokens from the same noise; which ones, and how they are asked, changes nothing."""
    engine = recipe.runtime.rollouts.engine
    return {} if engine == "own" else {"sampled_by": engine}


def _parts(parts: Sequence[RewardPart]) -> list[dict[str, Any]]:
    remote: dict[str, Any] = {"remote": set(REMOTE_TRAITS)}
    unset = dict.fromkeys(("label", "judge"), True)  # which change nothing where they are null
    return [
        part.model_dump(mode="json", exclude=remote | {k: v for k, v in unset.items() if not getattr(part, k)})
        for part in parts
    ]


def evaluation_settings(recipe: Recipe, left_out: tuple[str, ...]) -> dict[str, Any]:
    """Evaluation's settings, and of the rewards that choose for a best-of-n those that it has."""
    settings = dump(recipe.evaluation, ("best_of_by", *left_out))
    chosen: dict[str, Any] = {n: _parts(parts) for n, parts in choosing(recipe).items() if parse(n).by != "model"}
    if any(parse(name).by == OPTIMISED for name in chosen):
        chosen[OPTIMISED] = recipe.ppo.model_dump(include={"standardise_scores", "score_clip", "missing_eos_penalty"})
    settings |= {"best_of_by": chosen} if chosen else {}
    rest = {"max_new_tokens": response_limit(recipe), "files": _files_of_evaluation(recipe)}
    return {"evaluation": settings, **rest, **_sampled_by(recipe)}


def _files_of_evaluation(recipe: Recipe) -> dict[str, str]:
    """Contents of files and folders that evaluation reads besides the corpus, hashed: they are part of its key."""
    named = [m.partition(":")[2] for m in recipe.evaluation.metrics if m.startswith("folder:")]
    named += [s.partition(":")[2] for s in recipe.evaluation.systems if s.startswith("path:")]
    named += [recipe.evaluation.lm_eval.tasks_dir] if recipe.evaluation.lm_eval.tasks_dir else []
    sources = [recipe.evaluation.rankings] if recipe.evaluation.rankings else []
    if not isinstance(recipe.data.held_out, float):
        sources.append(recipe.data.held_out)  # its answers are references
    named += [as_source(source).path for source in sources]
    found = {name: (recipe.base_dir / Path(name).expanduser()) for name in named}
    return {
        name: folder_hash(path) if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(found.items())
        if path.exists()
    }


def pretrain_steps(recipe: Recipe, corpus: Corpus) -> int | None:
    return None if isinstance(recipe.base, str) else recipe.base.pretrain.steps


def continued_steps(recipe: Recipe, corpus: Corpus) -> int | None:
    return None if recipe.continued is None else recipe.continued.steps


def sft_steps(recipe: Recipe, corpus: Corpus) -> int:
    return _batches(len(corpus.demonstrations.train), recipe.sft.batch, recipe.sft.epochs)


def _batches(rows: int, batch: int, epochs: float) -> int:
    return max(1, round(-(-rows // batch) * epochs))


def distil_steps(recipe: Recipe, corpus: Corpus) -> int | None:
    """Blocks of prompts that the teacher responds to, and optimizer steps."""
    from stages.distil_cost import blocks, learnt_on

    config = recipe.distil
    if config is None:
        return None
    return blocks(config, corpus) + _batches(learnt_on(config, corpus), config.batch, config.epochs)


def rankings_steps(recipe: Recipe, corpus: Corpus) -> int | None:
    """Answers that are sampled, to training and held-out prompts."""
    r, prompts = recipe.rankings, corpus.prompts
    if r is None:
        return None
    return r.answers * (len(prompts.train[: r.prompts]) + len(prompts.held_out[: r.held_out_prompts]))


def distil_rows(recipe: Recipe, corpus: Corpus) -> tuple[int, str]:
    """Responses that distillation trains on."""
    from stages.distil_cost import learnt_on

    return (learnt_on(recipe.distil, corpus) if recipe.distil is not None else 0), "responses"


def reward_rows(recipe: Recipe, corpus: Corpus) -> tuple[int, int]:
    """Rankings that the reward models train on, and those of the one that watches."""
    settings = recipe.reward
    given: Sequence[Any] = corpus.prompts.train[: recipe.rankings.prompts] if recipe.rankings else corpus.rankings.train
    groups = (getattr(r, "prompt", r).group for r in given) if settings.holdout else ()
    held_out = sum(in_holdout(group, settings.holdout) for group in groups)
    return len(given) - held_out, held_out


def reward_steps(recipe: Recipe, corpus: Corpus) -> int:
    """Of all reward models that are trained: an ensemble's, and the one that watches."""
    settings, (rows, held_out) = recipe.reward, reward_rows(recipe, corpus)
    each = _batches(rows, settings.batch, settings.epochs)
    return settings.ensemble * each + (_batches(held_out, settings.batch, settings.epochs) if held_out else 0)


def ppo_steps(recipe: Recipe, corpus: Corpus) -> int:
    return recipe.ppo.updates


def evaluate_steps(recipe: Recipe, corpus: Corpus) -> int:
    """Systems, each sampled and (but for best-of-N) greedy where that is asked for."""
    systems = offered(recipe, recipe.stages)
    greedy = sum(named.kind != "best_of" for named in systems) if recipe.evaluation.greedy else 0
    return len(systems) + greedy
