"""What a stage is handed when the runner starts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import Prompt
from data.splits import Corpus
from pipelines.recipe import Recipe
from pipelines.workbench import Workbench
from stages.checkpoints import Checkpoints
from stages.stage import StageContext


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage about to run: the bench, the context (None for pretraining, which has no base), the raw parts."""

    bench: Workbench
    corpus: Corpus
    out: Path
    inputs: Mapping[str, Path]
    make_context: Callable[..., StageContext]
    log: Any
    bar: Any
    checkpoints: Checkpoints


def answer_limit(recipe: Recipe) -> int:
    """Longest answer in evaluation: its own setting, or PPO's."""
    return recipe.evaluation.max_new_tokens or recipe.ppo.max_new_tokens


def evaluation_prompts(recipe: Recipe, corpus: Corpus) -> tuple[Prompt, ...]:
    return corpus.prompts.held_out[: recipe.evaluation.prompts]
