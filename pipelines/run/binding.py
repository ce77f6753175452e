"""Are the recipe's functions callable with the columns that they will be offered? Asked before the first stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

from data.common.errors import UserError
from data.common.function_binding import overlooked
from data.common.user_functions import RESERVED, check_statically, load_function, parameters_read
from data.splits import Corpus
from models.backbone.processes import chosen_device
from pipelines.execution.tracking import check_trackers
from pipelines.recipe.schema import Recipe
from pipelines.run.plan_details import rejected_warning
from pipelines.stages.table import STAGES
from reward.card.of_terms import unasked
from reward.settings import is_examined


def offers(recipe: Recipe, corpus: Corpus, stages: Sequence[str]) -> Iterator[tuple[str, str, set[str]]]:
    """Stage, function and names on offer, for every function of the user's that the stages call."""
    for stage in stages:
        for reference in STAGES[stage].functions(recipe):
            yield stage, reference, STAGES[stage].offered(recipe, corpus, reference)


def check_start(
    recipe: Recipe,
    corpus: Corpus,
    stages: Sequence[str],
    *,
    run_code: bool,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """What must hold before any stage starts: trackers that can be reached, functions that can be called, and a device
    for what the runtime asks for.

    Many rejected rows are a warning.

    Raises:
        UserError: one of them cannot; ``run_code`` is as for ``check_functions``.
    """
    check_trackers(recipe.tracking)
    if recipe.runtime.offload_activations and chosen_device(recipe.runtime.device) == "cpu":
        raise UserError(
            "runtime.offload_activations: it moves activations from a GPU to the host's memory, and this run is on a "
            "CPU, where they are already: remove it, or run where there is a GPU"
        )
    if text := rejected_warning(corpus):
        warn(text)
    check_functions(recipe, corpus, stages, run_code=run_code)


def check_functions(recipe: Recipe, corpus: Corpus, stages: Sequence[str], *, run_code: bool) -> None:
    """Refuse functions that cannot be called by name.

    Args:
        stages: whose functions are checked.
        run_code: load the functions, which runs their files; otherwise only what can be read is judged.

    Raises:
        UserError: a function cannot be loaded or bound; the names on offer are given.
    """
    for stage, reference, offered in offers(recipe, corpus, stages):
        _check(stage, reference, offered, recipe, run_code)


def _check(stage: str, reference: str, offered: Collection[str], recipe: Recipe, run_code: bool) -> None:
    try:
        if run_code:
            load_function(reference, recipe.base_dir).check(offered)
        else:
            check_statically(reference, offered, recipe.base_dir)
    except UserError as error:
        raise UserError(f"{stage}: {error}") from error


def doubtful_columns(recipe: Recipe, corpus: Corpus, chosen: Sequence[str]) -> Iterator[str]:
    """Sentences about columns that a function reads and some rows lack, or that it overlooks by a letter."""
    examined = corpus.rankings.held_out if "ppo" in chosen and is_examined(recipe.ppo.reward) else ()
    if examined and (why := unasked(recipe.ppo.reward, examined, recipe.base_dir)):
        yield f"ppo.reward: gets no report card on data.rankings, and the gate is not asked: {why}"
    read: dict[str, list[str]] = {}
    for reference, offered in {r: names for _, r, names in offers(recipe, corpus, chosen)}.items():
        parameters = parameters_read(reference, recipe.base_dir) or []
        for name, column in overlooked(parameters, offered):
            yield f"{reference}: its parameter '{name}' keeps its default; the column is called '{column}'"
        read[reference] = sorted({p.name for p in parameters} & offered - RESERVED)
    if not (names := {name for columns in read.values() for name in columns}):
        return
    prompts, lacking = corpus.prompts.all, Counter[str]()
    for prompt in prompts:
        lacking.update(name for name in names if prompt.columns.get(name) is None)
    for reference, columns in read.items():
        for name in columns:
            if 0 < lacking[name] < len(prompts):
                lack = f"{lacking[name]:,} of {len(prompts):,} prompts have no '{name}'"
                yield f"{reference}: {lack}; it gets None for them"
