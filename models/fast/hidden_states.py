"""States of chosen positions through a fast decoder, without padding, with or without gradients for its adapter.

What it costs in memory with gradients: about 6 D + 2 I numbers a token and layer, or D where layers are recomputed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.backbone.forward import hidden_states, offloads, recomputes
from models.backbone.logprobs import Packing
from models.backbone.transfers import parked
from models.fast.layers import Saved, backward, embed, forward, rms_backward, rms_norm, start
from models.fast.layout import Layout, layout_of
from models.fast.prefix_cache import PrefixCache, sequences_of
from models.fast.weights import Decoder, can_train, decoder_of


class Below(NamedTuple):
    """Of layer ``depth``: the states (T, D) that enter it, and its ``base_product`` where known, to be written over."""

    depth: int
    states: Tensor
    product: Tensor | None


def states(
    decoder: Decoder,
    ids: Tensor,
    layout: Layout,
    wanted: Tensor | None = None,
    recompute: bool = False,
    below: Below | None = None,
    offload: bool = False,
) -> Tensor:
    """Last hidden states.

    Args:
        ids: (T,) tokens of all rows packed.
        layout: where they stand.
        wanted: flat positions (N,), each once; None for all T.
        recompute: keep only each layer's input for backward.
        below: what enters a layer that no adapter lies below, where it is known; otherwise all layers are computed.
        offload: with ``recompute``: these inputs wait in pinned memory of the host.

    Returns:
        (N, D); with a graph for the adapter's tensors where gradients are enabled and they ask for them.
    """
    parameters = decoder.trainable()
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        return _Body.apply(decoder, ids, layout, wanted, recompute, below, offload, *parameters)
    with torch.no_grad():
        return _through(decoder, ids, layout, wanted, None, recompute, below)


def usable(lm: Any, fast: bool = True) -> Decoder | None:
    """The decoder that ``lm`` now is, where it can do what is asked, a gradient included."""
    decoder = decoder_of(lm) if fast else None
    return None if decoder is None or (torch.is_grad_enabled() and not can_train(decoder)) else decoder


@torch.profiler.record_function("trivet/states")
def fast_states(
    decoder: Decoder | None,
    lm: Any,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    prefix_cache: PrefixCache | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """States (N, D) at flat positions (N,) of right-padded rows (B, L): by ``decoder`` where it can, else by ``lm``.

    ``prefix_cache`` spares layers below all adapters where it has the rows; ``packing`` spares questions to the device.
    """
    if decoder is None or (torch.is_grad_enabled() and not can_train(decoder)):
        return hidden_states(lm, ids, mask).flatten(0, 1)[positions]
    mask = mask.bool()
    layout = layout_of(mask, None if packing is None else packing.cells)
    if layout.cells is not None:  # places among padded cells -> places among tokens
        places = torch.empty(mask.numel(), dtype=torch.long, device=mask.device)
        places[layout.cells] = torch.arange(len(layout.cells), device=mask.device)
        positions = places[positions]
    known = None
    if prefix_cache is not None:
        rows = sequences_of(ids, mask) if packing is None else packing.sequences
        known = prefix_cache.find(decoder, rows)
    below = None if prefix_cache is None or known is None else Below(prefix_cache.depth, *known)
    tokens = ids.flatten() if layout.cells is None else ids.flatten()[layout.cells]
    return states(decoder, tokens, layout, positions, recomputes(lm), below, offloads(lm))


def _through(
    decoder: Decoder,
    ids: Tensor,
    layout: Layout,
    wanted: Tensor | None,
    saved: list[Saved] | None,
    recompute: bool,
    below: Below | None,
    offload: bool = False,
) -> Tensor:
    run, last = start(decoder, layout), len(decoder.layers) - 1
    first, x, product = below or Below(0, embed(decoder, ids), None)
    for index in range(first, len(decoder.layers)):
        chosen = wanted if index == last else None
        save = None
        if saved is not None and index >= decoder.lowest:
            save = Saved(x=parked(x) if recompute and offload else x)
            saved.append(save)
        x = forward(run, index, x, chosen, None if recompute else save, product=product if index == first else None)
    if saved is not None:
        saved.append(Saved(x=x))
    return rms_norm(x, decoder.norm, decoder.epsilon)


class _Body(torch.autograd.Function):
    """All layers at once, so that what is kept, recomputed and left out is ours to say."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        decoder: Decoder,
        ids: Tensor,
        layout: Layout,
        wanted: Tensor | None,
        recompute: bool,
        below: Below | None,
        offload: bool,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.saved_layers = []
        ctx.decoder, ctx.layout, ctx.wanted, ctx.count = decoder, layout, wanted, len(parameters)
        return _through(decoder, ids, layout, wanted, ctx.saved_layers, recompute, below, offload)

    @staticmethod
    @torch.profiler.record_function("trivet/states backward")
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        decoder, saved = ctx.decoder, ctx.saved_layers
        if not saved:
            raise RuntimeError("backward through the same states a second time")
        run, last, lowest = start(decoder, ctx.layout), len(decoder.layers) - 1, decoder.lowest
        x: Tensor | None = rms_backward(gradient, saved.pop().x, decoder.norm, decoder.epsilon)
        found: list[list[Tensor]] = []
        for index in range(last, lowest - 1, -1):
            assert x is not None
            chosen, one = ctx.wanted if index == last else None, saved.pop()
            one.x = one.x.to(x.device, non_blocking=True)
            x, parts = backward(run, index, x, chosen, one, below=index > lowest)
            found.append(parts)
        return (None, None, None, None, None, None, None, *(g for parts in reversed(found) for g in parts))
