"""One stage that is run: into a hidden folder, from its newest usable checkpoint on, and published when it is done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.common.errors import GateStopped, UserError
from data.common.number_format import size
from models.backbone.artifacts import finish_publishing, partial_folder, publish
from models.backbone.processes import peak_memory
from pipelines.execution.progress import Progress
from pipelines.execution.tracking import tracked_log
from pipelines.run.fit import with_settings
from pipelines.run.opened import ENTRY, begin, files_read
from pipelines.run.parts import RunParts
from pipelines.run.plan_details import value_text
from pipelines.run.staleness import StageState
from pipelines.stages.described import Here, made_with
from pipelines.stages.keys import library_versions
from pipelines.stages.table import STAGES
from pipelines.workspace.run_folder import AT_THE_GATE, FAILED, RunFolder
from stages import lineage
from stages.safe_points.checkpoints import CHECKPOINTS, Checkpoints
from stages.safe_points.interrupts import INTERRUPTS
from stages.safe_points.stopped import note_work, read_work, take_up
from stages.stage import Bar, MetricsLog, StageContext, StageResult


class StageRun:
    """A stage of a pipeline that is about to run.

    Args:
        pipeline: whose stage it is.
        state: its description and key.
        folder: ``run.json`` of the run.
        progress: where live progress goes.
    """

    def __init__(self, pipeline: RunParts, state: StageState, folder: RunFolder, progress: Progress) -> None:
        self.pipeline, self.folder, self.progress = pipeline, folder, progress
        self.name, self.described, self.key = state.name, state.described, state.key
        self.stage, self.recipe, self.processes = STAGES[state.name], pipeline.recipe, pipeline.processes
        self.final = pipeline.run_dir / self.stage.folder
        self.out = partial_folder(self.final)

    def run(self, fresh: bool = False) -> None:
        """Run and publish it; what other settings have started of it is set aside first.

        Args:
            fresh: from the beginning, whatever checkpoints there are.

        Raises:
            KeyboardInterrupt: a signal came; what is done is saved.
            UserError: something of the user's fails in the midst of it, which ``run.json`` then says of the stage.
        """
        started = time.perf_counter()
        inputs = self.pipeline.checked_inputs(self.name)
        self._settle()
        if self.processes.is_main and (aside := take_up(self.final, self.key)) is not None:
            text = f"what was stopped before stays in {aside}; with its settings given again it resumes"
            self.progress.say(f"{self.name}: {text}")
        self.processes.barrier()
        if not fresh and self._finished():
            return self.folder.stage(self.name, status="done", key=self.key, artifact=self.stage.folder, seconds=0.0)
        progress = self.progress
        begin(self.described["functions"], self.recipe.base_dir)
        checkpoints = Checkpoints(
            self.out / CHECKPOINTS, self.key, self.recipe.checkpoint, self.processes, progress.warn, progress.say
        )
        with self._threads(fresh) as made:
            start = checkpoints.prepare(self.out, fresh) if self.processes.is_main else 0
            if self.processes.is_main:
                note_work(self.out, self.key, self.described, made)
            self.processes.barrier()
            try:
                result, log, tokens = self._compute(checkpoints, start, inputs)
            except GateStopped as stop:
                self.folder.stage(self.name, status=AT_THE_GATE, key=self.key, lines=list(stop.lines))
                raise
            except UserError as error:  # of code or settings of the user's, which none of the checks before met
                with contextlib.suppress(OSError):  # the error is what is to be said
                    self.folder.stage(self.name, status=FAILED, key=self.key, lines=str(error).splitlines())
                raise
            self._publish(result, made)
        seconds = round(log.before + time.perf_counter() - started, 3)  # those of stopped processes as well
        used = {"seconds": seconds, "peak_memory": peak_memory(self.processes.device), "tokens": tokens}
        self.folder.stage(self.name, status="done", key=self.key, artifact=self.stage.folder, **used)
        self.processes.barrier()
        if INTERRUPTS.asked:  # by a signal after the stage's last safe point
            raise KeyboardInterrupt

    def _settle(self) -> None:
        """Decide what the recipe leaves to the device's memory: no key holds it."""
        runtime = self.recipe.runtime
        if runtime.gradient_checkpointing != "auto" and runtime.fit is None:
            return
        details = self.pipeline.details
        if details.shape is None and self.stage.on_base:  # the base is not on this machine yet
            self.pipeline.loaded.base()
            details = self.pipeline.details
        chosen = details.fit.settled(self.name)
        chosen_here = {k: v for k, v in chosen.items() if v is not False and v != details.fit.own(k)}
        if chosen_here:
            text = ", ".join(f"{k}={value_text(v)}" for k, v in chosen_here.items())
            self.progress.say(f"{self.name}: to fit {size(details.fit.limit)} of memory: {text}")
        self.recipe = self.pipeline.loaded.recipe = with_settings(self.recipe, chosen)

    @contextlib.contextmanager
    def _threads(self, fresh: bool) -> Iterator[dict[str, Any]]:
        """How the stage is computed; a resumed one with its CPU threads of before, where the recipe names none."""
        began = self.processes.on_main(lambda: None if fresh else read_work(self.out))
        threads = began.made_with.get("threads") if began is not None else None
        own = self.processes.threads
        fixed = self.recipe.runtime.threads is not None
        if isinstance(threads, int) and threads > 0 and threads != own and not fixed:
            self.progress.say(f"{self.name}: resumes with CPU threads: {threads}, as before (here it would be {own})")
            self.processes.use_threads(threads)
        here, there = self.processes.processor, began.made_with.get("processor") if began is not None else None
        if there not in (None, here):
            self.progress.warn(
                f"{self.name}: resumes on {here}, and what was done before was computed on {there}: its result will "
                "differ in rounding from one that either would have given alone"
            )
        try:
            yield made_with(self.recipe, self.name, Here.of(self.processes))
        finally:
            self.processes.use_threads(own)

    def _compute(
        self, checkpoints: Checkpoints, start: int, inputs: Mapping[str, Path]
    ) -> tuple[StageResult, MetricsLog, int | None]:
        """The stage itself, with its metrics and the tokens that it saw."""
        progress = self.progress
        self.pipeline.loaded.clear(progress.warn)
        self.folder.stage(self.name, status="running", key=self.key)
        settings = {"seed": self.recipe.seed, self.name: self.stage.settings(self.recipe)}
        log = checkpoints.metrics = tracked_log(
            self.recipe.tracking,
            self.processes.is_main,
            self.out,
            start,
            project=self.recipe.name,
            run=self.pipeline.run_dir,
            stage=self.name,
            settings=settings,
            warn=progress.warn,
        )
        bars = progress.stage(self.name, self.stage.steps(self.recipe, self.pipeline.corpus))
        with contextlib.closing(log), bars as bar, contextlib.closing(checkpoints):
            result = self.stage.run(self._context(inputs, log, bar, checkpoints), self.pipeline.loaded)
            checkpoints.wait()
        tokens = log.tokens() or bar.tokens or None
        self.processes.barrier()
        return result, log, tokens

    def _publish(self, result: StageResult, made: Mapping[str, Any]) -> None:
        if not self.processes.is_main:
            return
        manifest = {
            "stage": self.name,
            "key": self.key,
            "described": self.described,
            "made_with": dict(made),
            "parents": self.described["inputs"],
            "seed": self.recipe.seed,
            "libraries": library_versions(),
            "metrics": dict(result.metrics),
            "base_fingerprint": self.pipeline.loaded.fingerprint(self.name) if self.stage.on_base else None,
        }
        if self.stage.on_base and self.stage.role and "targets" in self.recipe.adapter.tuning.settings:
            manifest["out_of_reach"] = self.pipeline.loaded.base_of(self.name)[0].out_of_reach
        if found := files_read(self.described["functions"], self.recipe.base_dir):
            manifest[ENTRY] = found
        if (part := self.stage.training_data) is not None:
            taken = {n: path for n, path in self.pipeline.inputs_of(self.name).items() if STAGES[n].training_data}
            manifest["lineage"] = lineage.note(self.out, getattr(self.pipeline.corpus, part).train, taken)
        publish(self.out, self.final, manifest, scratch=CHECKPOINTS)

    def _finished(self) -> bool:
        """Whether a process that was killed had done all but the last rename; the main one does it, and all follow."""
        found = self.processes.is_main and finish_publishing(self.out, self.final, self.key, CHECKPOINTS)
        return bool(self.processes.gather([found])[0])

    def _context(self, inputs: Mapping[str, Path], log: MetricsLog, bar: Bar, checkpoints: Checkpoints) -> StageContext:
        """What the stage may use."""
        pipeline, recipe, progress = self.pipeline, self.recipe, self.progress
        return StageContext(
            out=self.out,
            seed=recipe.seed,
            corpus=pipeline.corpus,
            adapter=recipe.adapter,
            inputs={name: path for name, path in inputs.items() if STAGES[name].role != "base"},
            processes=self.processes,
            log=log,
            bar=bar,
            open_base=lambda: pipeline.loaded.base_of(self.name),
            say=progress.say,
            warn=progress.warn,
            checkpoints=checkpoints,
            gradient_checkpointing=recipe.runtime.gradient_checkpointing is True,
            offload_activations=recipe.runtime.offload_activations,
            rollouts=recipe.runtime.rollouts,
            recipe_folder=recipe.base_dir,
            generations=pipeline.generations,
        )
