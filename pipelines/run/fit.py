"""Settings of memory that fit a device: gradient checkpointing, micro-batches, how many responses are sampled at once.

They cut the same sums into other parts, so that no result hangs on them beyond rounding, and no stage is stale for
them. A base in four bits is another model: it is proposed, and never chosen at a run. Passes that only score are left
out, for they cut themselves when memory runs out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.recipe.schema import Recipe
from pipelines.stages.estimates import Estimate, Estimator
from pipelines.stages.memory import Memory
from pipelines.stages.table import STAGES

SMALL = 4  # rows; smaller micro-batches are taken only with checkpointing
CHECKPOINTING = "runtime.gradient_checkpointing"
Settings = Mapping[str, Any]  # dotted names -> values


def with_settings(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with other values of some settings, by dotted names of two parts."""
    groups: dict[str, dict[str, Any]] = {}
    for dotted, value in settings.items():
        group, _, name = dotted.partition(".")
        groups.setdefault(group, {})[name] = value
    return recipe.model_copy(
        update={group: getattr(recipe, group).model_copy(update=own) for group, own in groups.items()}
    )


def needed(memory: Memory) -> int:
    """Bytes at the peak of what cannot cut itself."""
    phases = [sum(p.bytes for p in parts) for name, parts in memory.phases.items() if name != "scoring"]
    return memory.fixed + max(phases, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What was found: settings that differ from the recipe's, and the stages that fit with none."""

    settings: dict[str, Any]
    recipe: Recipe
    misfits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    """Looks for settings of a recipe that fit into ``limit`` bytes.

    Args:
        recipe: whose stages.
        estimator: of that recipe.
        limit: bytes.
        four_bits: whether a base in four bits may be proposed.
        given: stages whose results are given; they take nothing and set no limit.
    """

    recipe: Recipe
    estimator: Estimator
    limit: int
    four_bits: bool = False
    given: Collection[str] = ()
    _known: dict[Any, Estimate] = field(default_factory=dict)

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that the run computes."""
        return tuple(name for name in self.recipe.stages if name not in self.given)

    def takes(self, name: str, settings: Settings) -> Estimate:
        """The estimate of a stage with these settings; ``runtime.gradient_checkpointing`` 'auto' counts as off."""
        key = (name, tuple(sorted(settings.items(), key=str)))
        if key not in self._known:
            recipe = with_settings(self.recipe, settings)
            numbers = replace(
                self.estimator.numbers,
                checkpointing=recipe.runtime.gradient_checkpointing is True,
                nf4=recipe.runtime.quantize == "nf4",
            )
            estimator = self.estimator.changed(recipe, numbers)
            self._known[key] = estimator.of(STAGES[name].estimate(estimator))
        return self._known[key]

    def fits(self, name: str, settings: Settings = {}) -> bool:  # noqa: B006 (a mapping that nobody changes)
        """Whether a stage fits; one whose base is not here yet does."""
        parts = self.takes(name, settings).parts
        return parts is None or needed(parts) <= self.limit

    def _phase_fits(self, name: str, phase: str, settings: Settings) -> bool:
        parts = self.takes(name, settings).parts
        return parts is None or parts.fixed + sum(p.bytes for p in parts.phases.get(phase, ())) <= self.limit

    # -- sizes of one stage ------------------------------------------------------------------------------------------

    def _micro(self, name: str) -> tuple[str, int] | None:
        """The setting that says how much a pass of a stage holds, and its largest value."""
        group = getattr(self.recipe, STAGES[name].group)
        by_tokens = {"sft": "batch_tokens", "ppo": "micro_tokens"}.get(name)
        if by_tokens and getattr(group, by_tokens) is not None:
            setting, largest = by_tokens, getattr(group, by_tokens)
        elif name == "ppo":
            setting, largest = "micro_batch", max(group.micro_batch, min(64, group.rollouts // group.minibatches))
        else:
            setting, largest = "micro_batch", max(group.micro_batch, group.batch)
        return (f"{name}.{setting}", largest) if setting in STAGES[name].speed_settings(self.recipe) else None

    def _sampled(self, name: str) -> tuple[str, int] | None:
        """The setting that says how many responses a stage samples at once, and its value."""
        stage = STAGES[name]
        group = getattr(self.recipe, stage.group, None)
        if stage.sampled is None or group is None:
            return None
        own = getattr(group, stage.sampled)
        return f"{stage.group}.{stage.sampled}", own if own is not None else group.rollouts

    def sizes(self, name: str, settings: Settings, min_size: int) -> dict[str, int] | None:
        """The largest sizes of a stage that fit beside these settings; None where not even the smallest do."""
        found: dict[str, int] = {}
        levers = (("training", self._micro(name) if STAGES[name].trains else None), ("sampling", self._sampled(name)))
        for phase, lever in levers:
            if lever is None:
                if not self._phase_fits(name, phase, settings):
                    return None
                continue
            dotted, largest = lever
            smallest = (min(min_size, largest) if "micro" in dotted else 1) if "tokens" not in dotted else 8
            for size in halves(largest, smallest):
                if self._phase_fits(name, phase, {**settings, dotted: size}):
                    found[dotted] = size
                    break
            else:
                return None
        return found

    # -- the whole recipe --------------------------------------------------------------------------------------------

    def options(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Settings of the whole run from the fastest to the smallest, each with the smallest micro-batch it takes."""
        trains = any(STAGES[name].trains for name in self.stages)
        lora = self.recipe.adapter.method == "lora"
        yield ({CHECKPOINTING: False} if trains else {}), SMALL
        if trains:
            yield {CHECKPOINTING: True}, 1
        if self.four_bits and lora and self.recipe.runtime.quantize is None:
            yield ({CHECKPOINTING: True} if trains else {}) | {"runtime.quantize": "nf4"}, 1

    def best(self) -> Fitted:
        """The first option with which every stage fits, or the last one with the stages that still do not."""
        found: dict[str, Any] = {}
        misfits: list[str] = []
        for option, min_size in self.options():
            found, misfits = dict(option), []
            for name in self.stages:
                sizes = self.sizes(name, option, min_size)
                if sizes is None:
                    misfits.append(name)
                else:
                    found |= sizes
            if not misfits:
                break
        found = {k: v for k, v in found.items() if v != self.own(k)}
        return Fitted(settings=found, recipe=with_settings(self.recipe, found), misfits=tuple(misfits))

    def own(self, dotted: str) -> Any:
        """The recipe's value of a setting."""
        group, _, name = dotted.partition(".")
        own = getattr(getattr(self.recipe, group), name)
        return self.recipe.ppo.rollouts if dotted == "ppo.sampling_batch" and own is None else own

    def remedy(self, name: str) -> dict[str, Any] | None:
        """The first change with which a stage fits that does not; empty where it does, None where none helps."""
        if self.fits(name):
            return {}
        for option in ({}, {CHECKPOINTING: True}, {CHECKPOINTING: True, "runtime.quantize": "nf4"}):
            if (CHECKPOINTING in option and not STAGES[name].trains) or (
                "runtime.quantize" in option and not self.four_bits
            ):
                continue
            sizes = self.sizes(name, option, 1 if option else SMALL)
            if sizes is not None:
                return {k: v for k, v in (option | self._smaller(sizes)).items() if v != self.own(k)}
        return None

    def _smaller(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Sizes that are no larger than the recipe's own."""
        return {k: min(v, self.own(k)) for k, v in sizes.items()}

    def settled(self, name: str) -> dict[str, Any]:
        """What a stage runs with where the recipe leaves it to the device: checkpointing, and with ``runtime.fit``
        its sizes."""
        runtime = self.recipe.runtime
        # layers that are computed again lose the keys and values that they are given
        auto = runtime.gradient_checkpointing == "auto" and not self.recipe.adapter.tuning.past
        if runtime.fit is None:
            on = auto and STAGES[name].trains and not self.fits(name)
            return {CHECKPOINTING: on} if auto else {}
        for on, min_size in ((False, SMALL), (True, 1)) if auto else ((runtime.gradient_checkpointing is True, 1),):
            sizes = self.sizes(name, {CHECKPOINTING: on}, min_size)
            if sizes is not None:
                free = STAGES[name].speed_settings(self.recipe)
                return {CHECKPOINTING: on} | {k: v for k, v in sizes.items() if k.partition(".")[2] in free}
        return {CHECKPOINTING: STAGES[name].trains} if auto else {}


def halves(largest: int, smallest: int) -> Iterator[int]:
    """``largest``, then the powers of two below it down to ``smallest``, which comes last."""
    yield largest
    size = 1 << max(0, (largest - 1).bit_length() - 1)
    while size > smallest and size < largest:
        yield size
        size //= 2
    if smallest < largest:
        yield smallest
