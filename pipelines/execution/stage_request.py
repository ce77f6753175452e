"""What a stage is handed when the runner starts it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import Prompt
from data.splits import Corpus
from evaluation.settings import OPTIMISED
from evaluation.systems import parse
from pipelines.execution.loaded_models import LoadedModels
from pipelines.recipe.schema import Recipe
from pipelines.workspace.keys import folder_hash
from reward.settings import RewardPart
from stages.safe_points.checkpoints import Checkpoints
from stages.stage import StageContext


@dataclass(frozen=True, kw_only=True)
class StageRequest:
    """One stage about to run: the bench, the context (None for pretraining, which has no base), the raw parts."""

    loaded: LoadedModels
    corpus: Corpus
    out: Path
    inputs: Mapping[str, Path]
    make_context: Callable[..., StageContext]
    log: Any
    bar: Any
    checkpoints: Checkpoints
    generations: Path | None = None  # where evaluation keeps answers
    say: Callable[[str], None] = lambda text: None


def response_limit(recipe: Recipe) -> int:
    """Longest answer in evaluation: its own setting, or PPO's."""
    return recipe.evaluation.max_new_tokens or recipe.ppo.max_new_tokens


def files_of_evaluation(recipe: Recipe) -> dict[str, str]:
    """Contents of files and folders that evaluation reads besides the corpus, hashed: they are part of its key."""
    named = [m.partition(":")[2] for m in recipe.evaluation.metrics if m.startswith("folder:")]
    named += [s.partition(":")[2] for s in recipe.evaluation.systems if s.startswith("path:")]
    named += [recipe.evaluation.rankings] if recipe.evaluation.rankings else []
    named += [recipe.evaluation.lm_eval.tasks_dir] if recipe.evaluation.lm_eval.tasks_dir else []
    named += [recipe.data.held_out] if isinstance(recipe.data.held_out, str) else []  # its answers are references
    found = {name: (recipe.base_dir / Path(name).expanduser()) for name in named}
    return {
        name: folder_hash(path) if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(found.items())
        if path.exists()
    }


def choosing(recipe: Recipe) -> dict[str, tuple[RewardPart, ...]]:
    """The terms of the reward that chooses, of every best-of-n in evaluation, by the system's name.

    They are those of ``evaluation.best_of_by``, the reward model alone, or all of PPO's.
    """
    own = recipe.evaluation.best_of_by | {"model": (RewardPart(source="model"),), OPTIMISED: recipe.ppo.reward}
    systems = [parse(name) for name in recipe.evaluation.systems]
    return {s.name: own[s.by] for s in systems if s.kind == "best_of"}


def evaluation_prompts(recipe: Recipe, corpus: Corpus) -> tuple[Prompt, ...]:
    return corpus.prompts.held_out[: recipe.evaluation.prompts]
