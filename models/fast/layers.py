"""One block of a Llama-like decoder on rows packed, forward and, for frozen weights with LoRA, backward.

The states between layers, norms, rotations and gradients of states are at least fp32; products, what they give and
attention are in the precision of ``Products``.

Shapes: T tokens of all rows packed, D hidden size, H heads of size d, B rows, L the longest. Only attention sees
rows: there they are padded on the right, where a causal mask keeps padding out of sight. Knows no modules and no roles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.fast.products import Products, products_of
from models.fast.weights import Decoder, Layer, Projection

KeepKeys = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where each token stands."""

    positions: Tensor  # (T,) for the rotary embedding
    cells: Tensor | None  # (T,) place in the (B * L) grid of attention; None: rows are of one length
    shape: tuple[int, int]  # B, L
    sees: Tensor | None = None  # (B, 1, L, L) bool; None: every token sees its row up to itself

    def grid(self, x: Tensor) -> Tensor:
        """(T, H, d) -> (B, H, L, d), zero where there is no token."""
        if self.cells is not None:
            x = x.new_zeros((self.shape[0] * self.shape[1], *x.shape[1:])).index_copy_(0, self.cells, x)
        return x.view(*self.shape, *x.shape[1:]).transpose(1, 2)

    def flat(self, x: Tensor) -> Tensor:
        """(B, H, L, d) -> (T, H * d)."""
        x = x.transpose(1, 2).reshape(self.shape[0] * self.shape[1], -1)
        return x if self.cells is None else x[self.cells]


def layout_of(mask: Tensor) -> Layout:
    """Rows padded on the right: ``mask`` (B, L) True = real."""
    rows, width = mask.shape
    steps = torch.arange(width, device=mask.device).expand(rows, width)
    if bool(mask.all()):
        return Layout(positions=steps.reshape(-1), cells=None, shape=(rows, width))
    return Layout(positions=steps[mask], cells=mask.flatten().nonzero().squeeze(1), shape=(rows, width))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, epsilon)


def rms_backward(gradient: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """d loss / d x of ``rms_norm`` with a frozen weight: r g w - x r^3 mean(g w x), r = 1 / rms."""
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    g = gradient * weight
    dot = torch.linalg.vecdot(g, x)[..., None]
    return g.mul_(r).addcmul_(x, r.pow(3).mul_(dot), value=-1.0 / x.shape[-1])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (T, H, d) in the precision of ``cos``; the halves of d are the two coordinates.

    ``sin`` has the sign of what it multiplies: its first half is negative (``signed``).
    """
    half = x.shape[-1] // 2
    out = torch.empty_like(x, dtype=cos.dtype)
    torch.mul(x[..., half:], sin[..., :half], out=out[..., :half])
    torch.mul(x[..., :half], sin[..., half:], out=out[..., half:])
    return out.addcmul_(x, cos)


def signed(sin: Tensor) -> Tensor:
    """Sines as ``rotate`` takes them."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def heads_of(decoder: Decoder, layer: Layer, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (T, H, d), keys and values (T, H', d) from their common product."""
    heads = qkv.unflatten(1, (-1, decoder.head_size))
    counts = [decoder.heads, decoder.key_heads, decoder.key_heads]
    q, k, v = heads.split(counts, dim=1)
    if layer.q_norm is None or layer.k_norm is None:
        q, k = rotate(heads[:, : sum(counts[:2])], cos, sin).to(v.dtype).split(counts[:2], dim=1)
        return q, k, v
    q = rms_norm(q.to(cos.dtype), layer.q_norm, decoder.epsilon)
    k = rms_norm(k.to(cos.dtype), layer.k_norm, decoder.epsilon)
    return rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype), v


def attend(q: Tensor, k: Tensor, v: Tensor, sees: Tensor | None) -> Tensor:
    """(B, H, L, d); fewer key heads than query heads are shared by groups."""
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=sees, is_causal=sees is None, enable_gqa=q.shape[1] != k.shape[1]
    )


def gated(gu: Tensor) -> Tensor:
    """silu(gate) * up from their common product (T, 2 I)."""
    gate, up = gu.chunk(2, dim=1)
    return F.silu(gate).mul_(up)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What every layer of one pass shares."""

    decoder: Decoder
    layout: Layout
    cos: Tensor
    sin: Tensor  # ``signed``
    products: Products


def base_product(decoder: Decoder, products: Products, index: int, x: Tensor) -> Tensor:
    """What the frozen weights alone make of a layer's input (T, D): its queries, keys and values (T, ...) so far."""
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
    middle = x + run.products(index, "output", layer.output, a)
    gu = gate_and_up(run.decoder, run.products, index, middle)
    if save is not None:
        save.middle, save.gu = middle, gu
    return middle + run.products(index, "down", layer.down, gated(gu))


def _attention(
    run: Pass, index: int, x: Tensor, save: Saved | None, keep: KeepKeys | None, product: Tensor | None
) -> Tensor:
    """What a layer's heads gather (T, H * d) for its input (T, D)."""
    layer, eps = run.decoder.layers[index], run.decoder.epsilon
    if product is None:
        qkv = run.products(index, "attention", layer.attention, rms_norm(x, layer.norm, eps))
    else:
        qkv = run.products.add_adapters(product, layer.attention, rms_norm(x, layer.norm, eps))
    heads = heads_of(run.decoder, layer, qkv, run.cos, run.sin)
    if keep is not None:
        keep(heads[1], heads[2])
    q, k, v = map(run.layout.grid, heads)
    if save is not None:
        q, k, v = save.grids = q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_()
        save.qkv = qkv if layer.q_norm is not None else None
    del qkv, heads
    with torch.set_grad_enabled(save is not None):
        mixed = attend(q, k, v, run.layout.sees)
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
    active = F.silu(gate)
    down = lora_gradients(layer.down, active * up, gradient, run.products.dtype)
    by_gu = _gated_backward(gate, up, active, run.products.transposed(index, "down", layer.down, gradient))
    saved.gu = None
    both = lora_gradients(layer.gated, rms_norm(middle, layer.second_norm, eps), by_gu, run.products.dtype)
    by_normed = run.products.transposed(index, "gated", layer.gated, by_gu)
    del by_gu, gu, gate, up, active
    by_middle = gradient + rms_backward(by_normed, middle, layer.second_norm, eps)
    a = run.layout.flat(mixed.detach())
    output = lora_gradients(layer.output, a if wanted is None else a[wanted], by_middle, run.products.dtype)
    by_a = run.products.transposed(index, "output", layer.output, by_middle)
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


def _gated_backward(gate: Tensor, up: Tensor, active: Tensor, by_h: Tensor) -> Tensor:
    """(N, 2 I) from ``by_h`` (N, I), which is written over; ``active`` is silu(gate)."""
    width = gate.shape[1]
    out = by_h.new_empty((len(by_h), 2 * width))
    torch.mul(by_h, active, out=out[:, width:])
    out[:, :width] = torch.ops.aten.silu_backward(by_h.mul_(up), gate)
    return out


def _heads_backward(run: Pass, layer: Layer, saved: Saved, by_grids: Sequence[Tensor]) -> Tensor:
    """Gradient (T, ...) of the common product of q, k, v; a rotation's transpose is the rotation back."""
    size = run.decoder.head_size
    q, k, v = (run.layout.flat(g).unflatten(1, (-1, size)) for g in by_grids)
    q, k = (rotate(g.to(run.cos.dtype), run.cos, -run.sin) for g in (q, k))
    if layer.q_norm is not None and layer.k_norm is not None:
        assert saved.qkv is not None
        q_width, k_width = q.shape[1] * size, k.shape[1] * size
        parts = saved.qkv.split([q_width, k_width, k_width], dim=1)
        raw_q, raw_k, _ = (t.unflatten(1, (-1, size)).to(run.cos.dtype) for t in parts)
        q = rms_backward(q, raw_q, layer.q_norm, run.decoder.epsilon)
        k = rms_backward(k, raw_k, layer.k_norm, run.decoder.epsilon)
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
    return F.embedding(ids, decoder.embeddings).to(decoder.norm.dtype)


def start(decoder: Decoder, layout: Layout, products: Products | None = None) -> Pass:
    """A pass over tokens that stand as ``layout`` says."""
    cos, sin = decoder.angles(layout.positions)
    return Pass(decoder=decoder, layout=layout, cos=cos, sin=signed(sin), products=products or products_of(decoder))
