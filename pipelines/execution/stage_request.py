"""What a stage is handed when the runner starts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.splits import Corpus
from pipelines.execution.loaded_models import LoadedModels
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
