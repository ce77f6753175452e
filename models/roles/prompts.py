"""Roles that are tuned by virtual tokens: how they begin, what they are in a file, and what a copy of one is.

PEFT's files hold the vectors alone, since the encoder of P-tuning is only there to train them (Liu et al. 2021). A role
that is read from a file, or copied, has the vectors themselves as its numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig, PrefixTuningConfig, PromptEncoder, PromptEncoderConfig, PromptTuningConfig
from torch import Tensor, nn
from transformers import DynamicCache

from data.common.errors import UserError
from data.tokens import special_ids
from models.backbone.forward import body_of, hidden_states, precision, takes_positions
from models.backbone.settings import AdapterConfig
from models.backbone.soft_prompts import SoftPrompt, keys_shape

STORED = "prompt_embeddings"  # PEFT's name of the vectors in a file
KINDS = {"PROMPT_TUNING": "prompt_tuning", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix_tuning"}
"""PEFT's types by the name of the method."""


class Vectors(nn.Module):
    """Vectors (V, N) that are trained as they are."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(vectors), vectors.shape[1], _weight=vectors.detach().clone().float())

    def forward(self, numbers: Tensor) -> Tensor:
        """(1, V, N) of the virtual tokens (1, V)."""
        return self.embedding(numbers)


def prompt_config(lm: Any, adapter: AdapterConfig) -> PeftConfig:
    """PEFT's configuration of these settings.

    Args:
        lm: the base, perhaps without weights.
        adapter: the settings.

    Raises:
        UserError: virtual tokens cannot stand before rows of this architecture.
    """
    config = lm.config.get_text_config()
    check_places(lm, adapter.method)
    layers, heads, size = keys_shape(config)
    past = adapter.method == "prefix_tuning"
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": adapter.virtual_tokens,
        "num_transformer_submodules": 1,
        "num_layers": layers,
        "num_attention_heads": heads if past else config.num_attention_heads,
        "token_dim": heads * size if past else config.hidden_size,
    }
    if past:
        return PrefixTuningConfig(**settings, encoder_hidden_size=heads * size)
    if adapter.method == "prompt_tuning":
        return PromptTuningConfig(**settings)
    kind, width = adapter.encoder.upper(), adapter.encoder_width or config.hidden_size
    return PromptEncoderConfig(**settings, encoder_reparameterization_type=kind, encoder_hidden_size=width)


def check_places(lm: Any, method: str) -> None:
    """Refuse an architecture whose layers are not all attention over keys and values of one shape.

    Raises:
        UserError: names what is in the way.
    """
    config, body = lm.config.get_text_config(), body_of(lm)
    if not takes_positions(body):
        raise UserError(
            f"adapter.method: '{method}' shifts positions, and the code of '{config.model_type}' takes none: use 'lora'"
        )
    kinds = {*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"}
    if kinds:
        raise UserError(
            f"adapter.method: '{method}' has virtual tokens before padding, and '{config.model_type}' has layers that "
            f"are not attention to all of a row or its end ({', '.join(sorted(kinds))}): use 'lora'"
        )


@torch.no_grad()
def check_padding(lm: Any, base_name: str) -> None:
    """Refuse a base on whose states padding between the virtual tokens, which are active, and a row has an effect, such
    as one that keeps a recurrent state.

    Raises:
        UserError: names the base.
    """
    ids = torch.arange(1, 4, device=lm.device)[None] % lm.get_input_embeddings().weight.shape[0]
    mask = torch.ones_like(ids, dtype=torch.bool)
    plain = hidden_states(lm, ids, mask)
    padded = hidden_states(lm, torch.cat([ids, ids], 1), torch.cat([~mask, mask], 1))[:, ids.shape[1] :]
    tolerance = 1e-3 if plain.dtype == torch.float32 else 5e-2
    if not torch.allclose(padded, plain, atol=tolerance * max(1.0, plain.abs().max().item()), rtol=0):
        raise UserError(
            f"adapter.method: on base {base_name} padding between virtual tokens and a row changes the row's states "
            f"('{lm.config.model_type}' has layers that are not attention): use 'lora'"
        )


@torch.no_grad()
def fresh_prompt(lm: Any, tokenizer: Any, config: PeftConfig) -> SoftPrompt:
    """How a role begins: with P-tuning an encoder; otherwise with what the base makes of as many ordinary tokens of its
    vocabulary, so that it responds as if they stood before the row (Lester et al. 2021; Li and Liang 2021).

    Raises:
        UserError: the layers keep other keys and values than those that are given to them.
    """
    count = config.num_virtual_tokens  # type: ignore[attr-defined]
    if isinstance(config, PromptEncoderConfig):
        return SoftPrompt(PromptEncoder(config).to(lm.device), count, "embeddings")
    rows = min(len(tokenizer), lm.get_input_embeddings().weight.shape[0])
    special = special_ids(tokenizer)
    ordinary = torch.tensor([i for i in range(rows) if i not in special] or list(range(rows)))
    ids = ordinary[torch.randint(len(ordinary), (count,))].to(lm.device)
    if isinstance(config, PrefixTuningConfig):
        return SoftPrompt(Vectors(_as_vectors(lm, ids)), count, "keys")
    return SoftPrompt(Vectors(lm.get_input_embeddings()(ids)), count, "embeddings")


def _as_vectors(lm: Any, ids: Tensor) -> Tensor:
    """Keys and values (V, layers * 2 * H' * d) of tokens (V,) that stand at the beginning of a text."""
    cache, (layers, heads, size) = DynamicCache(config=lm.config), keys_shape(lm.config.get_text_config())
    with precision(lm):
        body_of(lm)(input_ids=ids[None], past_key_values=cache, use_cache=True)
    found: list[Any] = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values")]
    wanted = (1, heads, len(ids), size)
    if len(found) != 2 * layers or any(part is None or part.shape != wanted for part in found):
        raise UserError(
            f"adapter.method: 'prefix_tuning' gives every layer {len(ids)} keys and values of {heads} heads of {size}, "
            f"and a layer of '{lm.config.model_type}' keeps others: use fewer adapter.virtual_tokens than its window, "
            "or 'prompt_tuning'"
        )
    return torch.stack([part[0] for part in found]).permute(2, 0, 1, 3).reshape(len(ids), -1)


def stored_prompt(lm: Any, config: PeftConfig, vectors: Tensor) -> SoftPrompt:
    """The soft prompt of a file or of another role."""
    form = "keys" if isinstance(config, PrefixTuningConfig) else "embeddings"
    return SoftPrompt(Vectors(vectors).to(lm.device), len(vectors), form)  # type: ignore[arg-type]


def check_stored_prompt(lm: Any, base_name: str, config: Any, tensors: dict[str, Tensor], source: str) -> None:
    """Compare a stored soft prompt with the base that it is to stand before.

    Raises:
        UserError: it is of another width, or the base cannot have one.
    """
    check_places(lm, method_of_prompt(config) or "")
    text = lm.config.get_text_config()
    layers, heads, size = keys_shape(text)
    width = layers * 2 * heads * size if isinstance(config, PrefixTuningConfig) else text.hidden_size
    wanted, found = (config.num_virtual_tokens, width), tuple(tensors[STORED].shape)
    if found != wanted:
        raise UserError(
            f"{source}: the adapter does not fit base {base_name} (its vectors are {' x '.join(map(str, found))}, the "
            f"base's are {' x '.join(map(str, wanted))})"
        )


def method_of_prompt(config: PeftConfig) -> str | None:
    """The method of a soft prompt, by its configuration; None of any other adapter."""
    return KINDS.get(str(getattr(config.peft_type, "value", config.peft_type)))


def prompt_differences(asked: AdapterConfig, there: Any, role: str) -> str:
    """In which settings the soft prompt of a role is not as asked; empty where it is."""
    rows = (
        ("method", asked.method, method_of_prompt(there)),
        *((("virtual_tokens", asked.virtual_tokens, there.num_virtual_tokens),) if asked.tuning.virtual else ()),
    )
    return "; ".join(
        f"{word}: {ours} is asked for, '{role}' has {theirs}" for word, ours, theirs in rows if ours != theirs
    )


def numbers_of(lm: Any, adapter: AdapterConfig) -> int:
    """How many numbers a fresh role trains, on a base perhaps without weights."""
    config: Any = prompt_config(lm, adapter)
    if isinstance(config, PromptEncoderConfig):
        return sum(p.numel() for p in PromptEncoder(config).parameters())
    width, layers = int(config.token_dim), int(config.num_layers)
    return int(config.num_virtual_tokens) * width * (2 * layers if adapter.tuning.past else 1)
