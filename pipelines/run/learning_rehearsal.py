"""Whether stages find in their rows what they learn from, asked before the first stage; no weights are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.common.errors import UserError
from data.records import RankedAnswers
from data.splits import Corpus
from data.template import Renderer
from models.hub.download import local_folder
from models.hub.limits import limits_of_folder
from models.hub.load import encoder_in, tokenizer_of
from models.hub.registry import resolve_base
from pipelines.recipe.schema import Recipe
from pipelines.run.base_rehearsal import KnownBase
from pipelines.run.rehearsed_rows import ROWS
from pipelines.stages.depends_on import reward_rows
from stages.continued import check_context, context_of, masking_of
from stages.reward_model import split_holdout
from stages.sft import encode_demonstrations
from stages.training.held_out_curve import require_held_out
from stages.training.ranking_rows import encode_rankings

NO_PAIR = "no ranking has two distinct responses of different rank"


def check_records(recipe: Recipe, corpus: Corpus, chosen: Sequence[str]) -> None:
    """What the records themselves say: held-out rows that decide something, shares, ranks and scores.

    Raises:
        UserError: a chosen stage would lack them.
    """
    if "sft" in chosen:
        require_held_out(recipe.sft, "sft", "demonstrations", len(corpus.demonstrations.held_out))
    if "distil" in chosen:
        _check_distil(recipe, corpus)
    if "reward" in chosen:
        given = corpus.rankings.held_out if recipe.rankings is None else corpus.prompts.held_out
        require_held_out(recipe.reward, "reward", "rankings", len(given))
        _check_share(recipe, corpus)
        if recipe.rankings is None:
            _check_rankings(recipe, corpus)


def _check_distil(recipe: Recipe, corpus: Corpus) -> None:
    config = recipe.distil
    if config is None:
        return
    if config.responses == "demonstrations":
        require_held_out(config, "distil", "demonstrations", len(corpus.demonstrations.held_out))
        return
    if not corpus.prompts.train:
        raise UserError("data.prompts: distil asks the teacher for responses to training prompts, and there are none")
    require_held_out(config, "distil", "prompts", len(corpus.prompts.held_out[: config.held_out_prompts]))


def _check_share(recipe: Recipe, corpus: Corpus) -> None:
    """Both the reward model and the held-out one need rankings of their own."""
    if not recipe.reward.holdout:
        return
    rows, held_back = reward_rows(recipe, corpus)
    if not held_back:
        raise UserError(f"reward.holdout: none of the {rows:,} training rankings is in this share; raise it, or set 0")
    if not rows:
        raise UserError(f"reward.holdout: all {held_back:,} training rankings are in this share; lower it, or set 0")


def _check_rankings(recipe: Recipe, corpus: Corpus) -> None:
    for rankings, key in _learnt(recipe, corpus):
        if not any(len(set(row.ranks)) > 1 for row in rankings):
            raise UserError(f"{key}: {NO_PAIR}; nothing to learn")
    mine = _learnt(recipe, corpus)[0][0]
    if recipe.reward.margin and all(row.scores is None for row in mine):
        raise UserError(
            "reward.margin: needs rankings with scores, whose differences it is, and no training ranking has any; "
            "set it to 0, or give rankings with a score of each response"
        )


def _learnt(recipe: Recipe, corpus: Corpus) -> list[tuple[Sequence[RankedAnswers], str]]:
    """Rankings of the reward model and, where there is one, of the held-out one; each with the key to change."""
    mine, held_back = split_holdout(corpus.rankings.train, recipe.reward.holdout)
    return [(mine, "data.rankings"), *([(held_back, "reward.holdout")] if recipe.reward.holdout else [])]


def check_rendered(
    recipe: Recipe, corpus: Corpus, chosen: Sequence[str], base: KnownBase | None, of_reward: KnownBase | None
) -> None:
    """What rows say once they are tokens, of parts that are rendered ahead as a whole: one that teaches is enough.

    Raises:
        UserError: as the stage would.
    """
    shown, scored = corpus.demonstrations.train, of_reward if recipe.reward.base != "same" else base
    if "sft" in chosen and base is not None and len(shown) <= ROWS:
        rendered = (encode_demonstrations(base.renderer, shown[i : i + 1], recipe.sft)[0] for i in range(len(shown)))
        if not any(len(rows) for rows in rendered):
            raise UserError("data.demonstrations: no row has a supervised token; SFT has nothing to learn")
    if "reward" in chosen and recipe.rankings is None and scored is not None:
        for rankings, key in _learnt(recipe, corpus):
            if len(rankings) <= ROWS and not _has_pair(scored.renderer, rankings, recipe):
                raise UserError(f"{key}: {NO_PAIR} once they are tokens, reward.max_tokens at most; nothing to learn")


def _has_pair(renderer: Renderer, rankings: Sequence[RankedAnswers], recipe: Recipe) -> bool:
    rendered = (encode_rankings(renderer, rankings[i : i + 1], recipe.reward)[0] for i in range(len(rankings)))
    return any(len(rows) for rows in rendered)


def check_continued(recipe: Recipe, chosen: Sequence[str], warn: Callable[[str], None]) -> None:
    """Compare the settings of ``continued`` with the base that it trains, where its files are on this machine.

    Raises:
        UserError: as the stage would.
    """
    if "continued" not in chosen or recipe.continued is None or recipe.first_base_stage is not None:
        return
    spec = resolve_base(str(recipe.base), base_dir=recipe.base_dir)
    folder = local_folder(spec.source, spec.revision)
    if folder is None:
        return
    limits = limits_of_folder(folder, spec.name)
    if limits is not None:
        check_context(context_of(recipe.continued, limits.positions), limits, warn)
    if encoder_in(folder):
        tokenizer = tokenizer_of(spec.model_copy(update={"source": str(folder)}))
        masking_of(spec.name, tokenizer, recipe.continued, recipe.seed)
