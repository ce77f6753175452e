"""One block of a Llama-like decoder on rows packed, forward and, for frozen weights with LoRA, backward.

The states between layers, norms, rotations and gradients of states are at least fp32; products, what they give and
attention are in the precision of ``Products``.

Shapes: T tokens of all rows packed, D hidden size, H heads of size d, B rows, L the longest. Only attention sees
rows: there they are padded on the right, where a causal mask keeps padding out of sight. Knows no modules and no roles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.fast.attention import attend, attend_by_rows, better_by_rows
from models.fast.layout import Layout
from models.fast.products import Products, products_of
from models.fast.weights import Decoder, Layer, Projection

KeepKeys = Callable[[Tensor, Tensor], None]
Angles = Mapping[str | None, tuple[Tensor, Tensor]]  # ``Decoder.angles``


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """``x`` over its root mean square, times ``weight``, in the latter's precision; without a weight ``x`` itself."""
    return x if weight is None else F.rms_norm(x.to(weight.dtype), weight.shape, weight, epsilon)


def rms_backward(gradient: Tensor, x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """d loss / d x of ``rms_norm`` with a frozen weight: r g w - x r^3 mean(g w x), r = 1 / rms."""
    if weight is None:
        return gradient.to(x.dtype)
    x = x.to(weight.dtype)
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    g = gradient * weight
    dot = torch.linalg.vecdot(g, x)[..., None]
    return g.mul_(r).addcmul_(x, r.pow(3).mul_(dot), value=-1.0 / x.shape[-1])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (T, H, d) in the precision of ``cos``; the halves of d are the two coordinates.

    ``sin`` has the sign of what it multiplies (``models.fast.weights.signed``). Where there are fewer angles than
    coordinates, the last coordinates stay as they are.
    """
    size = cos.shape[-1]
    if size < x.shape[-1]:
        return torch.cat([rotate(x[..., :size], cos, sin), x[..., size:].to(cos.dtype)], dim=-1)
    half = size // 2
    out = torch.empty_like(x, dtype=cos.dtype)
    torch.mul(x[..., half:], sin[..., :half], out=out[..., :half])
    torch.mul(x[..., :half], sin[..., half:], out=out[..., half:])
    return out.addcmul_(x, cos)


def head_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of (T, H, d): of each head, or where the weight is as wide as all of them, of all."""
    if len(weight) == x.shape[-1]:
        return rms_norm(x, weight, epsilon)
    return rms_norm(x.flatten(1), weight, epsilon).view(x.shape)


def head_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """d loss / d x of ``head_norm``."""
    if len(weight) == x.shape[-1]:
        return rms_backward(gradient, x, weight, epsilon)
    return rms_backward(gradient.flatten(1), x.flatten(1), weight, epsilon).view(x.shape)


def heads_of(decoder: Decoder, layer: Layer, qkv: Tensor, angles: Angles) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (T, H, d), keys and values (T, H', d) from their common product."""
    heads = qkv.unflatten(1, (-1, decoder.head_size))
    counts = [decoder.heads, decoder.key_heads, decoder.key_heads]
    q, k, v = heads.split(counts, dim=1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = head_norm(q, layer.q_norm, decoder.epsilon), head_norm(k, layer.k_norm, decoder.epsilon)
        if layer.angles is not None:
            q, k = (rotate(x, *angles[layer.angles]) for x in (q, k))
        return q.to(v.dtype), k.to(v.dtype), v
    if layer.angles is not None:  # both at once
        q, k = rotate(heads[:, : sum(counts[:2])], *angles[layer.angles]).to(v.dtype).split(counts[:2], dim=1)
    return q, k, v


def gated(decoder: Decoder, gu: Tensor, wide: Tensor | None = None) -> Tensor:
    """act(gate) * up from their common product (T, 2 I): new, or in the first columns of ``wide``, then returned."""
    gate, up = gu.chunk(2, dim=1)
    if wide is None:
        return activated(decoder, gate).mul_(up)
    torch.mul(activated(decoder, gate), up, out=wide[:, : up.shape[1]])
    return wide


def activated(decoder: Decoder, gate: Tensor) -> Tensor:
    """The activation of a gate (..., F), as the family has it."""
    return F.silu(gate) if decoder.activation == "silu" else F.gelu(gate, approximate="tanh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What every layer of one pass shares."""

    decoder: Decoder
    layout: Layout
    angles: Angles
    products: Products

    def sees(self, layer: Layer, begin: int, end: int) -> Tensor | None:
        """What tokens in columns ``begin`` to ``end`` see of the first ``end`` columns of their row in this layer,
        (end - begin, end) bool, the same in every row; None: all up to themselves, from column 0 on."""
        window = layer.window if layer.window is not None and layer.window < end else None
        if window is None and begin == 0:
            return None
        steps = torch.arange(end, device=self.decoder.norm.device)
        back = steps[begin:, None] - steps
        return back >= 0 if window is None else (back >= 0) & (back < window)

    def attended(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the heads of all rows gather (B, H, L, d); columns that are one prompt's are computed in one row."""
        copies, lengths, width = self.layout.copies, self.layout.lengths, q.shape[2]
        if copies is None or copies.dense == 0:
            return self._attend(q, k, v, self.sees(layer, 0, width), lengths)
        n = copies.dense
        first_q, first_k, first_v = (x[:, :, :n].index_select(0, copies.first) for x in (q, k, v))
        prompts = self._attend(first_q, first_k, first_v, self.sees(layer, 0, n), (n,) * len(copies.first))
        prompts = prompts.new_zeros((len(q), *prompts.shape[1:])).index_copy(0, copies.first, prompts)
        behind = self._attend(q[:, :, n:], k, v, self.sees(layer, n, width), lengths)
        return torch.cat([prompts, behind], dim=2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sees: Tensor | None, lengths: Sequence[int] | None) -> Tensor:
        scale, cap = self.decoder.attention_scale, self.decoder.soft_cap
        if cap is None and lengths is not None and better_by_rows(q):
            return attend_by_rows(q, k, v, sees, scale, lengths)
        return attend(q, k, v, sees, scale, cap)


def added(decoder: Decoder, x: Tensor, part: Tensor, post_norm: Tensor | None) -> Tensor:
    """``x`` with what half a block adds to it."""
    part = rms_norm(part, post_norm, decoder.epsilon)
    return x + part if decoder.residual_scale == 1.0 else x + part.to(x.dtype) * decoder.residual_scale


def added_backward(decoder: Decoder, gradient: Tensor, part: Tensor | None, post_norm: Tensor | None) -> Tensor:
    """Gradient by the part of ``added``, of the gradient by its result; ``part`` is asked for where there is a norm."""
    if decoder.residual_scale != 1.0:
        gradient = gradient * decoder.residual_scale
    return gradient if part is None else rms_backward(gradient, part, post_norm, decoder.epsilon)


def base_product(decoder: Decoder, products: Products, index: int, x: Tensor) -> Tensor | None:
    """What the frozen weights alone make of a layer's input (T, D): its queries, keys and values (T, ...) so far; None
    where that is not to be kept (``Products.base``)."""
    layer = decoder.layers[index]
    return products.base(layer.attention, rms_norm(x, layer.norm, decoder.epsilon))


@dataclass(slots=True, kw_only=True)
class Saved:
    """What backward needs of one layer's forward; ``recompute`` keeps ``x`` alone."""

    x: Tensor  # (T, D) the layer's input
    qkv: Tensor | None = None  # (T, ...) before the head norms, where the layer has such
    grids: tuple[Tensor, Tensor, Tensor] | None = None  # (B, H, L, d) that ask for gradients
    mixed: Tensor | None = None  # (B, H, L, d) attention's result, with its graph
    middle: Tensor | None = None  # (N, D) after attention
    gu: Tensor | None = None  # (N, 2 I)
    attended: Tensor | None = None  # (N, D) what attention gives, where a norm stands behind it
    fed: Tensor | None = None  # (N, D) the same of the rest


def forward(
    run: Pass,
    index: int,
    x: Tensor,
    wanted: Tensor | None,
    save: Saved | None,
    keep: KeepKeys | None = None,
    product: Tensor | None = None,
) -> Tensor:
    """One layer.

    Args:
        x: (T, D).
        wanted: flat positions (N,) whose states are needed afterwards, in the last layer; None for all.
        save: filled for backward.
        keep: is shown the keys and values (T, H', d).
        product: what ``base_product`` gives for ``x``, where it is known; it is written over.

    Returns:
        (T, D), or (N, D).
    """
    a = _attention(run, index, x, save, keep, product)
    if wanted is not None:
        a, x = a[wanted], x[wanted]
    layer = run.decoder.layers[index]
    attended = run.products(index, "output", layer.output, a)
    middle = added(run.decoder, x, attended, layer.post_norm)
    gu = gate_and_up(run.decoder, run.products, index, middle)
    fed = run.products(index, "down", layer.down, gated(run.decoder, gu))
    if save is not None:
        save.middle, save.gu = middle, gu
        save.attended = attended if layer.post_norm is not None else None
        save.fed = fed if layer.second_post_norm is not None else None
    return added(run.decoder, middle, fed, layer.second_post_norm)


def _attention(
    run: Pass, index: int, x: Tensor, save: Saved | None, keep: KeepKeys | None, product: Tensor | None
) -> Tensor:
    """What a layer's heads gather (T, H * d) for its input (T, D)."""
    layer, eps = run.decoder.layers[index], run.decoder.epsilon
    qkv = run.products(index, "attention", layer.attention, rms_norm(x, layer.norm, eps), product)
    heads = heads_of(run.decoder, layer, qkv, run.angles)
    if keep is not None:
        keep(heads[1], heads[2])
    q, k, v = map(run.layout.rows_of, heads)
    if save is not None:
        q, k, v = save.grids = q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_()
        save.qkv = qkv if layer.q_norm is not None else None
    del qkv, heads
    with torch.set_grad_enabled(save is not None):
        mixed = run.attended(layer, q, k, v)
    if save is not None:
        save.mixed = mixed
    return run.layout.flat(mixed.detach())


def gate_and_up(decoder: Decoder, products: Products, index: int, middle: Tensor) -> Tensor:
    """Gate and up (N, 2 I) of a layer, for what stands behind its attention (N, D)."""
    layer = decoder.layers[index]
    return products(index, "gated", layer.gated, rms_norm(middle, layer.second_norm, decoder.epsilon))


def backward(
    run: Pass, index: int, gradient: Tensor, wanted: Tensor | None, saved: Saved, below: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients of one layer, by its input (None unless ``below`` asks for it) and by ``Layer.parameters``."""
    layer, decoder, eps = run.decoder.layers[index], run.decoder, run.decoder.epsilon
    if saved.mixed is None:  # recomputation
        forward(run, index, saved.x, wanted, saved)
    mixed, middle, gu, grids = saved.mixed, saved.middle, saved.gu, saved.grids
    assert mixed is not None and middle is not None and gu is not None and grids is not None
    gate, up = gu.chunk(2, dim=1)
    active = activated(decoder, gate)
    by_fed = added_backward(decoder, gradient, saved.fed, layer.second_post_norm)
    down = lora_gradients(layer.down, active * up, by_fed, run.products.dtype)
    by_h = run.products.transposed(index, "down", layer.down, by_fed)
    by_gu = _gated_backward(decoder, gate, up, active, by_h)
    saved.gu = None
    both = lora_gradients(layer.gated, rms_norm(middle, layer.second_norm, eps), by_gu, run.products.dtype)
    by_normed = run.products.transposed(index, "gated", layer.gated, by_gu)
    del by_gu, gu, gate, up, active
    by_middle = gradient + rms_backward(by_normed, middle, layer.second_norm, eps)
    a = run.layout.flat(mixed.detach())
    by_attended = added_backward(decoder, by_middle, saved.attended, layer.post_norm)
    output = lora_gradients(layer.output, a if wanted is None else a[wanted], by_attended, run.products.dtype)
    by_a = run.products.transposed(index, "output", layer.output, by_attended)
    if wanted is not None:
        by_a = a.new_zeros(a.shape).index_copy_(0, wanted, by_a)
    by_mixed = run.layout.grid(by_a.unflatten(1, (-1, decoder.head_size)))
    by_grids = torch.autograd.grad(mixed, grids, by_mixed)
    by_qkv = _heads_backward(run, layer, saved, by_grids)
    attention = lora_gradients(layer.attention, rms_norm(saved.x, layer.norm, eps), by_qkv, run.products.dtype)
    found = [*attention, *output, *both, *down]
    if not below:
        return None, found
    by_normed = run.products.transposed(index, "attention", layer.attention, by_qkv)
    by_x = rms_backward(by_normed, saved.x, layer.norm, eps)
    return (by_x.add_(by_middle) if wanted is None else by_x.index_add_(0, wanted, by_middle)), found


def _gated_backward(decoder: Decoder, gate: Tensor, up: Tensor, active: Tensor, by_h: Tensor) -> Tensor:
    """(N, 2 I) from ``by_h`` (N, I), which is written over; ``active`` is ``activated(decoder, gate)``."""
    width = gate.shape[1]
    out = by_h.new_empty((len(by_h), 2 * width))
    torch.mul(by_h, active, out=out[:, width:])
    by_active = by_h.mul_(up)
    if decoder.activation == "silu":
        torch.ops.aten.silu_backward.grad_input(by_active, gate, grad_input=out[:, :width])
    else:
        torch.ops.aten.gelu_backward.grad_input(by_active, gate, approximate="tanh", grad_input=out[:, :width])
    return out


def _heads_backward(run: Pass, layer: Layer, saved: Saved, by_grids: Sequence[Tensor]) -> Tensor:
    """Gradient (T, ...) of the common product of q, k, v; a rotation's transpose is the rotation back."""
    size = run.decoder.head_size
    q, k, v = map(run.layout.gathered, by_grids)
    if layer.angles is not None:
        cos, sin = run.angles[layer.angles]
        q, k = (rotate(g.to(cos.dtype), cos, -sin) for g in (q, k))
    if layer.q_norm is not None and layer.k_norm is not None:
        assert saved.qkv is not None
        q_width, k_width = q.shape[1] * size, k.shape[1] * size
        parts = saved.qkv.split([q_width, k_width, k_width], dim=1)
        raw_q, raw_k, _ = (t.unflatten(1, (-1, size)) for t in parts)
        q = head_norm_backward(q, raw_q, layer.q_norm, run.decoder.epsilon)
        k = head_norm_backward(k, raw_k, layer.k_norm, run.decoder.epsilon)
    return torch.cat([q.flatten(1).to(v.dtype), k.flatten(1).to(v.dtype), v.flatten(1)], dim=1)


def lora_gradients(group: Sequence[Projection], x: Tensor, gradient: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """``dA, dB`` of each projection that has an adapter: dB = s g^T (x A^T), dA = s (g B)^T x.

    Args:
        group: projections of one input.
        x: (T, in) that input.
        gradient: (T, sum of out) of their common product.
        dtype: in which to multiply; the result has the adapters' own.
    """
    having = [(p, p.a, p.b) for p in group if p.a is not None and p.b is not None]
    if not having:
        return []
    own = having[0][1].dtype
    x, gradient = x.to(dtype), gradient.to(dtype)
    a = torch.cat([a for _, a, _ in having]).to(dtype)
    inner = (x @ a.T).split([len(a) for _, a, _ in having], dim=1)  # (T, rank) each
    parts = dict(zip(map(id, group), gradient.split([len(p.weight) for p in group], dim=1), strict=True))
    by_b = [(parts[id(p)].T @ u).to(own).mul_(p.scale) for (p, _, _), u in zip(having, inner, strict=True)]
    by_inner = torch.cat([(parts[id(p)] @ b.to(dtype)).mul_(p.scale) for p, _, b in having], dim=1)
    by_a = (by_inner.T @ x).to(own).split([len(a) for _, a, _ in having])
    return [t for pair in zip(by_a, by_b, strict=True) for t in pair]


def embed(decoder: Decoder, ids: Tensor) -> Tensor:
    """What enters the first layer (T, D)."""
    found = F.embedding(ids, decoder.embeddings).to(decoder.norm.dtype)
    return found if decoder.embedding_scale == 1.0 else found * decoder.embedding_scale


def start(decoder: Decoder, layout: Layout, products: Products | None = None) -> Pass:
    """A pass over tokens that stand as ``layout`` says."""
    angles = decoder.angles(layout.positions)
    return Pass(decoder=decoder, layout=layout, angles=angles, products=products or products_of(decoder))
