"""Products of states with a group's weights and its adapters, in the precision that this device multiplies fastest.

With fp32 and fp64 weights the adapter is added into copies of the weights (``MergedProducts``). bf16 weights are
multiplied in bf16 where the device has units for it, and the adapter is a sum of its own: added into a bf16 weight,
most of it would be lost (``UnfoldedProducts``). Elsewhere bf16 weights are widened to fp32 a layer at a time, which is
exact, and the adapter is added into the copies as with fp32 weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbone.bf16_units import has_bf16_units
from models.backbone.four_bits import whole
from models.fast.matmul import linear, pack
from models.fast.weights import Decoder, Projection


class Products(Protocol):
    """What a layer's passes multiply with. Groups are named, and belong to a layer by its index."""

    dtype: torch.dtype  # of keys, values and whatever a product gives

    def __call__(
        self, index: int, name: str, group: Sequence[Projection], x: Tensor, base: Tensor | None = None
    ) -> Tensor:
        """``x (W + s B A)^T + bias`` for all projections of a group, (N, sum of out), of x (N, in); ``base``, where it
        is known, is what ``base`` gave for this x, and is written over."""

    def transposed(self, index: int, name: str, group: Sequence[Projection], gradient: Tensor) -> Tensor:
        """Gradient by the input (N, in), of the gradient (N, sum of out) by what the call gives."""

    def wide(self, index: int, name: str, group: Sequence[Projection], count: int) -> Tensor | None:
        """Room for ``count`` rows of what enters a group of a loop, which it fills the first columns of; None: none."""

    def base(self, group: Sequence[Projection], x: Tensor) -> Tensor | None:
        """The frozen weights' part alone, (N, sum of out), to be kept for several roles; None where it would be rounded
        before an adapter's part is added, and most of a small one lost."""


def products_of(decoder: Decoder, keep: int | None = None) -> Products:
    """What multiplies with this decoder's weights.

    Args:
        keep: rows of a loop that comes back to every layer, for which each layer then keeps what it has made of its
            weights.
    """
    dtype = product_dtype(decoder.embeddings)
    if any(layer.packed for layer in decoder.layers):
        keep = None  # all layers unpacked would be the base that did not fit
    if dtype == torch.bfloat16:
        return UnfoldedProducts(dtype, keep)
    return MergedProducts(dtype, keep)


def product_dtype(weight: Tensor) -> torch.dtype:
    """The precision in which products with a weight like this are made: its own, or fp32 where bf16 is no faster."""
    slow = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not has_bf16_units()
    return torch.float32 if slow else weight.dtype


def repeatable(decoder: Decoder) -> bool:
    """Whether a row's numbers are those of fp32, to rounding, whatever rows are computed beside it. In bf16 a product
    of other rows, or of other blocks of attention, ends in other last places, and layers make more of them."""
    return product_dtype(decoder.embeddings) != torch.bfloat16


class MergedProducts:
    """Weights with the adapter added in, in copies: one buffer a kind of product, written over by the next layer.

    Args:
        dtype: of the copies; at least the weights' own.
        keep: rows of a loop that comes back to every layer; each layer then keeps a copy, packed for so many rows.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, keep: int | None = None) -> None:
        self.dtype, self.keep = dtype, keep
        self._buffers = dict[str, tuple[Tensor, Tensor | None]]()
        self._kept: dict[tuple[int, str], tuple[Tensor, Tensor | None]] = {}

    def __call__(
        self, index: int, name: str, group: Sequence[Projection], x: Tensor, base: Tensor | None = None
    ) -> Tensor:
        if base is None:
            return linear(x, *self.weights(index, name, group))
        for p, part in zip(group, base.split([len(p.weight) for p in group], dim=1), strict=True):
            if p.a is not None and p.b is not None:
                part.addmm_(x @ p.a.T, p.b.T, alpha=p.scale)
        return base

    def transposed(self, index: int, name: str, group: Sequence[Projection], gradient: Tensor) -> Tensor:
        """Gradient by the input (N, in), of the gradient (N, sum of out) by what the call gives."""
        return linear(gradient, self.weights(index, name, group)[0].T)

    def wide(self, index: int, name: str, group: Sequence[Projection], count: int) -> Tensor | None:
        """None: a group takes what enters it as it is."""
        return None

    def base(self, group: Sequence[Projection], x: Tensor) -> Tensor:
        """The frozen weights' part alone, (N, sum of out), of x (N, in)."""
        own = [(whole(p.weight).to(self.dtype), None if p.bias is None else p.bias.to(self.dtype)) for p in group]
        return torch.cat([F.linear(x, weight, bias) for weight, bias in own], dim=1)

    def weights(self, index: int, name: str, group: Sequence[Projection]) -> tuple[Tensor, Tensor | None]:
        """``(weight, bias)`` of a group's one product."""
        first = group[0].weight
        if len(group) == 1 and group[0].a is None and isinstance(first, Tensor) and first.dtype == self.dtype:
            return first, group[0].bias
        if (index, name) in self._kept:
            return self._kept[index, name]
        weight, bias = self._buffer(name, group)
        _merge(group, weight, bias)
        if self.keep is None:
            return weight, bias
        self._kept[index, name] = self._packed(name, self.keep)
        return self._kept[index, name]

    def _buffer(self, name: str, group: Sequence[Projection]) -> tuple[Tensor, Tensor | None]:
        if name not in self._buffers:
            first, rows = group[0].weight, sum(len(p.weight) for p in group)
            kind = {"dtype": self.dtype, "device": first.device}
            bias = None if all(p.bias is None for p in group) else torch.zeros(rows, **kind)  # type: ignore[call-overload]
            self._buffers[name] = (torch.empty((rows, first.shape[1]), **kind), bias)  # type: ignore[call-overload]
        return self._buffers[name]

    def _packed(self, name: str, rows: int) -> tuple[Tensor, Tensor | None]:
        """What stands in a buffer, as a loop over ``rows`` rows reads it best."""
        weight, bias = self._buffers[name]
        packed = pack(weight, rows)  # a copy, or where that saves nothing the buffer itself
        if packed is weight:
            del self._buffers[name]
        return packed, bias if bias is None else bias.clone()


@torch.no_grad()
def _merge(group: Sequence[Projection], weight: Tensor, bias: Tensor | None) -> None:
    """Write a group's weights with their adapters, and their biases, into one weight and bias."""
    start = 0
    for p in group:
        part, own = slice(start, start + len(p.weight)), whole(p.weight)
        if p.a is None or p.b is None:
            weight[part] = own
        elif own.dtype == weight.dtype:
            torch.addmm(own, p.b, p.a, alpha=p.scale, out=weight[part])
        else:
            weight[part] = own
            weight[part].addmm_(p.b, p.a, alpha=p.scale)
        if bias is not None:
            bias[part] = 0.0 if p.bias is None else p.bias
        start += len(p.weight)


class UnfoldedProducts:
    """Frozen weights as they are, and adapters as two thin products of their own: ``x W^T + (x A^T) (s B)^T``.

    Sums are made in fp32 by the products' kernels; what they give is rounded to ``dtype``.

    Args:
        dtype: of the weights.
        keep: rows of a loop that comes back to every layer: a group's weights are kept in one copy, packed for so many
            rows, for two products.
    """

    def __init__(self, dtype: torch.dtype, keep: int | None = None) -> None:
        self.dtype, self.keep = dtype, keep
        self._kept: dict[tuple[int, str], Joined] = {}

    def __call__(
        self, index: int, name: str, group: Sequence[Projection], x: Tensor, base: Tensor | None = None
    ) -> Tensor:
        x = x.to(self.dtype)
        if self.keep is not None:
            return self._joined(index, name, group, self.keep)(x)
        if any(p.a is not None for p in group):
            return Joined.of(group, self.dtype)(x)
        parts = [F.linear(x, whole(p.weight), p.bias) for p in group]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def transposed(self, index: int, name: str, group: Sequence[Projection], gradient: Tensor) -> Tensor:
        """``[g, g s B] [W; A]``: one product as well, whose sum is rounded once."""
        gradient, weights = gradient.to(self.dtype), [whole(p.weight) for p in group]
        if (thin := _thin(group, self.dtype)) is not None:
            gradient, weights = torch.cat([gradient, gradient @ thin[1]], dim=1), [*weights, thin[0]]
        return gradient @ (weights[0] if len(weights) == 1 else torch.cat(weights))

    def base(self, group: Sequence[Projection], x: Tensor) -> None:
        """None: what a small adapter adds would be lost in the rounded sum."""
        return None

    def wide(self, index: int, name: str, group: Sequence[Projection], count: int) -> Tensor | None:
        """Room (count, in + R) for what enters a group of a loop, in the first columns, so that it is not copied to
        stand beside ``x A^T``; None: the group takes it as it is."""
        a = None if self.keep is None else self._joined(index, name, group, self.keep).a
        return None if a is None else a.new_empty((count, a.shape[1] + len(a)))

    def _joined(self, index: int, name: str, group: Sequence[Projection], rows: int) -> Joined:
        if (index, name) not in self._kept:
            self._kept[index, name] = Joined.of(group, self.dtype, rows)
        return self._kept[index, name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A group as one product ``[x, x A^T] [W, s B]^T``, whose sum is rounded once.

    Were the frozen weights' part rounded first, whatever an adapter adds of less than half a last place would be lost,
    which is most of it in the first steps of training.
    """

    weight: Tensor  # (sum of out, in + R), or packed
    bias: Tensor | None  # (sum of out,)
    a: Tensor | None  # (R, in)

    @classmethod
    @torch.no_grad()
    def of(cls, group: Sequence[Projection], dtype: torch.dtype, rows: int | None = None) -> Joined:
        """A group's product; where ``rows`` are given, as a loop over so many rows reads it best."""
        thin, weights = _thin(group, dtype), [whole(p.weight) for p in group]
        if thin is None and len(group) == 1:
            return cls(weight=weights[0], bias=group[0].bias, a=None)
        bias = None
        if any(p.bias is not None for p in group):
            bias = torch.cat([weights[0].new_zeros(len(p.weight)) if p.bias is None else p.bias for p in group])
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        if thin is not None:
            weight = torch.cat([weight, thin[1]], dim=1)
        weight = weight if rows is None else pack(weight, rows)
        return cls(weight=weight, bias=bias, a=None if thin is None else thin[0])

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (T, in), or what ``UnfoldedProducts.wide`` made room for."""
        if self.a is not None:
            inner = self.a.shape[1]
            if x.shape[1] == inner:
                x = torch.cat([x, F.linear(x, self.a)], dim=1)
            else:
                torch.mm(x[:, :inner], self.a.T, out=x[:, inner:])
        return linear(x, self.weight, self.bias)


@torch.no_grad()
def _thin(group: Sequence[Projection], dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """A (R, in) of a group's adapters one below the other, and s B (sum of out, R) along a diagonal; None: none."""
    having = [(p.a, p.b, p.scale) for p in group if p.a is not None and p.b is not None]
    if not having:
        return None
    a = torch.cat([a for a, _, _ in having]).to(dtype)
    b = a.new_zeros((sum(len(p.weight) for p in group), len(a)))
    row = column = 0
    for p in group:
        if p.a is not None and p.b is not None:
            torch.mul(p.b, p.scale, out=(part := torch.empty_like(p.b)))
            b[row : row + len(p.b), column : column + len(p.a)] = part
            column += len(p.a)
        row += len(p.weight)
    return a, b
