"""Seconds that a stage takes: its passes, counted from shapes and rows, times what one layer takes on this machine.

Counts are pure; what a layer takes is measured elsewhere (``pipelines.run.speed``) and comes in as ``Rates``. Left out:
reading data and files, metrics, judges and functions of the user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pipelines.stages.shapes import Shape

Kind = Literal["train", "branches", "read"]
"""A pass forward and backward, the same of responses that branch off a common prompt, and a pass forward."""
MODULES = 1.4  # times the fast path's seconds, where Transformers' modules run
FULL = 1.5  # times these, where every weight has a gradient: six products where four do
LOADING = 1.5  # seconds in which a stage loads its base and its roles
IMPORTS = 2.0  # seconds in which the first stage with Transformers' trainer imports it
TRAINER = 0.015  # seconds of a step of Transformers' trainer besides its passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Seconds for ``n`` tokens or rows: ``start + n each``, and none for none."""

    start: float = 0.0
    each: float = 0.0

    def __call__(self, n: float) -> float:
        return self.start + n * self.each if n > 0 else 0.0

    def times(self, factor: float) -> Line:
        return Line(start=self.start * factor, each=self.each * factor)


def line_through(few: tuple[float, float], many: tuple[float, float]) -> Line:
    """The line through two measured points, each of a number and its seconds; it passes the second, whatever noise has
    made of the first."""
    rise = max(0.0, many[1] - few[1]) / (many[0] - few[0])
    each = min(rise, many[1] / many[0])
    return Line(start=many[1] - each * many[0], each=each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What this machine takes: one layer by kind of pass, a step of decoding, the output layer, and optimizers."""

    train: Line = field(default_factory=Line)
    branches: Line = field(default_factory=Line)
    read: Line = field(default_factory=Line)
    step: Line = field(default_factory=Line)  # of decoding, of so many rows
    loss: Line = field(default_factory=Line)  # of the output layer, of tokens whose log-probability is computed
    logprobs: Line = field(default_factory=Line)  # the same without a gradient
    choice: Line = field(default_factory=Line)  # a sampled token of so many rows
    adam: float = 0.0  # seconds a number that is trained
    pretraining: Line = field(default_factory=Line)  # a step from scratch of n tokens, all layers

    @classmethod
    def of(cls, lines: Mapping[str, Line], adam: float = 0.0) -> Rates:
        return cls(**lines, adam=adam)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """So many passes over rows of about one size."""

    kind: Kind
    count: float
    rows: float  # of one pass
    tokens: float  # of one pass
    read: float  # tokens whose state leaves the last layer
    logits: bool = True  # whether their log-probability is computed
    known: bool = False  # whether what enters the lowest adapted layer is known
    by: Shape | None = None  # the base that computes them, where it is another than the stage's


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """So many calls that sample responses."""

    calls: float
    rows: float  # of one call
    prompt: float  # tokens of one
    prompts: float  # tokens of all that differ
    mean: float  # tokens of a response
    longest: float
    by: Shape | None = None  # the base that samples them, where it is another than the stage's


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a stage computes."""

    passes: tuple[Passes, ...] = ()
    sampled: tuple[Sampled, ...] = ()
    steps: float = 0.0  # of an optimizer
    trained: float = 0.0  # numbers that one of them changes
    trainer: bool = False  # whether it is Transformers' trainer that takes the steps
    pretraining: tuple[float, float] = (0.0, 0.0)  # steps from scratch, and tokens of one
    full: bool = False  # whether every weight has a gradient
    rest: float = 0.0  # seconds besides


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a base is computed with."""

    fast: bool = True
    checkpointing: bool = False


def attention_share(shape: Shape) -> float:
    """Of a layer's products, the share that makes queries, keys and values: the last layer makes them of all tokens."""
    return shape.width * (shape.queries + 2 * shape.keys) / layer_size(shape)


def layer_size(shape: Shape) -> int:
    """Numbers of a layer's matrices."""
    return shape.width * (2 * shape.queries + 2 * shape.keys + 3 * shape.inner)


def lengthened(line: Line, shape: Shape, probed: float, length: float) -> Line:
    """A pass of rows that are longer than those probed: by the operations that attention adds, 2 L H d a token."""
    each = 2 * layer_size(shape)
    return line.times((each + 2 * length * shape.queries) / (each + 2 * probed * shape.queries))


def pass_seconds(one: Passes, shape: Shape, rates: Rates, how: How) -> float:
    """Seconds of one pass."""
    layer = getattr(rates, one.kind)(one.tokens)
    below = shape.layers - shape.trained_layers if one.kind != "read" or one.known else 0
    if one.kind != "read" and how.checkpointing:
        layer += rates.read(one.tokens)
    share = attention_share(shape)
    last = share + (1 - share) * min(1.0, one.read / max(1.0, one.tokens))
    seconds = layer * (shape.layers - below - 1 + last)
    seconds += 0.0 if one.known else below * rates.read(one.tokens)
    if not one.logits:
        return seconds
    return seconds + (rates.logprobs if one.kind == "read" else rates.loss)(one.read)


def sampling_seconds(one: Sampled, shape: Shape, rates: Rates) -> float:
    """Seconds of one call: its prompts, and steps with as many rows as are left."""
    each = shape.layers * rates.step.each + rates.choice.each
    always = shape.layers * rates.step.start + rates.choice.start
    return shape.layers * rates.read(one.prompts) + one.longest * always + one.rows * one.mean * each


def rates_of_another(rates: Rates, shape: Shape, other: Shape) -> Rates:
    """Of a base that was not measured: those of ``shape``, by a layer's matrices and the output layer's."""
    layer = layer_size(other) / layer_size(shape)
    output = other.width * other.vocabulary / (shape.width * shape.vocabulary)
    scales = dict.fromkeys(("train", "branches", "read", "step"), layer)
    scales |= dict.fromkeys(("loss", "logprobs", "choice"), output)
    return replace(rates, **{name: getattr(rates, name).times(factor) for name, factor in scales.items()})


def seconds(effort: Effort, shape: Shape, rates: Rates, how: How) -> float:
    """Seconds of a stage."""

    def at(one: Passes | Sampled) -> tuple[Shape, Rates]:
        return (shape, rates) if one.by is None else (one.by, rates_of_another(rates, shape, one.by))

    def slower(one: Passes | Sampled) -> float:
        return (1.0 if how.fast else MODULES) * (FULL if effort.full and one.by is None else 1.0)

    found = sum(one.count * pass_seconds(one, *at(one), how) * slower(one) for one in effort.passes)
    found += sum(one.calls * sampling_seconds(one, *at(one)) * slower(one) for one in effort.sampled)
    found += effort.pretraining[0] * rates.pretraining(effort.pretraining[1])
    return LOADING + effort.rest + found + effort.steps * (effort.trained * rates.adam + TRAINER * effort.trainer)


def without_nothing(passes: Iterable[Passes]) -> tuple[Passes, ...]:
    """Passes that are made, and have tokens."""
    return tuple(one for one in passes if one.count > 0 and one.tokens > 0)
