"""What one layer of a base takes on this machine: a short probe of the fast path's own code, at the base's shapes.

Random weights of one layer are computed with, forward, backward and in decoding, for a few tens of milliseconds a kind
of pass; the median of several times counts. What was measured is kept in the cache for the day, by machine, threads,
precision and shape, unless other processes were in the way. Nothing is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from data.storage.kept import Memo, key_of
from models.backbone.four_bits import pack_matrix
from models.fast.layers import Saved, backward, forward, start
from models.fast.layout import Layout, branch_layout, layout_of
from models.fast.logprobs import block_logits, block_logprobs, token_statistics
from models.fast.products import product_dtype, products_of
from models.fast.weights import Decoder, Layer, Projection
from models.sampling.decoding import decode_layers, new_storage
from models.sampling.generate import sample_with_statistics
from pipelines.run.pretraining_speed import pretraining_line
from pipelines.run.probing import GUESS, TARGET, WORDS, Crowd, Probe, crowd, seconds_of
from pipelines.stages.duration import Line, Rates, layer_size, lengthened, line_through
from pipelines.stages.shapes import Shape

KINDS = ("train", "branches", "read")
KEPT = "rates"  # their name in the cache
LARGEST = 1 << 25  # numbers of the layer that is measured; a larger one is measured with every side halved, and scaled
MIN_TOKENS = 96  # of a pass
ADAM = 1 << 19  # numbers that the optimizer is measured with
BRANCHES = 3  # responses behind one prompt


def rates_of(probe: Probe) -> tuple[Rates, Crowd]:
    """Measured now, or found in the cache; and what stood in the way. A crowded machine's rates are not kept."""
    memo = Memo(key_of(probe.described()))
    text, others = memo.find(KEPT), Crowd()
    if text is None:
        with crowd() as others:
            rates = run_probe(probe)
        if others.matters:
            return rates, others
        text = memo.keep(KEPT, json.dumps(asdict(rates)))
    found = json.loads(text)
    adam = found.pop("adam")
    return Rates.of({name: Line(**line) for name, line in found.items()}, adam), others


def run_probe(probe: Probe) -> Rates:
    """All lines."""
    smaller, scale = reduced(probe.shape)
    layer = OneLayer(replace(probe, shape=smaller))
    with torch.random.fork_rng([] if probe.device.type == "cpu" else [probe.device]):
        torch.manual_seed(0)
        lines = {kind: layer.line(kind).times(scale) for kind in KINDS}
        lines["step"] = layer.steps().times(scale)
        lines |= {name: line.times(probe.shape.vocabulary / layer.words) for name, line in layer.outputs().items()}
        if probe.pretraining is not None:
            lines["pretraining"] = pretraining_line(probe.pretraining, probe)
        return Rates.of(lines, adam_seconds(probe.device))


def can_probe(shape: Shape) -> bool:
    """Whether a layer of this shape can be made: all sizes are known, query heads share key heads evenly, and a head's
    coordinates are pairs."""
    sizes = (shape.layers, shape.width, shape.inner, shape.heads, shape.key_heads, shape.head_size, shape.vocabulary)
    return min(sizes) > 0 and shape.heads % shape.key_heads == 0 and shape.head_size % 2 == 0


def reduced(shape: Shape) -> tuple[Shape, float]:
    """A shape whose layer is small enough to be measured, and how much more a layer of the whole one computes."""
    scale = 1.0
    while layer_size(shape) > LARGEST and min(shape.heads, shape.key_heads) > 1:
        before = layer_size(shape)
        halves = {name: getattr(shape, name) // 2 for name in ("width", "inner", "heads", "key_heads")}
        shape = replace(shape, **halves)
        scale *= before / layer_size(shape)
    return shape, scale


class Rotation(nn.Module):
    """Angles as a rotary embedding gives them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(0, self.size, 2, device=x.device) / self.size
        angles = positions[..., None] * 10_000.0**-steps
        both = torch.cat([angles, angles], dim=-1)
        return both.cos(), both.sin()


@dataclass(frozen=True)
class OneLayer:
    """One layer of random weights, and what is done with it."""

    probe: Probe

    @property
    def words(self) -> int:
        return min(WORDS, self.probe.shape.vocabulary)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.probe.numbers.weight == 2 else torch.float32

    def _random(self, *sizes: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*sizes, device=self.probe.device).mul_(0.02).to(dtype or self.dtype)

    def _projection(self, wide: int, narrow: int) -> Projection:
        """(out, in), with an adapter."""
        weight: Any = self._random(wide, narrow)
        if self.probe.numbers.nf4:
            weight = pack_matrix(weight)
        a = self._random(self.probe.rank, narrow, dtype=torch.float32).requires_grad_()
        b = self._random(wide, self.probe.rank, dtype=torch.float32).requires_grad_()
        return Projection(weight=weight, bias=None, a=a, b=b, scale=2.0)

    @cached_property
    def decoder(self) -> Decoder:
        s = self.probe.shape
        norm = torch.ones(s.width, device=self.probe.device)
        layer = Layer(
            attention=tuple(self._projection(n, s.width) for n in (s.queries, s.keys, s.keys)),
            output=(self._projection(s.width, s.queries),),
            gated=tuple(self._projection(s.inner, s.width) for _ in range(2)),
            down=(self._projection(s.width, s.inner),),
            norm=norm,
            second_norm=norm,
            post_norm=None,
            second_post_norm=None,
            q_norm=None,
            k_norm=None,
            angles="",
            window=None,
        )
        return Decoder(
            embeddings=self._random(self.words, s.width),
            layers=(layer,),
            norm=norm,
            epsilon=1e-5,
            heads=s.heads,
            key_heads=s.key_heads,
            head_size=s.head_size,
            rotary=Rotation(s.head_size),
        )

    # -- passes ------------------------------------------------------------------------------------------------------

    def _layout(self, tokens: int, length: int, branches: bool = False) -> Layout:
        """Rows of about one length; the last is shorter, as a rule. With ``branches``, prompts and responses alike."""
        rows = max(1, tokens // length)
        mask = torch.ones((rows, length), dtype=torch.bool, device=self.probe.device)
        mask[-1, -1] = False
        if not branches:
            return layout_of(mask)
        each = length // (1 + BRANCHES)
        trees = [(length - BRANCHES * each, [each] * BRANCHES)] * (rows - 1)
        return branch_layout([*trees, (length - BRANCHES * each, [each] * (BRANCHES - 1) + [each - 1])], mask.device)

    def _states(self, layout: Layout) -> Tensor:
        return self._random(len(layout.positions), self.probe.shape.width, dtype=torch.float32)

    def train(self, tokens: int, length: int, branches: bool = False) -> Callable[[], Any]:
        """A pass forward and backward."""
        layout = self._layout(tokens, length, branches)
        x, gradient = self._states(layout), self._states(layout)

        def work() -> None:
            saved = Saved(x=x)
            with torch.no_grad():
                forward(start(self.decoder, layout), 0, x, None, saved)
                backward(start(self.decoder, layout), 0, gradient.clone(), None, saved, below=True)

        return work

    def read(self, tokens: int, length: int) -> Callable[[], Any]:
        """A pass forward."""
        layout = self._layout(tokens, length)
        x = self._states(layout)

        def work() -> None:
            with torch.no_grad():
                forward(start(self.decoder, layout), 0, x, None, None)

        return work

    def _seconds(self, work: Callable[[], Any]) -> float:
        return seconds_of(work, self.probe.device)

    def line(self, kind: str) -> Line:
        """Through passes of few and of many tokens; nothing for a kind that no stage makes."""
        if kind not in self.probe.lengths:
            return Line()
        makes: dict[str, Callable[[int, int], Callable[[], Any]]]
        makes = {"train": self.train, "branches": partial(self.train, branches=True), "read": self.read}
        rate = GUESS.get(self.probe.device.type, 5e13)
        limit = max(MIN_TOKENS, int(TARGET * rate / (4 * layer_size(self.probe.shape))))
        many = max(MIN_TOKENS, min(limit, self.probe.tokens[kind]))
        length = min(self.probe.lengths[kind], many // 2)
        points = []
        for tokens in (max(length, many // 4), many):
            tokens = tokens // length * length
            points.append((float(tokens), self._seconds(makes[kind](tokens, length))))
        return lengthened(line_through(*points), self.probe.shape, length, self.probe.lengths[kind])

    # -- decoding ----------------------------------------------------------------------------------------------------

    def steps(self) -> Line:
        """A step of decoding: of few and of all rows."""
        rows = self.probe.rows
        if not rows:
            return Line()
        if self.probe.device.type == "cuda":
            return self.read_at_bandwidth()
        few = max(1, rows // 4)
        return line_through((few, self._step(few)), (max(rows, few + 1), self._step(max(rows, few + 1))))

    @torch.no_grad()
    def _step(self, rows: int) -> float:
        width = self.probe.behind
        products = products_of(self.decoder, keep=rows)
        storage = new_storage(self.decoder, products.dtype, rows, width, 1)
        storage.both.normal_()
        storage.open_column(width, rows)
        x = self._random(rows, self.probe.shape.width, dtype=torch.float32)
        positions = torch.full((rows,), width, device=self.probe.device)

        def work() -> None:
            decode_layers(self.decoder, products, storage, range(1), x, positions, width, width + 1)

        return self._seconds(work)

    def read_at_bandwidth(self) -> Line:
        """On a GPU, where a step is one graph: weights and cache are read once at the memory's bandwidth."""
        rate, s, size = bandwidth(self.probe.device), self.probe.shape, self.probe.numbers.product
        return Line(start=layer_size(s) * size / rate, each=2 * self.probe.behind * s.keys * size / rate)

    # -- output layer ------------------------------------------------------------------------------------------------

    def outputs(self) -> dict[str, Line]:
        """Log-probabilities with and without a gradient, and a sampled token."""
        rows = max(4, self.probe.rows)
        return {
            "loss": self._through(self._loss, 128, 512),
            "logprobs": self._through(self._logprobs, 128, 512),
            "choice": self._through(self._choice, max(1, rows // 4), rows),
        }

    def _through(self, work_of: Callable[[int], Callable[[], Any]], few: int, many: int) -> Line:
        return line_through(*((n, self._seconds(work_of(n))) for n in (few, many)))

    def _tokens(self, count: int) -> tuple[Tensor, Tensor]:
        hidden = self._random(count, self.probe.shape.width, dtype=torch.float32)
        return hidden, torch.randint(self.words, (count,), device=self.probe.device)

    def _loss(self, count: int) -> Callable[[], Any]:
        hidden, targets = self._tokens(count)
        hidden.requires_grad_()
        return lambda: block_logprobs(hidden, targets, self.decoder.embeddings, 1.0)[0].sum().backward()

    def _logprobs(self, count: int) -> Callable[[], Any]:
        hidden, targets = self._tokens(count)
        return lambda: token_statistics(hidden, targets, self.decoder.embeddings, 1.0, gradients=False)

    def _choice(self, rows: int) -> Callable[[], Any]:
        hidden, _ = self._tokens(rows)
        weight = self.decoder.embeddings.to(product_dtype(self.decoder.embeddings))
        noise = torch.rand(rows, device=self.probe.device)

        def work() -> None:
            with torch.no_grad():
                sample_with_statistics(block_logits(hidden, weight), noise, 1.0)

        return work


def bandwidth(device: torch.device) -> float:
    """Bytes a second that are read, by a copy."""
    block = torch.empty(1 << 26, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    return 2 * block.numel() / seconds_of(lambda: target.copy_(block), device)


def adam_seconds(device: torch.device) -> float:
    """Seconds a number for clipping its gradient and one step."""
    weights = [nn.Parameter(torch.zeros(ADAM // 32, device=device)) for _ in range(32)]
    optimizer = torch.optim.AdamW(weights)

    def work() -> None:
        for p in weights:
            p.grad = torch.ones_like(p)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return seconds_of(work, device) / ADAM
