"""One way through a causal LM for every family: body -> last hidden states -> logits, each on its own.

Keeping the two separate is what lets every stage compute logits at response positions only. Knows nothing of adapters.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from data.common.errors import UserError
from models.backbone.encoders import is_encoder
from models.backbone.sharding import shards_of
from models.backbone.soft_prompts import active_prompt, before_rows


def body_of(lm: Any) -> nn.Module:
    """The transformer without its output layer."""
    body = lm.base_model
    return body if body is not lm else lm.model  # a class whose prefix names no part of it


def full_copy(lm: Any, base_dtype: torch.dtype, keep: bool = False) -> Any:
    """A model as a role with weights of its own: frozen fp32 weights, products in bf16 where the base is bf16.

    Steps of an optimizer are mostly smaller than the last place of a bf16 weight, and would be lost in it. An fp16
    base's copies compute in fp32: without a scaled loss, fp16 gradients vanish. ``keep``: every tensor has the dtype
    that it is to have, since some are the base's own.
    """
    if not keep:
        lm = lm.to(torch.promote_types(lm.dtype, torch.float32))
    lm = lm.eval().requires_grad_(False)
    lm.compute_dtype = torch.bfloat16 if base_dtype == torch.bfloat16 else None
    return lm


@contextlib.contextmanager
def precision(lm: Any) -> Iterator[None]:
    """The arithmetic of a model whose weights are kept in a higher precision than it computes in.

    A fully fine-tuned copy keeps fp32 weights; where the base is bf16, ``lm.compute_dtype`` says so and its products
    are made in bf16. Entered for one forward pass at a time: autocast keeps its casts of weights until it is left, and
    an optimizer's step in between would go unseen.
    """
    dtype = getattr(lm, "compute_dtype", None)
    with contextlib.nullcontext() if dtype is None else torch.autocast(lm.device.type, dtype=dtype):
        yield


def hidden_states(lm: Any, ids: Tensor, mask: Tensor, position_ids: Tensor | None = None, cache: Any = None) -> Tensor:
    """Last hidden states (B, L, D).

    Args:
        lm: a Transformers causal LM, adapters already selected.
        ids: (B, L) token ids.
        mask: (B, past + L) bool or int, True = real. Carried with the data, never guessed from ids.
        position_ids: (B, L); by default counted from the mask, which absolute-position models need under left padding.
        cache: a Transformers cache, filled in place.
    """
    body = body_of(lm)
    # what pads is never looked up: a tokenizer's padding id may lie outside the embeddings
    ids = ids.masked_fill(mask[:, -ids.shape[1] :] == 0, 0)
    if position_ids is None:
        position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    extra = {"position_ids": position_ids} if takes_positions(body) else {}
    kept = {"past_key_values": cache, "use_cache": cache is not None}
    if is_encoder(lm):  # counts positions by itself, each family in its way
        extra, kept = {}, {}
    with precision(lm), kept_for_backward(lm):
        if (prompt := active_prompt(lm)) is not None:
            arguments, count = before_rows(lm, prompt, ids, mask, position_ids, cache)
            return body(**arguments).last_hidden_state[:, count:]
        out = body(input_ids=ids, attention_mask=mask.long(), **kept, **extra)
    return out.last_hidden_state


def takes_positions(body: nn.Module) -> bool:
    """Whether the body of a model can be called with positions."""
    return "position_ids" in inspect.signature(body.forward).parameters


def logits_of(lm: Any, hidden: Tensor) -> Tensor:
    """Output layer with the families' own extras: Gemma's soft cap, Cohere's and Granite's scales."""
    output, shards = lm.get_output_embeddings(), shards_of(lm)
    with precision(lm):
        logits = output(hidden.to(output.weight.dtype)) if shards is None else shards.logits(hidden)
    config = lm.config
    if getattr(config, "logit_scale", None):
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None):
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


@torch.no_grad()
def check_logit_path(lm: Any, name: str) -> None:
    """Raise UserError when body + output layer differ from the model's own logits (an architecture with extras), or
    where those are no finite numbers (damaged weights). Of an encoder, states alone are read."""
    if is_encoder(lm):
        _check_padding(lm, name)
        return
    ids = torch.arange(1, 7, device=lm.device)[None] % lm.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    with precision(lm):
        whole = lm(input_ids=ids, attention_mask=mask, use_cache=False).logits
    if not whole.isfinite().all():
        raise UserError(
            f"base {name}: its logits are not finite for six plain tokens: its weights hold numbers that are not, or "
            f"overflow in {str(whole.dtype).removeprefix('torch.')}; take them from where they came anew"
        )
    ours = logits_of(lm, hidden_states(lm, ids, mask))
    tolerance = 1e-4 if whole.dtype == torch.float32 else 5e-2
    if not torch.allclose(whole.float(), ours.float(), atol=tolerance * max(1.0, whole.float().abs().max().item())):
        raise UserError(
            f"base {name}: {type(lm).__name__} does more between its last hidden state and its logits than an output "
            "layer; trivet does not know this architecture. Choose one of `trivet models`."
        )


@torch.no_grad()
def _check_padding(lm: Any, name: str) -> None:
    """Raise UserError where padding changes the states of an encoder's rows, or those are no finite numbers."""
    ids = torch.arange(1, 7, device=lm.device)[None] % lm.config.get_text_config().vocab_size
    alone = hidden_states(lm, ids, torch.ones_like(ids))
    if not alone.isfinite().all():
        raise UserError(
            f"base {name}: its states are not finite for six plain tokens: its weights hold numbers that are not, or "
            f"overflow in {str(alone.dtype).removeprefix('torch.')}; take them from where they came anew"
        )
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids[:, :3])], 1)
    padded = hidden_states(lm, torch.cat([ids, ids[:, :3]], 1), mask)[:, : ids.shape[1]]
    tolerance = 1e-4 if alone.dtype == torch.float32 else 5e-2
    if not torch.allclose(alone.float(), padded.float(), atol=tolerance * max(1.0, alone.float().abs().max().item())):
        raise UserError(
            f"base {name}: {type(lm).__name__} gives a row other states where padding follows it; trivet does not know "
            "this encoder: choose a BERT, RoBERTa, DeBERTa or ModernBERT"
        )


def switch_off_dropout(lm: nn.Module) -> None:
    """Dropout 0 everywhere, functional attention dropout included: log-probabilities must be repeatable.

    Walks modules and configs, since a loop over ``nn.Dropout`` misses ``attention_dropout`` of Llama and GPT-NeoX.
    """
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        config = getattr(module, "config", None)
        if config is not None:
            for name, value in list(vars(config).items()):
                if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
                    setattr(config, name, 0.0)


def set_gradient_checkpointing(lm: Any, on: bool, offload: bool = False) -> None:
    """Recompute layer activations in backward, or not; works in eval mode, where nothing else is in train mode.

    With ``offload`` what is kept to recompute from waits for backward in pinned memory of the host.
    """
    lm.offloads_activations = on and offload
    if not on:
        flagged = [m for m in lm.modules() if getattr(m, "gradient_checkpointing", False)]
        if flagged:
            lm.gradient_checkpointing_disable()
        for module in flagged:
            module.training = False  # as it was before it was switched on
        return
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in lm.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # this flag alone: its children stay in eval mode


def recomputes(lm: Any) -> bool:
    """Whether layers are computed again in backward (``set_gradient_checkpointing``)."""
    return any(getattr(module, "gradient_checkpointing", False) for module in body_of(lm).modules())


def offloads(lm: Any) -> bool:
    """Whether what layers are computed again from waits on the host (``set_gradient_checkpointing``)."""
    return bool(getattr(lm, "offloads_activations", False)) and lm.device.type != "cpu"


def kept_for_backward(lm: Any) -> contextlib.AbstractContextManager[Any]:
    """What a forward pass by the modules keeps lies where it is to lie: on the host, or where it was made."""
    if offloads(lm) and torch.is_grad_enabled():
        return torch.autograd.graph.save_on_cpu(pin_memory=True)
    return contextlib.nullcontext()


@contextlib.contextmanager
def checkpointing_paused(lm: Any) -> Iterator[None]:
    """No recomputation inside: Transformers' checkpointed layers throw the key-value cache away without an error."""
    flagged = [m for m in lm.modules() if getattr(m, "gradient_checkpointing", False) and m.training]
    for module in flagged:
        module.training = False
    try:
        yield
    finally:
        for module in flagged:
            module.training = True
