"""STAGES: one entry owns all that the house knows of a stage. The order of the entries is that in which stages run.

The recipe's checks, run folders, the plan, the report, export, chat and the command line read it. Light: no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.config import Config
from data.common.user_functions import offered_for
from data.counting import Tally
from data.splits import Corpus
from data.template import Renderer
from pipelines.recipe.schema import Recipe
from pipelines.stages import conditions, curves, depends_on, efforts, starts, tallies, workloads
from pipelines.stages.duration import Effort
from pipelines.stages.estimates import Estimator, Work

if TYPE_CHECKING:
    from pipelines.execution.loaded_models import LoadedModels
    from stages.stage import StageContext, StageResult

BOUND = ("max_skipped_steps",)  # changes no finished stage, so that another one may resume


def _no_functions(recipe: Recipe) -> list[str]:
    return []


def _no_columns(recipe: Recipe, corpus: Corpus, reference: str) -> set[str]:
    return set()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An entry of ``STAGES``: everything that is known of a stage outside its own file in ``stages/``."""

    title: str  # in the report
    folder: str  # in the run folder
    group: str  # the recipe's group of its settings
    code: str  # the module whose VERSION counts
    run: Callable[[StageContext, LoadedModels], StageResult]
    wanted: Callable[[Recipe, set[str]], bool]
    """Whether settings call for it where the recipe names no stages, given those before it that they call for."""
    needs: Callable[[Recipe], tuple[str, ...]]
    """Stages whose results it takes, where they are part of the run."""
    depends_on: Callable[[Recipe, tuple[str, ...]], Any]
    """The part of the recipe that its result depends on, without the settings named."""
    data: tuple[str, ...]  # parts of the corpus that it reads
    steps: Callable[[Recipe, Corpus], int | None]
    estimate: Callable[[Estimator], Work]  # for the plan
    learns: Callable[[Recipe, Corpus], tuple[int, str]] | None = None
    """Rows of one pass over its data, and what they are called, where ``epochs`` and ``batch`` may follow from them."""
    effort: Callable[[Estimator], Effort] | None = None
    """What it computes, for the plan's time; None: not known."""
    tally: Callable[[Renderer, Recipe, Corpus, int | None], dict[str, Tally]] | None = None
    """What it will cut or drop of its rows, for the plan, by the names of its manifest; with the base's positions."""
    asks: bool = False  # whether it samples responses to prompts
    training_data: str | None = None
    """The part whose training prompts its result must not meet again as held-out ones (``stages.lineage``)."""
    required_settings: str | None = None
    """Of a stage that runs where the recipe has its group of settings: what that must hold, for a message."""
    config: type[Config] | None = None  # the settings' class, where ``Recipe`` has no such group of its own
    role: str | None = None  # what it makes on a base: a role, or "base" itself
    on_base: bool = True  # whether it stands on a base that is there before it
    asked_in_chat: bool = False
    speed: tuple[str, ...] = ()
    """Settings that cut the same sums into other parts: they change memory and time, and nothing beyond the rounding
    of sums. They are in no key; the manifest has them under ``made_with``."""
    sampled: str | None = None  # the setting that says how many responses are sampled at once
    more_data: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    """Parts that it reads where settings say so."""
    random_masks: bool = False  # masks are sampled by forward pass, so that cutting and sharing batches changes them
    functions: Callable[[Recipe], list[str]] = _no_functions
    """The user's functions that it calls: their source is part of its key."""
    classifiers: Callable[[Recipe], list[str]] = _no_functions
    """Ready classifiers that it asks: their files are part of its key."""
    offered: Callable[[Recipe, Corpus, str], set[str]] = _no_columns
    """The columns that it offers to one of them."""
    curves: curves.Curves = ()  # in the report
    unit: str = "step"  # of its metrics
    facts: bool = True  # whether the report lists its manifest's metrics; others have sections of their own
    command: str | None = None  # help of the command that runs it alone; None for one that is written by hand

    @property
    def trains(self) -> bool:
        """Whether it trains a role on a base."""
        return self.role is not None and self.on_base

    def parts(self, recipe: Recipe) -> tuple[str, ...]:
        """Parts of the corpus that its result depends on."""
        return (*self.data, *self.more_data(recipe))

    def version(self) -> int:
        """That of its code, which is part of its key."""
        return int(importlib.import_module(self.code).VERSION)

    def samples_masks(self, recipe: Recipe) -> bool:
        """Whether its result depends on how batches are cut and shared out."""
        return self.random_masks and recipe.adapter.dropout > 0

    def speed_settings(self, recipe: Recipe) -> tuple[str, ...]:
        """Its settings that no key holds."""
        return () if self.samples_masks(recipe) else self.speed

    def settings(self, recipe: Recipe) -> Any:
        """What its key holds of the recipe."""
        return self.depends_on(recipe, (*BOUND, *self.speed_settings(recipe)))


STAGES: dict[str, Stage] = {
    "pretrain": Stage(
        title="Pretraining",
        folder="pretrain",
        group="pretrain",
        code="stages.pretrain",
        run=starts.pretrain,
        wanted=lambda recipe, before: not isinstance(recipe.base, str),
        needs=lambda recipe: (),
        depends_on=depends_on.pretrain_settings,
        data=("documents",),
        steps=depends_on.pretrain_steps,
        estimate=workloads.pretrain,
        effort=efforts.pretrain,
        role="base",
        on_base=False,
        curves=curves.PRETRAIN,
        command="""Train a small base model from scratch.

        For the demo, or where no base knows the language. The recipe needs `base: {pretrain: ...}`. With
        `objective: masked` it is an encoder, for `reward.base` of another recipe.

        \b
        trivet pretrain my.yaml --set base.pretrain.steps=2000
        """,
    ),
    "continued": Stage(
        title="Continued pretraining",
        folder="continued",
        group="continued",
        code="stages.continued",
        run=starts.continued,
        wanted=lambda recipe, before: recipe.continued is not None,
        required_settings="continued: {} takes the defaults",
        needs=conditions.first_base,
        depends_on=depends_on.continued_settings,
        data=("documents",),
        steps=depends_on.continued_steps,
        estimate=workloads.continued,
        effort=efforts.continued,
        role="base",
        on_base=False,
        curves=curves.CONTINUED,
        command="""Train a base further on documents, all of its weights.

        Later stages stand on the result. The recipe needs the settings `continued` and `data.documents`.

        \b
        trivet continued my.yaml --set continued.steps=1000
        """,
    ),
    "sft": Stage(
        title="Instruction tuning (SFT)",
        folder="sft",
        group="sft",
        code="stages.sft",
        run=starts.sft,
        wanted=lambda recipe, before: bool(recipe.data.demonstrations),
        needs=conditions.base,
        depends_on=depends_on.sft_settings,
        data=("demonstrations",),
        training_data="demonstrations",
        steps=depends_on.sft_steps,
        learns=lambda recipe, corpus: (len(corpus.demonstrations.train), "demonstrations"),
        estimate=workloads.sft,
        effort=efforts.sft,
        tally=tallies.sft,
        role="sft",
        asked_in_chat=True,
        speed=("micro_batch", "batch_tokens"),
        random_masks=True,
        curves=curves.SFT,
        command="""Train the SFT adapter on demonstrations.

        \b
        trivet sft my.yaml
        trivet sft my.yaml --set sft.learning_rate=1e-4 --run-dir runs/slower
        """,
    ),
    "distil": Stage(
        title="Distillation",
        folder="distil",
        group="distil",
        code="stages.distil",
        run=starts.distil,
        wanted=lambda recipe, before: recipe.distil is not None,
        required_settings="at least distil.teacher",
        needs=lambda recipe: (*conditions.base(recipe), "sft"),
        depends_on=depends_on.distil_settings,
        data=("prompts", "demonstrations"),
        training_data="prompts",
        steps=depends_on.distil_steps,
        learns=depends_on.distil_rows,
        estimate=workloads.distil,
        effort=efforts.distil,
        asks=True,
        role="distilled",
        asked_in_chat=True,
        speed=("micro_batch", "batch_tokens", "sampling_batch"),
        sampled="sampling_batch",
        random_masks=True,
        curves=curves.DISTIL,
        command="""Train the base to answer as a larger model does.

        The recipe names that one: `distil: {teacher: runs/large/ppo}`.

        \b
        trivet distil my.yaml --set distil.loss=logits
        """,
    ),
    "rankings": Stage(
        title="Rankings",
        folder="rankings",
        group="rankings",
        code="stages.rankings",
        run=starts.rankings,
        wanted=lambda recipe, before: recipe.rankings is not None,
        required_settings="at least rankings.annotator",
        needs=lambda recipe: (*conditions.base(recipe), "sft"),
        depends_on=depends_on.rankings_settings,
        data=("prompts",),
        training_data="prompts",
        steps=depends_on.rankings_steps,
        estimate=workloads.rankings,
        effort=efforts.rankings,
        asks=True,
        sampled="batch",
        functions=conditions.annotator,
        offered=lambda recipe, corpus, _: offered_for(corpus.prompts.all),
        command="""Sample responses of the SFT model and have them ranked.

        The recipe names the annotator, a function of yours: `rankings: {annotator: my.py:kindness}`.

        \b
        trivet rankings my.yaml --set rankings.annotator=my.py:kindness
        """,
    ),
    "reward": Stage(
        title="Reward model",
        folder="reward",
        group="reward",
        code="stages.reward_model",
        run=starts.reward,
        wanted=lambda recipe, before: bool(recipe.rankings or recipe.data.rankings),
        needs=lambda recipe: (*conditions.base(recipe), "sft", *(("rankings",) if recipe.rankings else ())),
        depends_on=depends_on.reward_settings,
        data=("rankings", "prompts"),
        training_data="rankings",
        steps=depends_on.reward_steps,
        learns=lambda recipe, corpus: (depends_on.reward_rows(recipe, corpus)[0], "rankings"),
        estimate=workloads.reward,
        effort=efforts.reward,
        tally=tallies.reward,
        role="reward",
        speed=("micro_batch",),
        random_masks=True,
        curves=curves.REWARD,
        facts=False,
        command="""Train the reward model on ranked responses.

        Its report card, on held-out rankings, says whether it is good enough for PPO.

        \b
        trivet reward my.yaml
        trivet reward my.yaml --input sft=runs/other/sft
        """,
    ),
    "ppo": Stage(
        title="PPO",
        folder="ppo",
        group="ppo",
        code="stages.ppo.update",
        run=starts.ppo,
        wanted=conditions.ppo_wanted,
        needs=conditions.ppo_needs,
        depends_on=depends_on.ppo_settings,
        data=("prompts",),
        more_data=conditions.ppo_data,
        training_data="prompts",
        steps=depends_on.ppo_steps,
        estimate=workloads.ppo,
        effort=efforts.ppo,
        tally=tallies.ppo,
        asks=True,
        role="policy",
        asked_in_chat=True,
        speed=("micro_batch", "micro_tokens", "sampling_batch", "share_prefix_layers"),
        sampled="sampling_batch",
        functions=conditions.reward_functions,
        classifiers=conditions.reward_classifiers,
        offered=lambda recipe, corpus, _: offered_for(corpus.prompts.train, "completion_ids"),
        curves=curves.PPO,
        unit="update",
        command="""Train the policy with PPO against the reward.

        SFT and reward model come from the run folder, or from --input.

        \b
        trivet ppo my.yaml --set ppo.kl_coef=0.1
        trivet ppo my.yaml --input sft=adapters/sft reward=runs/other/reward
        """,
    ),
    "evaluate": Stage(
        title="Evaluation",
        folder="evaluation",
        group="evaluation",
        code="pipelines.evaluate.stage",
        run=starts.evaluate,
        wanted=conditions.evaluation_wanted,
        needs=lambda recipe: (*conditions.base(recipe), "sft", "distil", "reward", "ppo"),
        depends_on=depends_on.evaluation_settings,
        data=("prompts", "demonstrations", "rankings"),  # for worked examples, references, the reward model's card
        steps=depends_on.evaluate_steps,
        estimate=workloads.evaluate,
        effort=efforts.evaluate,
        asks=True,
        speed=("batch",),
        sampled="batch",
        functions=conditions.evaluation_functions,
        classifiers=conditions.choosing_classifiers,
        offered=conditions.offered_in_evaluation,
        facts=False,
    ),
}


def folders() -> dict[str, str]:
    """Where a run folder keeps each stage."""
    return {name: stage.folder for name, stage in STAGES.items()}


def bases_made(run_dir: Path, given: Mapping[str, Path]) -> dict[str, Path]:
    """Where a run has each base that it makes, or was given: the folder by the stage's name."""
    return {n: given.get(n, run_dir / stage.folder) for n, stage in STAGES.items() if stage.role == "base"}


def title_of(name: str) -> str:
    """What the report calls a stage; one that is not in the table by its name."""
    return STAGES[name].title if name in STAGES else name


def group_of(name: str) -> str:
    return STAGES[name].group if name in STAGES else name
