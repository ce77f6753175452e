"""Order, skipping, hand-over: runs the stages of a recipe into a run folder.

A stage whose key and bytes agree with what lies there is skipped; everything else is run anew. The runner knows
nothing of what stages compute.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data.common.errors import UserError, nearest
from data.splits import Corpus, load_corpus
from data.template import Renderer
from models.backbone.artifacts import (
    Artifact,
    damage,
    finish_publishing,
    load_artifact,
    partial_folder,
    problems,
    publish,
    read_artifact,
    write_atomic,
)
from models.backbone.processes import Processes, peak_memory
from models.roles.shared_base import SharedBase
from pipelines.execution.loaded_models import Workbench
from pipelines.execution.progress import Progress
from pipelines.execution.stage_request import Job
from pipelines.execution.tracking import tracked_log
from pipelines.plan_details import PlanDetails
from pipelines.recipe.schema import Recipe, load_recipe, resolved_yaml
from pipelines.run.binding import check_start
from pipelines.run.stages import STAGES, functions_in_key
from pipelines.workspace.keys import base_key, differences, dump, folder_hash, hash_of, library_versions, rendering_key
from pipelines.workspace.run_folder import RunFolder, read_run
from pipelines.workspace.store import Store
from stages.safe_points.checkpoints import CHECKPOINTS, Checkpoints, begun
from stages.safe_points.interrupts import INTERRUPTS
from stages.stage import MetricsLog, StageContext


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What would happen to a stage."""

    name: str
    status: str  # cached, stored (another run's, in the store), new or stale
    reason: str
    details: dict[str, Any] = field(default_factory=dict)


class Pipeline:
    """A recipe and its run folder.

    Args:
        recipe: the resolved recipe.
        run_dir: where stages are kept; ``runs/<name>`` by default.
        inputs: folders given by the user instead of stages of this run.
        store: a folder in which runs share finished stages.
    """

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path | None = None,
        inputs: Mapping[str, str] | None = None,
        store: Path | str | None = None,
    ) -> None:
        self.recipe = recipe
        self.store = Store(Path(store)) if store else None
        self.run_dir = (run_dir or Path("runs") / recipe.name).resolve()
        self.generations = self.run_dir / "generations"  # evaluation's answers, by content
        self.given = {name: Path(path).resolve() for name, path in (inputs or {}).items()}
        for name, path in self.given.items():
            if name not in STAGES:
                raise UserError(f"--input {name}: no such stage.{nearest(name, STAGES)} Stages: {', '.join(STAGES)}")
            if not path.is_dir():
                raise UserError(f"--input {name}={path}: no such folder")

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Path | dict[str, Any],
        overrides: Sequence[str] = (),
        run_dir: Path | str | None = None,
        inputs: Mapping[str, str] | None = None,
        store: Path | str | None = None,
    ) -> Pipeline:
        """Read a recipe (a path or a dict) with dotted overrides such as ``ppo.kl_coef=0.1``.

        The resolved recipe in a run folder sees relative paths from where the first recipe lay.
        """
        loaded = load_recipe(recipe, overrides)
        if isinstance(recipe, str | Path) and (origin := read_run(Path(recipe).parent).get("recipe_folder")):
            loaded = loaded.model_copy(update={"base_dir": Path(origin)})
        return cls(loaded, Path(run_dir) if run_dir else None, inputs, store)

    @cached_property
    def corpus(self) -> Corpus:
        """All records, split once for every stage."""
        return load_corpus(self.recipe.data, seed=self.recipe.seed, base_dir=self.recipe.base_dir)

    @cached_property
    def processes(self) -> Processes:
        return Processes(self.recipe.runtime.device, self.recipe.runtime.threads)

    def corpus_counts(self) -> dict[str, int]:
        """Rows of every part of the data, and how many were rejected."""
        parts = ("documents", "demonstrations", "rankings", "prompts")
        counts = {
            f"{p} {side}": len(getattr(getattr(self.corpus, p), side)) for p in parts for side in ("train", "held_out")
        }
        return {name: n for name, n in counts.items() if n} | {"rejected rows": len(self.corpus.rejected)}

    # -- keys and plan -----------------------------------------------------------------------------------------------

    def inputs_of(self, name: str) -> dict[str, Path]:
        """Folders of the stages that ``name`` takes, as far as they are part of the run or given."""
        out = {}
        for need in STAGES[name].needs(self.recipe):
            if need in self.given:
                out[need] = self.given[need]
            elif need in self.recipe.stages:
                out[need] = self.run_dir / STAGES[need].folder
            elif need == "pretrain":
                raise UserError("base.pretrain: add 'pretrain' to the stages or give --input pretrain=PATH")
        return out

    def describe(self, name: str, keys: Mapping[str, str]) -> dict[str, Any]:
        """Everything that the result of a stage depends on; its hash is the stage's key."""
        stage, recipe = STAGES[name], self.recipe
        apart = recipe.reward.base != "same" and (name == "reward" or "reward" in keys)
        return {
            "stage": name,
            "version": stage.version(),
            "settings": stage.settings(recipe),
            "seed": recipe.seed,
            "base": self.base_key,
            **({"reward_base": self.reward_base_key} if apart else {}),
            "rendering": rendering_key(recipe.template, recipe.stop) if name != "pretrain" else None,
            "adapter": dump(recipe.adapter) if name != "pretrain" else None,
            "data": {part: self.corpus.fingerprint(part) for part in stage.data},
            **functions_in_key(recipe, name, self.corpus),
            "inputs": dict(keys),
            "runtime": dump(recipe.runtime) | {"device": self.processes.device.type, "processes": self.processes.world},
            "libraries": library_versions(),
        }

    @cached_property
    def base_key(self) -> str:
        """A pretrained base is known by its stage's key, which is among the inputs."""
        recipe = self.recipe
        return base_key(recipe.base, recipe.base_dir) if isinstance(recipe.base, str) else "pretrained"

    @cached_property
    def reward_base_key(self) -> str:
        return base_key(self.recipe.reward.base, self.recipe.base_dir)

    def _keys(self) -> Iterator[tuple[str, dict[str, Any], str, Artifact | None, str]]:
        """Stage, description, key, what lies there, and why it is not the same ('' when it is)."""
        known: dict[str, str] = {}
        for name in self.recipe.stages:
            keys = {}
            for need, path in self.inputs_of(name).items():
                given = read_artifact(path)
                keys[need] = known[need] if need not in self.given else given.key if given else folder_hash(path)
            described = self.describe(name, keys)
            key = known[name] = hash_of(described)
            there = read_artifact(final := self.run_dir / STAGES[name].folder)
            reason = ""
            if there is None:
                reason = damage(final) or begun(partial_folder(final) / CHECKPOINTS, key) or "not run yet"
            elif there.key != key:
                changed = differences(there.manifest.get("described", {}), described)
                reason = "changed: " + ", ".join(changed[:4]) + (" ..." if len(changed) > 4 else "")
            elif wrong := problems(there):
                reason = wrong[0]
            yield name, described, key, there, reason

    def plan(self) -> list[StagePlan]:
        """What a run would do, without loading any weights or running code of the user's."""
        check_start(self.recipe, self.corpus, self.recipe.stages, run_code=False)
        out: list[StagePlan] = []
        folder = self.given.get("pretrain", self.run_dir / STAGES["pretrain"].folder)
        details = PlanDetails(self.recipe, self.corpus, self.processes.device, folder / "model", out)
        for name, described, key, there, reason in self._keys():
            status = "cached" if not reason else "new" if there is None else "stale"
            if reason and self.store is not None and self.store.find(key) is not None:
                status, reason = "stored", f"finished in the store ({reason} here)"
            more = details.of(name) | {"functions": described["functions"]}
            out.append(StagePlan(name=name, status=status, reason=reason or "finished and unchanged", details=more))
        return out

    # -- running -----------------------------------------------------------------------------------------------------

    def chosen(self, only: Sequence[str], start: str | None, until: str | None) -> list[str]:
        """Stages of this call."""
        stages = list(self.recipe.stages)
        for name in [*only, *filter(None, (start, until))]:
            if name not in stages:
                raise UserError(f"no stage '{name}' in this recipe.{nearest(name, stages)} It has: {', '.join(stages)}")
        first = stages.index(start) if start else 0
        last = stages.index(until) if until else len(stages) - 1
        return [s for s in stages[first : last + 1] if not only or s in only]

    def run(
        self,
        only: Sequence[str] = (),
        start: str | None = None,
        until: str | None = None,
        fresh: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Path]:
        """Run what is not finished, in order.

        Args:
            only: these stages alone; their inputs must be finished.
            start: the first stage to consider.
            until: the last one.
            fresh: run the chosen stages even if they are finished and unchanged.
            progress: where live progress goes.

        Returns:
            Stage name -> its folder, for the chosen stages.
        """
        progress = progress or Progress(active=self.processes.is_main)
        chosen = self.chosen(only, start, until)
        check_start(self.recipe, self.corpus, chosen, run_code=True, warn=progress.warn)
        folder = RunFolder(self.run_dir, self.processes)
        with folder.held():
            if self.processes.is_main:
                write_atomic(self.run_dir / "recipe.yaml", resolved_yaml(self.recipe))
                folder.note(
                    name=self.recipe.name,
                    seed=self.recipe.seed,
                    recipe_folder=str(self.recipe.base_dir),
                    data=self.corpus_counts(),
                    inputs=read_run(self.run_dir).get("inputs", {}) | {k: str(v) for k, v in self.given.items()},
                )
            done = 0
            # generated lazily: each stage's state on disk is looked at when its turn comes
            for name, described, key, there, reason in self._keys():
                self.processes.barrier()
                if name not in chosen:
                    continue
                if not reason and not fresh and there is not None:
                    progress.say(f"{name}: finished and unchanged, skipped")
                    self._share(name, progress)
                elif not fresh and self._taken(name, key, folder):
                    progress.say(f"{name}: taken from the store")
                    done += 1
                else:
                    why = reason if reason else "asked for again"
                    progress.say(f"{name}: {why}")
                    self._run_stage(name, described, key, folder, progress, fresh)
                    self._share(name, progress)
                    done += 1
            if not done:
                progress.say("nothing to do: every stage is finished and unchanged")
        return {name: self.run_dir / STAGES[name].folder for name in chosen}

    @cached_property
    def bench(self) -> Workbench:
        pretrained = None
        if not isinstance(self.recipe.base, str):
            pretrained = self.given.get("pretrain", self.run_dir / STAGES["pretrain"].folder)
        return Workbench(self.recipe, self.processes, pretrained)

    def _checked_inputs(self, name: str) -> dict[str, Path]:
        inputs = self.inputs_of(name)
        for need, path in inputs.items():
            if need not in self.given:
                load_artifact(path, f"{need} stage")  # raises by name: missing, or altered since
            elif (found := read_artifact(path)) is not None and (wrong := problems(found)):
                raise UserError(f"--input {need}: {wrong[0]}")
        return inputs

    def _taken(self, name: str, key: str, folder: RunFolder) -> bool:
        """Whether a stage came from the store; the main process looks, and all follow."""
        found = False
        if self.store is not None and self.processes.is_main:
            found = self.store.fetch(key, self.run_dir / STAGES[name].folder) is not None
            if found:
                shutil.rmtree(partial_folder(self.run_dir / STAGES[name].folder), ignore_errors=True)
                folder.stage(name, status="done", key=key, artifact=STAGES[name].folder, seconds=0.0, stored=True)
        return bool(self.processes.gather([found])[0]) if self.store is not None else False

    def _share(self, name: str, progress: Progress) -> None:
        done = read_artifact(self.run_dir / STAGES[name].folder)
        if self.store is None or not self.processes.is_main or done is None:
            return
        try:
            self.store.put(done)
        except OSError as error:  # the stage itself is finished and safe
            progress.warn(f"{name}: not shared, {self.store.root} cannot be written ({error.strerror or error})")

    def _run_stage(
        self, name: str, described: dict[str, Any], key: str, folder: RunFolder, progress: Progress, fresh: bool = False
    ) -> None:
        """Run one stage into a hidden folder, from its newest usable checkpoint on, and publish it."""
        stage, started = STAGES[name], time.perf_counter()
        final = self.run_dir / stage.folder
        out = partial_folder(final)
        inputs = self._checked_inputs(name)
        if not fresh and self._finished(out, final, key):
            return folder.stage(name, status="done", key=key, artifact=stage.folder, seconds=0.0)
        checkpoints = Checkpoints(
            out / CHECKPOINTS, key, self.recipe.checkpoint, self.processes, progress.warn, progress.say
        )
        start = checkpoints.prepare(out, fresh) if self.processes.is_main else 0
        self.processes.barrier()
        self.bench.clear(progress.warn)
        folder.stage(name, status="running", key=key)
        settings = {"seed": self.recipe.seed, name: stage.settings(self.recipe)}
        log = checkpoints.metrics = tracked_log(
            self.recipe.tracking,
            self.processes.is_main,
            out,
            start,
            project=self.recipe.name,
            run=self.run_dir,
            stage=name,
            settings=settings,
            warn=progress.warn,
        )
        bars = progress.stage(name, stage.steps(self.recipe, self.corpus))
        with contextlib.closing(log), bars as bar, contextlib.closing(checkpoints):
            result = stage.run(self._job(out, inputs, log, bar, progress, checkpoints))
            checkpoints.wait()
        tokens = log.tokens() or bar.tokens or None
        self.processes.barrier()
        if self.processes.is_main:
            manifest = {
                "stage": name,
                "key": key,
                "described": described,
                "parents": described["inputs"],
                "seed": self.recipe.seed,
                "libraries": library_versions(),
                "metrics": dict(result.metrics),
                "base_fingerprint": self.bench.fingerprint(name) if name != "pretrain" else None,
            }
            publish(out, final, manifest, scratch=CHECKPOINTS)
        seconds = round(log.before + time.perf_counter() - started, 3)  # those of stopped processes as well
        used = {"seconds": seconds, "peak_memory": peak_memory(self.processes.device)}
        folder.stage(name, status="done", key=key, artifact=stage.folder, **used, tokens=tokens)
        self.processes.barrier()
        if INTERRUPTS.asked:  # by a signal after the stage's last safe point
            raise KeyboardInterrupt

    def _finished(self, out: Path, final: Path, key: str) -> bool:
        """Whether a process that was killed had done all but the last rename; the main one does it, and all follow."""
        found = self.processes.is_main and finish_publishing(out, final, key, CHECKPOINTS)
        return bool(self.processes.gather([found])[0])

    def _job(
        self,
        out: Path,
        inputs: Mapping[str, Path],
        log: MetricsLog,
        bar: Any,
        progress: Progress,
        checkpoints: Checkpoints,
    ) -> Job:
        """What a stage is handed; its context is made once it has loaded the base it stands on."""

        def make_context(base: SharedBase, renderer: Renderer, corpus: Corpus | None = None) -> StageContext:
            found = {need: read_artifact(path) for need, path in inputs.items()}
            return StageContext(
                out=out,
                seed=self.recipe.seed,
                base=base,
                renderer=renderer,
                corpus=corpus or self.corpus,
                adapter=self.recipe.adapter,
                inputs={need: a for need, a in found.items() if a is not None},
                processes=self.processes,
                log=log,
                bar=bar,
                say=progress.say,
                warn=progress.warn,
                checkpoints=checkpoints,
                gradient_checkpointing=self.recipe.runtime.gradient_checkpointing,
                recipe_folder=self.recipe.base_dir,
            )

        return Job(
            bench=self.bench,
            corpus=self.corpus,
            out=out,
            inputs={k: v for k, v in inputs.items() if k != "pretrain"},
            make_context=make_context,
            log=log,
            bar=bar,
            checkpoints=checkpoints,
            generations=self.generations,
            say=progress.say,
        )
