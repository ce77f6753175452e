"""Trained vectors that stand before every row of a role: as embeddings of virtual tokens (prompt tuning, P-tuning), or
as keys and values of every layer (prefix tuning, P-tuning v2).

A model holds the vectors of all its roles in ``lm.soft_prompts`` and may have one of them active. Virtual tokens take
the first positions, before padding too, so that a row's own tokens come behind them in the positions as in the
attention; what comes back are the states of the row's own tokens alone. Knows nothing of files, losses or stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

HOLDER = "soft_prompts"
_ACTIVE = "_active_soft_prompt"


class SoftPrompt(nn.Module):
    """Vectors before a row.

    Args:
        encoder: from numbers (V,) of virtual tokens to their vectors (V, N).
        count: V.
        form: ``embeddings``: N is the base's width; ``keys``: layer by layer keys and values of all heads.
    """

    def __init__(self, encoder: nn.Module, count: int, form: Literal["embeddings", "keys"]) -> None:
        super().__init__()
        self.encoder, self.count, self.form = encoder, count, form

    def vectors(self) -> Tensor:
        """(V, N) in the precision that they are trained in."""
        place = next(self.encoder.parameters()).device
        return self.encoder(torch.arange(self.count, device=place)[None])[0]


def prompts_of(lm: Any) -> Mapping[str, SoftPrompt]:
    """The soft prompts of a model by role."""
    held: Any = lm._modules.get(HOLDER)
    return {} if held is None else dict(held.items())


def add_prompt(lm: Any, role: str, prompt: SoftPrompt) -> None:
    """Give a model the soft prompt of a role."""
    if HOLDER not in lm._modules:
        lm.add_module(HOLDER, nn.ModuleDict())
    getattr(lm, HOLDER)[role] = prompt


def remove_prompt(lm: Any, role: str) -> None:
    """Take the soft prompt of a role from a model."""
    del getattr(lm, HOLDER)[role]


def remove_prompts(lm: Any) -> None:
    """Take all soft prompts from a model."""
    lm._modules.pop(HOLDER, None)
    select_prompt(lm, None)


def select_prompt(lm: Any, role: str | None) -> None:
    """Let passes have a role's soft prompt, or none."""
    setattr(lm, _ACTIVE, role if role in prompts_of(lm) else None)


def active_prompt(lm: Any) -> SoftPrompt | None:
    """The soft prompt that passes have now."""
    role = getattr(lm, _ACTIVE, None)
    return None if role is None else prompts_of(lm)[role]


def before_rows(
    lm: Any, prompt: SoftPrompt, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
) -> tuple[dict[str, Any], int]:
    """What the body of a model is called with, and how many of its first states are no row's own.

    Args:
        lm: the model.
        prompt: stands before the rows.
        ids: (B, L).
        mask: (B, past + L) of the rows' own tokens, those of the past included.
        positions: (B, L) of the tokens in their rows, counted from 0.
        cache: filled in place; None: there is none. An empty one gets the virtual tokens as well.
    """
    count, rows = prompt.count, len(ids)
    begins = cache is None or cache.get_seq_length() == 0
    arguments: dict[str, Any] = {
        "attention_mask": torch.cat([mask.new_ones((rows, count)), mask], dim=1).long(),
        "past_key_values": cache,
        "use_cache": cache is not None,
    }
    if prompt.form == "keys":
        if begins:
            arguments["past_key_values"] = cache = DynamicCache(config=lm.config) if cache is None else cache
            for index, (keys, values) in enumerate(keys_and_values(lm, prompt.vectors())):
                cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return arguments | {"input_ids": ids, "position_ids": positions + count, "use_cache": True}, 0
    if not begins:
        return arguments | {"input_ids": ids, "position_ids": positions + count}, 0
    own = lm.get_input_embeddings()(ids)
    virtual = prompt.vectors().to(own.dtype).expand(rows, -1, -1)
    first = torch.arange(count, device=positions.device).expand(rows, -1)
    arguments["inputs_embeds"] = torch.cat([virtual, own], dim=1)
    return arguments | {"position_ids": torch.cat([first, positions + count], dim=1)}, count


def keys_shape(config: Any) -> tuple[int, int, int]:
    """Layers, key heads and their size, of the text part of a model's config."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, size


def keys_and_values(lm: Any, vectors: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each layer keys and values (1, H', V, d), in the order in which PEFT writes them.

    Args:
        lm: whose layers they are.
        vectors: (V, layers * 2 * H' * d).
    """
    layers, heads, size = keys_shape(lm.config.get_text_config())
    dtype = lm.get_input_embeddings().weight.dtype
    both = vectors.view(len(vectors), layers, 2, heads, size).permute(1, 2, 3, 0, 4).to(dtype)[:, :, None]
    return [(pair[0], pair[1]) for pair in both]
