"""The engine for Llama-like decoders: the same noise, hence the same tokens, as ``CachedEngine``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.fast.products import repeatable
from models.roles.role_view import RoleView
from models.sampling.decoding import Decoding
from models.sampling.device_steps import DeviceDecoding
from models.sampling.generate import CachedEngine, Generated, SamplingParams


class FastEngine:
    """``CachedEngine``'s twin over the weights themselves; whatever is no such decoder goes to ``CachedEngine``.

    Args:
        with_logprobs: give log-probabilities and entropies too.
        depth: where the role has no adapter below this layer, give what enters it too, for every token; 0: nothing.
            Nothing either where a pass over other rows would not give the same (bf16 products).
    """

    def __init__(self, with_logprobs: bool = False, depth: int = 0) -> None:
        self.with_logprobs, self.depth, self.plain = with_logprobs, depth, CachedEngine(with_logprobs)

    @torch.no_grad()
    def __call__(
        self,
        role: RoleView,
        prompts: Sequence[Sequence[int]],
        *,
        params: SamplingParams,
        noise: Tensor | None,
    ) -> Generated:
        """Continue ``prompts``; see ``CachedEngine``."""
        decoder = role.decoder()
        if decoder is None:
            return self.plain(role, prompts, params=params, noise=noise)
        depth = self.depth if self.depth <= decoder.lowest and repeatable(decoder) else 0
        loop = Decoding if role.lm.device.type == "cpu" else DeviceDecoding
        return loop(role, decoder, prompts, params, depth, self.with_logprobs).run(noise)
