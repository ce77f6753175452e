"""A recipe with its run folder: its records, what its stages depend on, what lies there of them, what a run would do.

How stages are run is in ``runner``; what they compute this module does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data.common.errors import UserError, nearest
from data.common.user_functions import columns_read
from data.splits import Corpus, load_corpus
from data.storage.file_hashes import remembered
from models.backbone.artifacts import MANIFEST, load_artifact, problems, read_artifact
from models.backbone.processes import Processes
from models.backbone.watching import watching
from pipelines.execution.loaded_models import LoadedModels
from pipelines.execution.progress import Progress
from pipelines.loading.load import load_kept, load_recipe
from pipelines.recipe.schema import Recipe
from pipelines.run.amounts import Settled, leaves_open, settled
from pipelines.run.binding import check_start
from pipelines.run.other_runs import open_stage
from pipelines.run.plan_details import PlanDetails
from pipelines.run.runner import Runner
from pipelines.run.sharing import SharedStages
from pipelines.run.staleness import StageState, and_remark, state_of
from pipelines.stages.depends_on import adapter_settings, rendering_of
from pipelines.stages.described import Here, functions_in_key, left_out_of_keys
from pipelines.stages.keys import base_key, dump, folder_hash, library_versions
from pipelines.stages.table import STAGES, bases_made
from pipelines.workspace.run_folder import RECIPE, check_outside, read_run, stopped_at_gate
from pipelines.workspace.store import Store
from reward.card.gate import failures, stored_card
from stages.safe_points.stopped import kept_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """What would happen to a stage."""

    name: str
    status: str  # given (by --input), cached, stored (another run's, in the store), new or stale
    reason: str
    details: dict[str, Any] = field(default_factory=dict)


class Pipeline:
    """A recipe and its run folder.

    Args:
        recipe: the recipe; what it leaves to its data follows when it is asked for.
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
        self.asked = recipe
        self.store = Store(Path(store)) if store else None
        self.run_dir = (run_dir or Path("runs") / recipe.name).resolve()
        self.generations = self.run_dir / "generations"  # evaluation's responses, by content
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
        may_idle: bool = False,
    ) -> Pipeline:
        """Read a recipe (a path or a dict) with dotted overrides such as ``ppo.kl_coef=0.1``; see ``load_recipe``.

        The resolved recipe in a run folder sees relative paths from the folder of the first recipe.
        """
        return cls.from_loaded(load_recipe(recipe, overrides, may_idle), recipe, run_dir, inputs, store)

    @classmethod
    def from_loaded(
        cls,
        loaded: Recipe,
        source: str | Path | dict[str, Any],
        run_dir: Path | str | None = None,
        inputs: Mapping[str, str] | None = None,
        store: Path | str | None = None,
    ) -> Pipeline:
        """A pipeline of a recipe that was read from ``source``."""
        if isinstance(source, str | Path) and Path(source).name == RECIPE:
            origin = read_run(Path(source).parent).get("recipe_folder", loaded.base_dir)
            loaded = loaded.model_copy(update={"base_dir": Path(origin)})
        return cls(loaded, Path(run_dir) if run_dir else None, inputs, store)

    @cached_property
    def settled(self) -> Settled:
        """The recipe with what it leaves to its data, which is read only where it leaves something."""
        return settled(self.asked, self.corpus) if leaves_open(self.asked) else Settled(self.asked, {})

    @property
    def recipe(self) -> Recipe:
        """The recipe that the run follows, every setting with its value."""
        return self.settled.recipe

    @cached_property
    def corpus(self) -> Corpus:
        """All records, split once for every stage."""
        recipe = self.asked
        functions = {f for stage in STAGES.values() for f in stage.functions(recipe)}
        known = {column for function in functions for column in columns_read(function, recipe.base_dir)}
        return load_corpus(recipe.data, seed=recipe.seed, base_dir=recipe.base_dir, known=sorted(known))

    @cached_property
    def processes(self) -> Processes:
        """This process and those that a launcher has started with it."""
        return Processes(self.asked.runtime.device, self.asked.runtime.threads)

    @cached_property
    def shared(self) -> SharedStages:
        """The stages that it shares with other runs."""
        return SharedStages(self.store, self.run_dir, self.asked.base_dir, self.processes)

    def corpus_counts(self) -> dict[str, int]:
        """Rows of every part of the data, and how many were rejected."""
        parts = ("documents", "demonstrations", "rankings", "prompts")
        counts = {
            f"{p} {side}": len(getattr(getattr(self.corpus, p), side)) for p in parts for side in ("train", "held_out")
        }
        return {name: n for name, n in counts.items() if n} | {"rejected rows": len(self.corpus.rejected)}

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages that this run computes: those of the recipe whose results it is not given."""
        return tuple(name for name in self.recipe.stages if name not in self.given)

    # -- keys and plan -----------------------------------------------------------------------------------------------

    def inputs_of(self, name: str) -> dict[str, Path]:
        """Folders of the stages that ``name`` takes, as far as they are part of the run or given."""
        out = {}
        for need in STAGES[name].needs(self.recipe):
            if need in self.given:
                out[need] = self.given[need]
            elif need in self.recipe.stages:
                out[need] = self.run_dir / STAGES[need].folder
            elif STAGES[need].role == "base":
                raise UserError(f"base: its stage is missing; add '{need}' to the stages or give --input {need}=PATH")
        return out

    def describe(self, name: str, keys: Mapping[str, str]) -> dict[str, Any]:
        """Everything that the result of a stage depends on; its hash is the stage's key."""
        stage, recipe = STAGES[name], self.recipe
        own_reward_base = recipe.reward.base != "same" and (stage.role == "reward" or "reward" in keys)
        return {
            "stage": name,
            "version": stage.version(),
            "settings": stage.settings(recipe),
            "seed": recipe.seed,
            "base": self.base_key,
            **({"reward_base": self.reward_base_key} if own_reward_base else {}),
            "rendering": rendering_of(recipe) if stage.on_base else None,
            "adapter": adapter_settings(recipe) if stage.on_base else None,
            "data": {part: self.corpus.fingerprint(part) for part in stage.parts(recipe)},
            **({"cleaning": dump(recipe.data.clean)} if stage.data and recipe.data.clean.active else {}),
            **functions_in_key(recipe, name, self.corpus),
            "inputs": dict(keys),
            "runtime": dump(recipe.runtime, left_out_of_keys(recipe.runtime))
            | {"device": self.processes.device.type}
            | ({"processes": self.processes.world_size} if stage.samples_masks(recipe) else {}),
            "libraries": library_versions(),
        }

    @cached_property
    def base_key(self) -> str:
        """A pretrained base is known by its stage's key, which is among the inputs."""
        recipe = self.recipe
        return base_key(recipe.base, recipe.base_dir) if isinstance(recipe.base, str) else "pretrained"

    @cached_property
    def reward_base_key(self) -> str:
        """The key of a base that the reward model has of its own."""
        return base_key(self.recipe.reward.base, self.recipe.base_dir)

    def states(self, again: Sequence[str] = (), chosen: Sequence[str] | None = None) -> Iterator[StageState]:
        """Every stage that is not given, in order, read when its turn comes.

        Args:
            again: stages that are run whatever lies there.
            chosen: stages of this call, by default all. The others' results are taken as they lie there, so that what
                is made of them has their own keys, not those that the recipe would give them.
        """
        known: dict[str, str] = {}
        for name in self.stages:
            keys = {}
            for need, path in self.inputs_of(name).items():
                given = read_artifact(path)
                keys[need] = known[need] if need not in self.given else given.key if given else folder_hash(path)
            described, here = self.describe(name, keys), Here.of(self.processes)
            state = state_of(name, described, self.run_dir, self.recipe, here, name in again)
            known[name] = state.key
            if chosen is not None and name not in chosen and (there := read_artifact(state.folder)) is not None:
                known[name] = there.key
            yield state

    def plan(self) -> list[StagePlan]:
        """What a run would do, without loading any weights or running code of the user's; nor are large files that have
        not changed read again (``data.storage.file_hashes``)."""
        with remembered():
            found = self._plan()
        self.__dict__.pop("base_key", None)  # a run reads every byte
        self.__dict__.pop("reward_base_key", None)
        return found

    def _plan(self) -> list[StagePlan]:
        check_start(self.recipe, self.corpus, self.stages, run_code=False)
        out = [
            StagePlan(name=name, status="given", reason=f"by --input: {self.given[name]}")
            for name in self.recipe.stages
            if name in self.given
        ]
        details, finished = self.details_after(out), dict(self.given)
        for state in self.states():
            reason = state.reason
            status = "cached" if not reason else "new" if state.there is None else "stale"
            if reason and self.shared.holds(state.key):
                status, reason = "stored", f"finished in the store ({reason} here)"
            if not reason:
                finished[state.name] = state.there.path  # type: ignore[union-attr]
            elif state.name == "ppo" and "reward" in finished and (stop := self._gate_ahead(finished["reward"])):
                reason = f"{reason}; {stop}"
            done = state.remark if state.put_back else and_remark("finished and unchanged", state.remark)
            more = details.of(state.name) | {"functions": state.described["functions"]}
            out.append(StagePlan(name=state.name, status=status, reason=reason or done, details=more))
        return sorted(out, key=lambda plan: self.recipe.stages.index(plan.name))

    def _gate_ahead(self, reward: Path) -> str:
        """What the gate before PPO will say of a finished reward model; '' where it lets that pass."""
        gate = self.recipe.reward.gate
        if not gate.enabled or "model" not in {part.kind for part in self.recipe.ppo.reward}:
            return ""
        failed = failures(stored_card(reward), gate) if stored_card(reward) else []
        return f"reward.gate will stop it ({'; '.join(failed)})" if failed else ""

    @property
    def details(self) -> PlanDetails:
        """What is known of the stages' work and memory as things lie now."""
        return self.details_after(())

    def details_after(self, before: Sequence[StagePlan]) -> PlanDetails:
        """The same beside the plans of the stages so far."""
        return PlanDetails(
            self.recipe,
            self.corpus,
            self.processes.device,
            bases_made(self.run_dir, self.given),
            before,
            self.processes.world_size,
            tuple(self.given),
            self.settled.why,
        )

    def kept(self) -> dict[Path, str]:
        """Hidden folders of the run with results that were replaced and work that was stopped, and what they are."""
        return {path: what for name in STAGES for path, what in kept_of(self.run_dir / STAGES[name].folder, name)}

    # -- running -----------------------------------------------------------------------------------------------------

    def chosen(self, only: Sequence[str], start: str | None, until: str | None) -> list[str]:
        """Stages of this call.

        Raises:
            UserError: one is named that the recipe has not, or whose result is given, or that another of the three
                leaves out.
        """
        stages = list(self.recipe.stages)
        for name in only:
            if name in self.given:
                raise UserError(
                    f"--input {name}: gives the result of this stage, which is not run then; leave one of the two out"
                )
        for name in [*only, *filter(None, (start, until))]:
            if name not in stages:
                raise UserError(f"no stage '{name}' in this recipe.{nearest(name, stages)} It has: {', '.join(stages)}")
        first = stages.index(start) if start else 0
        last = stages.index(until) if until else len(stages) - 1
        if first > last:
            raise UserError(
                f"--from {start} and --until {until}: no stage lies between, for {until} comes before {start}; "
                "exchange them, or leave one out"
            )
        if outside := [name for name in only if name not in stages[first : last + 1]]:
            limit = f"--from {start}" if stages.index(outside[0]) < first else f"--until {until}"
            raise UserError(f"--only {outside[0]} and {limit}: the second leaves out what the first names; drop one")
        return [s for s in stages[first : last + 1] if s not in self.given and (not only or s in only)]

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

        Raises:
            StageError: another process of this run died, was stopped, failed or cannot be reached.
        """
        check_outside(self.run_dir, "--run-dir")
        with watching(self.processes):
            chosen = self.chosen(only, start, until)
            Runner(self, progress or Progress(active=self.processes.is_main), fresh).run(chosen)
        return {name: self.run_dir / STAGES[name].folder for name in chosen}

    @cached_property
    def loaded(self) -> LoadedModels:
        """The bases in memory, and the roles on them."""
        made = LoadedModels(self.recipe, self.processes, bases_made(self.run_dir, self.given))
        made.open_stage = partial(open_stage, make=Pipeline._of_run, processes=self.processes)
        return made

    @classmethod
    def _of_run(cls, run: Path, given: Mapping[str, str], stage: str) -> Pipeline:
        if (recipe := load_kept(run, stage)) is not None:
            return cls.from_loaded(recipe, run, run, given)
        return cls.from_recipe(run / RECIPE, (), run, given, may_idle=True)

    def checked_inputs(self, name: str) -> dict[str, Path]:
        """Folders of the stages that ``name`` takes, their bytes verified.

        Raises:
            UserError: one is missing, or altered since it was finished.
        """
        inputs = self.inputs_of(name)
        for need, path in inputs.items():
            if need not in self.given:
                if not (path / MANIFEST).is_file() and (why := stopped_at_gate(self.run_dir, need)):
                    raise UserError(why)
                load_artifact(path, f"{need} stage")  # raises by name: missing, or altered since
            elif (found := read_artifact(path)) is not None and (wrong := problems(found)):
                raise UserError(f"--input {need}: {wrong[0]}")
        return inputs
