"""Order, skipping, hand-over: does the stages of a run, one after the other, in its folder.

A stage whose key and bytes agree with what lies there is skipped; everything else is run anew. The runner knows
nothing of what stages compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.common.errors import GateStopped
from models.backbone.artifacts import previous_folder, put_back, read_artifact, settle, write_atomic
from pipelines.execution.progress import Progress
from pipelines.recipe.schema import resolved_yaml
from pipelines.run.data_health import check_data
from pipelines.run.parts import RunParts
from pipelines.run.rehearsal import before_first_stage
from pipelines.run.stage_run import StageRun
from pipelines.run.staleness import StageState, and_remark
from pipelines.stages.table import STAGES
from pipelines.workspace.kept_recipes import keep
from pipelines.workspace.run_folder import RECIPE, RunFolder, read_run


class Runner:
    """One call that runs stages.

    Args:
        pipeline: the recipe and its run folder.
        progress: where live progress goes.
        fresh: stages are run even if they are finished and unchanged.
    """

    def __init__(self, pipeline: RunParts, progress: Progress, fresh: bool = False) -> None:
        self.pipeline, self.progress, self.fresh = pipeline, progress, fresh
        self.folder = RunFolder(pipeline.run_dir, pipeline.processes)

    def run(self, chosen: Sequence[str]) -> None:
        """Check what can be known before the first stage, then do the chosen stages.

        Raises:
            UserError: a fault of the recipe, the data, the base or what is given.
        """
        pipeline, progress = self.pipeline, self.progress
        before_first_stage(pipeline, progress, chosen)
        data_check = check_data(pipeline, progress) if pipeline.processes.is_main else {}
        with self.folder.held():
            if pipeline.processes.is_main:
                self._note_start(data_check)
            pipeline.processes.barrier()
            for name in pipeline.recipe.stages if chosen else ():
                if name in pipeline.given:
                    progress.say(f"{name}: given by --input, not run ({pipeline.given[name]})")
            if not self._in_turn(chosen):
                progress.say("nothing to do: every stage is finished and unchanged")

    def _note_start(self, data_check: Mapping[str, Any]) -> None:
        """Write down what is run, of which data; replacements that a kill has interrupted are brought to an end."""
        recipe, corpus, run_dir = self.pipeline.recipe, self.pipeline.corpus, self.pipeline.run_dir
        write_atomic(run_dir / RECIPE, resolved_yaml(recipe))
        self.folder.note(
            name=recipe.name,
            seed=recipe.seed,
            recipe_folder=str(recipe.base_dir),
            data=self.pipeline.corpus_counts(),
            sources=[count.as_dict() for count in corpus.counts],
            remarks=list(corpus.remarks),
            data_check=data_check,
        )
        for stage in STAGES.values():
            settle(run_dir / stage.folder)

    def _in_turn(self, chosen: Sequence[str]) -> int:
        """Do the chosen stages one after the other; for how many of them there was anything to do.

        What lies on disk of a stage is read when its turn comes.
        """
        done, taken = 0, {need for name in chosen for need in self.pipeline.inputs_of(name)}
        for state in self.pipeline.states(chosen if self.fresh else (), chosen):
            self.pipeline.processes.barrier()
            if state.name in chosen:
                try:
                    done += self._do(state)
                except GateStopped:
                    self._note_inputs(state.name)  # whose card the gate has judged
                    raise
                self._note_inputs(state.name)
                if self.pipeline.processes.is_main:
                    keep(self.pipeline.run_dir, state.name, self.pipeline.recipe)
            elif state.name in taken and (otherwise := state.there_otherwise):
                self.progress.warn(
                    f"{state.name}: not run in this call and taken as it is there, though it was made otherwise "
                    f"than the recipe says ({otherwise}); to run it, leave out what limits this call to some stages"
                )
        return done

    def _note_inputs(self, name: str) -> None:
        """Write down which folders a finished stage was given, so that whoever opens the run finds the same ones."""
        given = self.pipeline.given
        before, used = read_run(self.pipeline.run_dir).get("inputs", {}), self.pipeline.inputs_of(name)
        kept = {need: path for need, path in before.items() if need not in used}
        self.folder.note(inputs=kept | {need: str(path) for need, path in used.items() if need in given})

    def _do(self, state: StageState) -> bool:
        """Skip, put back, fetch or run one stage; whether anything was done."""
        name, progress, shared = state.name, self.progress, self.pipeline.shared
        replaced = read_artifact(state.folder)
        kept = f"; the finished {name} of before stays in {previous_folder(state.folder).name}" if replaced else ""
        if not state.reason and not self.fresh and not state.put_back:
            progress.say(and_remark(f"{name}: finished and unchanged, skipped", state.remark))
            if read_run(self.pipeline.run_dir).get("stages", {}).get(name, {}).get("status") != "done":
                # killed between its result and its entry, which goes without the seconds: nobody knows them
                self.folder.stage(name, status="done", key=state.key, artifact=STAGES[name].folder)
            shared.put(name, progress.warn)
            return False
        if state.put_back and not self.fresh:
            self._put_back(state)
            progress.say(f"{name}: {state.remark}, is put back{kept}")
        elif not self.fresh and shared.take(name, state.key, self.folder):
            progress.say(f"{name}: taken from the store{kept}")
        else:
            progress.say(f"{name}: {state.reason or 'asked for again'}{kept}")
            StageRun(self.pipeline, state, self.folder, progress).run(self.fresh)
            shared.put(name, progress.warn)
        return True

    def _put_back(self, state: StageState) -> None:
        """The previous artifact becomes the stage's result again."""
        if self.pipeline.processes.is_main:
            put_back(state.folder)
            entry = {"status": "done", "key": state.key, "artifact": STAGES[state.name].folder, "seconds": 0.0}
            self.folder.stage(state.name, **entry)
        self.pipeline.processes.barrier()
