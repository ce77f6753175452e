"""Bytes that a stage holds at its peak, by role and by phase, from the shape of the base and the rows of a pass.

The formulas are counts of what the code keeps: the fast path's states by ``models.fast.layers``, the modules' by
Transformers' Llama under PEFT. Shapes: T tokens of a pass, N of them that are read, G padded cells. Loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.stages.shapes import HEAD_NORMED, NORMED_AFTER, Shape

FP32 = 4
TRAINED = 16  # a number that is trained: itself, its gradient and two moments, all in fp32
MOVED = 12  # the same while it has no gradient
MUON = 12  # a matrix of a base from scratch: one moment
ROWS, WORDS, CHUNK = 512, 1024, 256  # blocks of logits: the fast path's, and rows of the modules'
LOGITS, LOGITS_OF_MODULES = 3, 5  # copies of a block of logits at one time
FIELDS = 7  # numbers that a rollout keeps a response token
NF4 = 0.5 + 1 / 16  # bytes a weight: four bits, and a scale in fp32 for 64 of them
GATHERED = 2  # copies of what is gathered
BACKWARD_OF_MODULES = 2
BACKWARD = 5  # copies of the inner states while a layer's gradients are made


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """How a base is kept and computed with."""

    weight: int = FP32  # bytes a weight
    product: int = FP32  # bytes of what products read and give
    nf4: bool = False  # matrices of the blocks in 4 bits
    fast: bool = True  # trivet's own loops, not the modules
    checkpointing: bool = False
    offload: bool = False  # whether layers' inputs wait on the host until they are computed again
    parts: int = 1  # processes that hold the base in parts
    packed_output: bool = False  # whether sampling reads a copy of the output layer

    @property
    def merged(self) -> bool:
        """Whether adapters are added into copies of the weights, a layer at a time."""
        return self.product == FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one forward pass."""

    count: int
    tokens: float  # of all rows, padding not counted
    longest: float
    read: float  # tokens whose log-probability or score is computed
    uneven: bool = False  # rows are of several lengths, whatever the largest are
    grid: float = 0.0  # cells of attention on the fast path, where they are not those of the rows

    @property
    def ragged(self) -> bool:
        return self.uneven or self.tokens < self.count * self.longest

    @property
    def cells(self) -> float:
        return self.count * self.longest


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Responses that are sampled at once."""

    rows: int
    prompt: float  # tokens of the longest
    prompts: float  # tokens of all distinct ones
    room: int  # tokens of a response, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes of one thing."""

    what: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a stage holds: ``always``, and beside it in one phase after another."""

    always: tuple[Part, ...]
    phases: dict[str, tuple[Part, ...]] = field(default_factory=dict)

    @property
    def fixed(self) -> int:
        return sum(part.bytes for part in self.always)

    @property
    def largest(self) -> str:
        """The phase that holds most."""
        return max(self.phases, key=lambda name: _sum(self.phases[name]), default="")

    @property
    def peak(self) -> int:
        return self.fixed + _sum(self.phases.get(self.largest, ()))


def _sum(parts: Iterable[Part]) -> int:
    return sum(part.bytes for part in parts)


def parts(**bytes_of: float) -> tuple[Part, ...]:
    """Parts by name, with blanks for underscores; those of nothing are left out."""
    return tuple(Part(what=name.replace("_", " "), bytes=int(n)) for name, n in bytes_of.items() if n >= 1)


# -- weights ----------------------------------------------------------------------------------------------------------


def base_bytes(shape: Shape, numbers: Numbers) -> float:
    """The frozen base once, for all roles; of one that is held in parts, this process's."""
    rest = shape.parameters - shape.linear
    return (shape.linear * (NF4 if numbers.nf4 else numbers.weight) + rest * numbers.weight) / numbers.parts


def gathered_bytes(shape: Shape, numbers: Numbers) -> float:
    """The largest part of a divided base that is gathered at once, as it comes from the processes and as it is used."""
    if numbers.parts == 1:
        return 0.0
    return GATHERED * numbers.weight * max(shape.linear / max(1, shape.layers), shape.vocabulary * shape.width)


def scratch_bytes(shape: Shape) -> float:
    """A base that is trained from scratch: matrices with Muon, the rest with Adam."""
    return shape.linear * MUON + (shape.parameters - shape.linear) * TRAINED


# -- one pass ---------------------------------------------------------------------------------------------------------


def layer_kept(shape: Shape, numbers: Numbers, rows: Rows, read: float) -> float:
    """What one layer keeps for its backward pass; behind attention it goes on with ``read`` tokens alone."""
    return _fast_layer(shape, numbers, rows, read) if numbers.fast else _module_layer(shape, numbers, rows)


def _fast_layer(shape: Shape, numbers: Numbers, rows: Rows, read: float) -> float:
    t, g, b = rows.tokens, rows.grid or rows.cells, numbers.product
    queries, keys = shape.queries, shape.keys
    kept = FP32 * shape.width * (t + read) + 2 * shape.inner * b * read + (queries * b + FP32 * shape.heads) * g
    joint = (queries + 2 * keys) * b
    if rows.ragged:
        kept += joint * g + (joint * t if shape.family in HEAD_NORMED else 0)
    else:  # values lie in the joint product
        kept += joint * t + (queries + keys) * b * t
    return kept + (2 * shape.width * b * read if shape.family in NORMED_AFTER else 0)


def _module_layer(shape: Shape, numbers: Numbers, rows: Rows) -> float:
    """Llama's modules under PEFT: a bf16 base keeps an fp32 copy of the input of every adapted matrix."""
    t, w = rows.cells, numbers.weight
    d, queries, keys, inner = shape.width, shape.queries, shape.keys, shape.inner
    attention = w * (2 * queries + 2 * keys)
    if w == FP32:
        return t * FP32 * (4 * d + 4 * inner) + t * attention
    return t * FP32 * (7 * d + queries + inner) + t * (3 * w * inner + attention)


def layer_workspace(shape: Shape, numbers: Numbers, tokens: float) -> float:
    """What is alive beside it while one layer's gradients are made."""
    if numbers.fast:
        return BACKWARD * shape.inner * numbers.product * tokens + 2 * FP32 * shape.width * tokens
    return BACKWARD_OF_MODULES * shape.inner * FP32 * tokens + FP32 * shape.width * tokens


def layer_copies(shape: Shape, numbers: Numbers) -> float:
    """Weights of one layer with the adapters added in, or out of four bits."""
    each = shape.linear / max(1, shape.layers)
    unpacked = shape.width * shape.inner * numbers.weight if numbers.nf4 else 0.0  # one matrix at a time
    if numbers.fast and numbers.merged:
        return each * FP32 + unpacked
    return unpacked


def training(shape: Shape, numbers: Numbers, rows: Rows, logits: bool = True) -> dict[str, float]:
    """What a forward and backward pass holds at its peak: at the loss, in the last layer, or in the one before it."""
    tokens = rows.tokens if numbers.fast else rows.cells
    read = rows.read if numbers.fast else tokens
    deep = shape.trained_layers if numbers.fast else shape.layers
    entering = (FP32 if numbers.fast else numbers.weight) * shape.width * tokens
    kept, last = (layer_kept(shape, numbers, rows, n) for n in (tokens, read))
    states = (2 if logits else 1) * rows.read * shape.width * FP32
    block = head_block(shape, numbers, rows) if logits else 0.0
    copies = layer_copies(shape, numbers)
    work = [copies + layer_workspace(shape, numbers, n) for n in (tokens, read)]
    if numbers.checkpointing and numbers.offload:
        saved = (entering, entering + last, entering + kept)
    elif numbers.checkpointing:
        saved = (deep * entering, deep * entering - entering + last, (deep - 1) * entering - entering + kept)
    else:
        saved = ((deep - 1) * kept + last, (deep - 1) * kept + last, (deep - 1) * kept)
    moments = [
        {"activations": saved[0], "logits_and_loss": states + block},
        {"activations": saved[1], "logits_and_loss": states, "workspace": work[1]},
    ]
    if deep > 1:
        moments.append({"activations": max(saved[2], kept), "workspace": work[0]})
    return max(moments, key=lambda held: sum(held.values()))


def head_block(shape: Shape, numbers: Numbers, rows: Rows) -> float:
    """Copies of a block of logits."""
    if numbers.fast and shape.plain_head:
        widened = WORDS * shape.width * FP32 if numbers.weight != numbers.product else 0
        return LOGITS * FP32 * min(ROWS, rows.read) * min(WORDS, shape.vocabulary) + widened
    return LOGITS_OF_MODULES * FP32 * min(CHUNK, rows.read) * shape.vocabulary


def reading(shape: Shape, numbers: Numbers, rows: Rows, logits: bool = True) -> dict[str, float]:
    """What a forward pass without gradients holds at its peak."""
    tokens = rows.tokens if numbers.fast else rows.cells
    b = numbers.product if numbers.fast else numbers.weight
    inside = max(3 * shape.inner * b, 3 * (shape.queries + 2 * shape.keys) * b)
    states, block = rows.read * shape.width * FP32, head_block(shape, numbers, rows) if logits else 0.0
    moments = [
        {"activations": tokens * (inside + 3 * FP32 * shape.width), "workspace": layer_copies(shape, numbers)},
        {"activations": tokens * FP32 * shape.width, "logits_and_loss": states + block},
    ]
    return max(moments, key=lambda held: sum(held.values()))


# -- sampling ---------------------------------------------------------------------------------------------------------


def cache_bytes(shape: Shape, numbers: Numbers, sampling: Sampling) -> float:
    """Keys and values of all layers, by key heads; modules keep no more than the window in a layer that has one."""
    whole = sampling.prompt + sampling.room
    columns = [whole] * shape.layers
    if not numbers.fast and shape.window:
        columns = [min(whole, shape.window)] * shape.sliding + [whole] * (shape.layers - shape.sliding)
    b = numbers.product if numbers.fast else numbers.weight
    return 2 * sampling.rows * shape.keys * b * sum(columns)


def sampled(shape: Shape, numbers: Numbers, sampling: Sampling) -> dict[str, float]:
    """What sampling holds at its peak: the cache, the weights as the loop reads them, and the prompts or one step."""
    prompts = Rows(count=1, tokens=sampling.prompts, longest=sampling.prompts, read=sampling.rows)
    first = sum(reading(shape, numbers, prompts, logits=False).values())
    step = sampling.rows * shape.vocabulary * FP32 * LOGITS_OF_MODULES
    cache = cache_bytes(shape, numbers, sampling)
    copies = shape.linear * numbers.product if numbers.fast and not numbers.nf4 else layer_copies(shape, numbers)
    if numbers.fast and (numbers.packed_output or numbers.weight != numbers.product):
        copies += shape.vocabulary * shape.width * numbers.product  # the output layer
    grown = 0 if numbers.fast else 2 * cache / max(1, shape.layers)  # a layer's cache is written anew with each token
    return {"sampling_cache": cache, "weights_for_sampling": copies, "workspace": max(first, step + grown)}
