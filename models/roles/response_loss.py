"""Negative log-likelihood of supervised tokens: no padding in the body, no logits elsewhere, never all logits at once.

Shapes: B rows, L padded length, N supervised tokens, D hidden size, V vocabulary. Knows nothing of trainers or roles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batching import length_bucketed
from models.backbone.forward import hidden_states, logits_of
from models.backbone.logprobs import head_is_frozen, token_logprobs
from models.backbone.sharding import output_held
from models.fast.hidden_states import fast_states, usable
from models.fast.logprobs import block_nll, output_weight

CHUNK = 256  # rows of the (rows, V) logits that exist at one time
# Operations that one more forward and backward of a layer costs, as lost time on each kind of device: a batch is cut
# into groups of similar length only where that saves more. About 1.5 ms of Python a layer at the device's matrix rate.
OVERHEAD = {"cpu": 1.5e8, "cuda": 3e11}


def cells_worth_a_pass(lm: Any) -> int:
    """Padded cells whose arithmetic costs as much as running the body once more."""
    config = lm.config.get_text_config()
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * width
    inner = max(inner) if isinstance(inner, list | tuple) else int(inner)  # some configs name each layer's own
    return max(1, int(OVERHEAD.get(lm.device.type, 3e11) / (6.0 * (4 * width * width + 3 * width * inner))))


def supervised_states(lm: Any, ids: Tensor, mask: Tensor, labels: Tensor, fast: bool = True) -> tuple[Tensor, Tensor]:
    """``(hidden, targets)``, (N, D) and (N,): the states that predict each supervised token, rows in groups of like
    length. Groups are passes of their own, so nothing can leak from row to row; the fast path has no padding at all."""
    decoder = usable(lm, fast)
    if decoder is not None:
        places = (labels[:, 1:] >= 0).nonzero()
        positions = places[:, 0] * labels.shape[1] + places[:, 1]
        return fast_states(decoder, lm, ids, mask, positions), labels.flatten()[positions + 1]
    lengths = mask.sum(1).tolist()
    states, targets = [], []
    for group in length_bucketed(lengths, cells_worth_a_pass(lm)):
        width = max(lengths[i] for i in group)
        wanted = labels[group, 1:width]
        chosen = wanted >= 0
        hidden = hidden_states(lm, ids[group, :width], mask[group, :width])[:, :-1]
        states.append(hidden[chosen])
        targets.append(wanted[chosen])
    return torch.cat(states), torch.cat(targets)


class _Likelihood(torch.autograd.Function):
    """Sum of -log p, with the gradient of the states made in the same pass: each chunk's logits are computed once.

    For a frozen output layer, as with LoRA: it gives no gradient to anything but the states.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk: int) -> Any:
        total = hidden.new_zeros((), dtype=torch.float32)
        right = torch.zeros((), dtype=torch.long, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_()
                logits = head(states)
                # at least fp32 before the softmax: bf16 has three digits
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                loss = F.cross_entropy(logits, targets[part], reduction="sum")
            right += (logits.detach().argmax(-1) == targets[part]).sum()
            (gradient[part],) = torch.autograd.grad(loss, states)
            total = total + loss.detach()
            del logits, loss
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None, None, None


def response_nll(
    lm: Any, ids: Tensor, mask: Tensor, labels: Tensor, chunk: int = CHUNK, fast: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over supervised tokens of -log p in nats, how many the model has right (argmax), and how many there are.

    Args:
        lm: a causal LM, adapters already selected.
        ids, mask: (B, L), right-padded.
        labels: (B, L), the token itself where it is supervised, else negative; a row's first token is never a target.
        chunk: rows whose logits exist at one time.
        fast: use the fast path where it knows the model.
    """
    hidden, targets = supervised_states(lm, ids, mask, labels, fast)
    count = torch.tensor(len(targets), device=ids.device)
    if not len(targets):
        return hidden.sum().float(), count, count
    weight = output_weight(lm) if fast else None
    if weight is not None:
        return *block_nll(hidden, targets, weight), count
    if not torch.is_grad_enabled() or head_is_frozen(hidden, lambda h: logits_of(lm, h)):
        with output_held(lm):
            total, right = _Likelihood.apply(hidden, targets, lambda h: logits_of(lm, h), chunk)
        return total, right, count
    # the output layer is trained as well: chunks are computed again in backward
    logprobs, _ = token_logprobs(hidden, targets, lambda h: logits_of(lm, h), chunk=chunk)
    with torch.no_grad():
        best = torch.cat([logits_of(lm, h).argmax(-1) for h in hidden.split(chunk)])
    return -logprobs.sum(), (best == targets).sum(), count
