"""What a stage will take: tokens, memory and disk, from shapes and rows alone. For ``trivet plan``; loads no weights.

Tokens are those that a stage trains on or generates (at most: responses end by themselves). Memory is the peak by
``pipelines.stages.memory``, for the longest rows that a stage is likely to meet: on a CPU with what Python and its
libraries take, on a GPU what is allocated there. Disk is what stays in the run folder. What a stage does is said in
``workloads``, how long its rows are in ``lengths``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from data.splits import Corpus
from pipelines.recipe.schema import Recipe
from pipelines.stages import memory
from pipelines.stages.lengths import Lengths
from pipelines.stages.memory import FP32, MOVED, Memory, Numbers, Part, Rows, Sampling
from pipelines.stages.shapes import Shape, shape_of

if TYPE_CHECKING:
    from data.template import Renderer

LIBRARIES = 450 << 20  # bytes of Python, torch and the rest on a CPU
FACTOR = 3
CONTEXT = 1024  # tokens of a chunk where continued pretraining names no context
SCORED, HELD_OUT, CALIBRATED = 64, 32, 128  # rows of a pass that scores, that measures a loss, that is centred on


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one stage; None where it cannot be known yet."""

    tokens: int | None
    memory: int | None
    disk: int | None
    parts: Memory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage does, as far as its estimate needs it.

    ``tokens`` are those of the whole stage, ``texts`` bytes that stay besides weights. ``frozen`` and ``trained`` are
    roles, which stand beside the base; ``whole``: the base itself is trained. ``train`` and ``read`` are the largest
    passes with and without gradients, ``sampling`` the most responses at once, ``stored`` bytes of a rollout.
    """

    tokens: int
    texts: int = 0
    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    whole: bool = False
    train: Rows | None = None
    read: Rows | None = None
    sampling: Sampling | None = None
    stored: float = 0.0
    accumulates: bool = False  # whether a step has several passes, so that gradients are there before the last
    masks: float = 0.0  # cells of masks of attention
    logits: bool = True  # whether the trained pass ends in the vocabulary
    own_base: bool = False  # whether the reward model's other base is there too
    sampler: Shape | None = None  # the base that samples, where it is another
    extra: Mapping[str, float] = field(default_factory=dict)


class Estimator:
    """Estimates for the stages of one recipe.

    Args:
        recipe: whose stages.
        corpus: their rows.
        numbers: how the base is kept and computed with.
        libraries: bytes beside what torch allocates.
        renderer: gives the rows' lengths in tokens; without it they are guessed from characters.
        teacher: the base of the model that distillation learns from, where it is known.
    """

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        numbers: Numbers | None = None,
        libraries: int = LIBRARIES,
        renderer: Renderer | None = None,
        teacher: Shape | None = None,
    ) -> None:
        self.recipe, self.corpus, self.libraries, self.teacher = recipe, corpus, libraries, teacher
        self.lengths = Lengths(recipe, corpus, renderer)
        self.numbers = numbers or Numbers()
        self.shape = shape_of(recipe)

    def changed(self, recipe: Recipe, numbers: Numbers) -> Estimator:
        """The same for other settings of memory; lengths that are known are not taken again."""
        made = Estimator.__new__(Estimator)
        made.__dict__ |= self.__dict__ | {"recipe": recipe, "numbers": numbers}
        return made

    def of(self, work: Work) -> Estimate:
        """The estimate of a stage that does this work."""
        if self.shape is None:
            return Estimate(tokens=work.tokens, memory=None, disk=None)
        found = self.memory(work, self.shape)
        return Estimate(tokens=work.tokens, memory=found.peak, disk=self._disk(work), parts=found)

    @property
    def whole_copies(self) -> bool:
        """Whether a role has a model of its own."""
        return self.recipe.adapter.tuning.copies

    def memory(self, work: Work, shape: Shape) -> Memory:
        """What a stage holds always, and in each of its phases."""
        numbers = replace(self.numbers, fast=self.numbers.fast and not (work.whole or self.whole_copies))
        return Memory(always=self._always(work, shape, numbers), phases=self._phases(work, shape, numbers))

    def _always(self, work: Work, shape: Shape, numbers: Numbers) -> tuple[Part, ...]:
        base = memory.scratch_bytes(shape) if work.whole else memory.base_bytes(shape, numbers)
        found = {"libraries": float(self.libraries), "base": base}
        if not work.whole:
            found["gathered_layer"] = memory.gathered_bytes(shape, numbers)
        if work.own_base and (other := shape_of(self.recipe, self.recipe.reward.base)) is not None:
            found["reward_base"] = memory.base_bytes(other, numbers)
        each = self._trained(shape, numbers)
        found |= {f"{name}_(frozen)": FP32 * each for name in work.frozen}
        found |= {f"{name}_with_optimizer": MOVED * each for name in work.trained}
        return memory.parts(**found, stored_rollout=work.stored, **work.extra)

    def _trained(self, shape: Shape, numbers: Numbers) -> float:
        """Weights of a role here; processes that hold the base in parts hold its whole copies so as well."""
        return shape.adapter / (numbers.parts if self.whole_copies else 1)

    def _phases(self, work: Work, shape: Shape, numbers: Numbers) -> dict[str, tuple[Part, ...]]:
        phases: dict[str, tuple[Part, ...]] = {}
        if work.train is not None:
            plain = replace(numbers, weight=FP32, product=FP32, nf4=False) if work.whole else numbers
            held = memory.training(shape, plain, work.train, work.logits)
            held["masks"] = work.masks * (1 + FP32)
            gradients = len(work.trained) - 1 + work.accumulates
            held["gradients"] = FP32 * self._trained(shape, numbers) * gradients
            if self.whole_copies and numbers.parts > 1:
                held["gradient_of_the_output_layer"] = FP32 * shape.vocabulary * shape.width
            elif self.whole_copies and numbers.weight != FP32:
                held["weights_in_bf16"] = shape.linear * numbers.weight
            phases["training"] = memory.parts(**held)
        if work.read is not None:
            phases["scoring"] = memory.parts(**memory.reading(shape, numbers, work.read, work.logits))
        if work.sampling is not None:
            phases["sampling"] = memory.parts(**memory.sampled(work.sampler or shape, numbers, work.sampling))
        return phases

    def _disk(self, work: Work) -> int:
        s = self.shape
        assert s is not None
        weights = FP32 * s.parameters if work.whole else FP32 * s.adapter * len(work.trained)
        return int(weights + work.texts + 12_000)  # manifest, metrics, settings


def shares_prompts(e: Estimator) -> bool:
    """Whether a ranking's prompt is computed once: by the fast path, and by modules without windows."""
    return e.numbers.fast or e.shape is None or not e.shape.sliding
