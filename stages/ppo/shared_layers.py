"""Layers below the lowest adapter, computed once a rollout for all of PPO's roles and epochs - by the sampler already,
where it runs the same arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.fast.prefix_cache import best_depth, make_prefix_cache, prefix_states_of
from models.fast.weights import Decoder
from models.roles.shared_base import SharedBase
from stages.ppo.rollout import Rollout
from stages.settings import PPOConfig

COMPARED = 2  # rows of each rollout whose states are computed again before the sampler's are used
TOLERANCE = 1e-4  # largest difference, by the largest of the states


def shared_depth(base: SharedBase, config: PPOConfig) -> tuple[int, Decoder | None]:
    """How many layers PPO's roles have in common, and a decoder whose adapter begins no lower; 0 for nothing.

    Roles may have adapters in different layers: the depth is the one that saves most, and a role whose adapter begins
    below it computes all of its layers, as usual.
    """
    decoders, passes, often = [], [], 1 + config.epochs
    for name, count in (("policy", often), ("value", often), ("reference", 1), ("reward", 1)):
        if not config.share_prefix_layers or name not in base.roles or name in base.copies:
            continue
        with base.role(name) as view:
            decoder = view.decoder()
        if decoder is not None and decoder.trainable():  # a head alone reads the policy's states
            decoders.append(decoder)
            passes.append((decoder.lowest, count))
    depth = best_depth(passes)
    return depth, next((d for d in decoders if d.lowest >= depth), None) if depth else None


def keep_prefix_states(
    base: SharedBase, rollout: Rollout, config: PPOConfig, warn: Callable[[str], None] = lambda text: None
) -> int:
    """Keep what enters the lowest adapted layer, for every row of a rollout, as ``base.trunk``.

    The sampler's states are compared with those of a plain pass on some rows, and forgotten where they differ.
    Nothing is decided here that an interruption would forget: made again, all of it has the same bits.

    Returns:
        The number of layers; 0 where there is nothing to keep.
    """
    base.prefix_cache = None
    depth, decoder = shared_depth(base, config)
    if decoder is None:
        rollout.prefix_states = None
        return 0
    rows = [[*q, *r] for q, r in zip(rollout.queries, rollout.responses, strict=True)]
    if rollout.prefix_states is not None and (far := furthest(decoder, rows, depth, rollout.prefix_states)) > TOLERANCE:
        rollout.prefix_states = None
        warn(
            f"the sampler's states below the adapters differ from those of a plain pass (by {far:.1g} of the largest); "
            "they are computed again"
        )
    base.prefix_cache = make_prefix_cache(decoder, rows, depth, rollout.prefix_states)
    return depth


@torch.no_grad()
def furthest(decoder: Decoder, rows: Sequence[Sequence[int]], depth: int, states: Tensor) -> float:
    """How far given states (T, D) of the longest rows are from computed ones, by the largest of these; NaN is inf."""
    longest = sorted(range(len(rows)), key=lambda i: -len(rows[i]))[:COMPARED]
    parts = states.split([len(row) for row in rows])
    expected = prefix_states_of(decoder, [rows[i] for i in longest], depth)
    found = (torch.cat([parts[i] for i in longest]) - expected).abs().max() / expected.abs().max()
    return float(found.nan_to_num(nan=torch.inf))
