"""Layers below the lowest adapter, computed once a rollout for all of PPO's roles and epochs."""

from __future__ import annotations

from models.fast_trunk import best_depth, make_trunk
from models.shared_base import SharedBase
from stages.configs import PPOConfig
from stages.rollout import Rollout


def keep_lower_layers(base: SharedBase, rollout: Rollout, config: PPOConfig) -> int:
    """Keep what enters the lowest adapted layer, for every row of a rollout, as ``base.trunk``.

    Roles may have adapters in different layers: the depth is the one that saves most, and a role whose adapter begins
    below it computes all of its layers, as ever. Computed again after an interruption, it has the same bits.

    Returns:
        The number of layers; 0 where there is nothing to keep.
    """
    base.trunk = None
    decoders, passes, often = [], [], 1 + config.epochs
    for name, count in (("policy", often), ("value", often), ("reference", 1), ("reward", 1)):
        if not config.share_lower_layers or name not in base.roles or name in base.copies:
            continue
        with base.role(name) as view:
            decoder = view.decoder()
        if decoder is not None and decoder.trainable():  # a head alone reads the policy's states
            decoders.append(decoder)
            passes.append((decoder.lowest, count))
    depth = best_depth(passes)
    if depth:
        decoder = next(d for d in decoders if d.lowest >= depth)
        rows = [[*q, *r] for q, r in zip(rollout.queries, rollout.responses, strict=True)]
        base.trunk = make_trunk(decoder, rows, depth)
    return depth
