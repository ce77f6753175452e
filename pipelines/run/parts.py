"""What the runner, a stage that runs, and the rehearsal before the first stage take of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from data.splits import Corpus
from models.backbone.processes import Processes
from pipelines.execution.loaded_models import LoadedModels
from pipelines.recipe.schema import Recipe
from pipelines.run.plan_details import PlanDetails
from pipelines.run.sharing import SharedStages
from pipelines.run.staleness import StageState


class RunParts(Protocol):
    """A recipe with its run folder, records, processes and models."""

    @property
    def asked(self) -> Recipe: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def run_dir(self) -> Path: ...

    @property
    def given(self) -> Mapping[str, Path]: ...

    @property
    def generations(self) -> Path: ...

    @property
    def corpus(self) -> Corpus: ...

    @property
    def processes(self) -> Processes: ...

    @property
    def loaded(self) -> LoadedModels: ...

    @property
    def details(self) -> PlanDetails: ...

    @property
    def shared(self) -> SharedStages: ...

    def corpus_counts(self) -> dict[str, int]: ...

    def states(self, again: Sequence[str] = (), chosen: Sequence[str] | None = None) -> Iterator[StageState]: ...

    def inputs_of(self, name: str) -> dict[str, Path]: ...

    def checked_inputs(self, name: str) -> dict[str, Path]: ...
