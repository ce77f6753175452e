"""One response, token by token, as it is sampled: for people who watch. It knows nothing of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache

from models.roles.role_view import RoleView
from models.sampling.generate import Ends, SamplingParams, sample_tokens


@torch.no_grad()
def stream(
    role: RoleView,
    prompt: Sequence[int],
    *,
    params: SamplingParams,
    generator: torch.Generator,
) -> Iterator[int]:
    """Yield sampled ids, the one that ends the response last; the same noise as ``CachedEngine`` takes for one row.

    Args:
        role: an entered role; it must stay entered until the last id.
        prompt: ids, not empty.
        params: how it is sampled; temperature 0 is greedy.
        generator: one uniform number a token comes from it.
    """
    device, cache = role.lm.device, DynamicCache(config=role.lm.config)
    ends = Ends(params, 1, device)
    ids = torch.tensor([list(prompt)], device=device)
    mask = torch.ones_like(ids)
    for _ in range(params.max_new_tokens):
        hidden = role.hidden(ids, mask, cache=cache)[:, -1]
        noise = None if params.temperature == 0 else torch.rand((1,), generator=generator, dtype=torch.float64)
        token = sample_tokens(role.logits(hidden), noise, params.temperature or 1.0)
        yield int(token)
        if ends(token).item():
            return
        ids, mask = token[:, None], torch.cat([mask, mask.new_ones((1, 1))], dim=1)
