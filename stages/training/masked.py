"""Masked language modelling (Devlin et al. 2019, https://arxiv.org/abs/1810.04805): which tokens are hidden, their
loss, and the encoder that is trained by it.

15 % of a row's own tokens are to be predicted; of these 80 % are replaced by the mask token, 10 % by another token at
random, and 10 % stay as they are. Special tokens are never chosen, and a row is one document's, so that no token is
predicted from another document. Masks are made anew each time that a row is read (Liu et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.batching import right_pad
from models.backbone.forward import hidden_states, precision
from models.backbone.logprobs import token_logprobs
from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import generator
from stages.settings import PretrainModel

SHARE = 0.15
REPLACED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and some other token."""
THETA = 10_000.0
HELD_OUT_MASKS = "pretrain/held_out_masks"


@dataclass(frozen=True, slots=True)
class MaskedRow:
    """A row as the encoder is given it, and what it is to predict.

    Attributes:
        ids: (L,) with some tokens hidden.
        places: (M,) of the tokens to predict.
        targets: (M,) what stood there.
    """

    ids: Sequence[int]
    places: Sequence[int]
    targets: Sequence[int]


def hide(
    row: Sequence[int], special: Collection[int], mask_id: int, ordinary: Sequence[int], g: torch.Generator
) -> MaskedRow:
    """Choose ``SHARE`` of the tokens of a row that are not special, one at least, and hide them.

    Args:
        row: (L,) ids.
        special: ids that are never chosen.
        mask_id: of the mask token.
        ordinary: ids that may stand in place of others.
        g: the noise.
    """
    own = [i for i, token in enumerate(row) if token not in special]
    count = max(1, round(SHARE * len(own))) if own else 0
    places = sorted(own[i] for i in torch.randperm(len(own), generator=g)[:count].tolist())
    fate = torch.rand(count, generator=g).tolist()
    others = torch.randint(len(ordinary), (count,), generator=g).tolist()
    ids = list(row)
    for place, u, other in zip(places, fate, others, strict=True):
        if u < REPLACED:
            ids[place] = mask_id
        elif u < REPLACED + RANDOM:
            ids[place] = ordinary[other]
    return MaskedRow(ids, places, [row[place] for place in places])


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedTokens:
    """What is predicted in a step: hidden tokens, chosen by the run's seed, the step and the row's place in it."""

    seed: int
    special: frozenset[int]
    mask_id: int
    ordinary: Sequence[int]

    @classmethod
    def of(cls, tokenizer: Any, seed: int) -> MaskedTokens:
        """For a tokenizer with a mask token."""
        special = frozenset(tokenizer.all_special_ids)
        ordinary = [i for i in range(len(tokenizer)) if i not in special]
        return cls(seed=seed, special=special, mask_id=tokenizer.mask_token_id, ordinary=ordinary)

    def examples(self, rows: Sequence[Sequence[int]], step: int) -> list[MaskedRow]:
        return self._hidden(rows, generator(self.seed, "pretrain/masks", step))

    def held_out(self, rows: Sequence[Sequence[int]]) -> list[MaskedRow]:
        """The same masks each time, so that losses can be compared."""
        return self._hidden(rows, generator(self.seed, HELD_OUT_MASKS))

    def _hidden(self, rows: Sequence[Sequence[int]], g: torch.Generator) -> list[MaskedRow]:
        return [hide(row, self.special, self.mask_id, self.ordinary, g) for row in rows]

    def predicted(self, row: MaskedRow) -> int:
        return len(row.places)

    def loss(self, lm: Any, rows: Sequence[MaskedRow], device: torch.device) -> Tensor:
        """Summed -log p of the hidden tokens, in nats."""
        return -masked_logprobs(lm, rows, device).sum()


HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "ModernBertForMaskedLM": lambda lm, states: lm.decoder(lm.head(states)),
    "BertForMaskedLM": lambda lm, states: lm.cls(states),
    "RobertaForMaskedLM": lambda lm, states: lm.lm_head(states),
    "XLMRobertaForMaskedLM": lambda lm, states: lm.lm_head(states),
    "CamembertForMaskedLM": lambda lm, states: lm.lm_head(states),
}
"""From an encoder's states (N, H) to logits (N, V); of a family that is not here all positions' logits are made."""


def masked_logprobs(lm: Any, rows: Sequence[MaskedRow], device: torch.device) -> Tensor:
    """Log-probabilities (N,) in nats of the hidden tokens of all rows, one after another; of the families in ``HEADS``
    logits are made at their places alone."""
    ids, mask = (t.to(device) for t in right_pad([row.ids for row in rows], 0))
    width = ids.shape[1]
    places = torch.tensor([i * width + p for i, row in enumerate(rows) for p in row.places], dtype=torch.long)
    targets = torch.tensor([t for row in rows for t in row.targets], dtype=torch.long).to(device)
    if (head := HEADS.get(type(lm).__name__)) is None:
        with precision(lm):
            logits = lm(input_ids=ids, attention_mask=mask.long()).logits.flatten(0, 1)[places.to(device)]
        return token_logprobs(logits, targets, lambda h: h, chunk=2048)[0]

    def logits_of(states: Tensor) -> Tensor:
        with precision(lm):
            return head(lm, states)

    states = hidden_states(lm, ids, mask).flatten(0, 1)[places.to(device)]
    return token_logprobs(states, targets, logits_of, chunk=2048)[0]


@torch.no_grad()
def masked_nlls(
    lm: Any, rows: Sequence[MaskedRow], device: torch.device, memory: OOMRetry, batch: int = 64
) -> list[float]:
    """Summed loss of each row's hidden tokens, in nats; ``memory`` says how many are read at once."""
    found = [0.0] * len(rows)

    def add_losses(part: Sequence[int]) -> None:
        logprobs = masked_logprobs(lm, [rows[i] for i in part], device).double().cpu()
        for i, own in zip(part, logprobs.split([len(rows[i].places) for i in part]), strict=True):
            found[i] = -own.sum().item()

    memory.each(range(len(rows)), batch, add_losses)
    return found


def masked_nll(
    lm: Any, rows: Sequence[MaskedRow], device: torch.device, memory: OOMRetry, batch: int = 64
) -> float | None:
    """Nats a hidden token, over all rows; None where none is hidden."""
    some = [row for row in rows if row.places]
    return sum(masked_nlls(lm, some, device, memory, batch)) / sum(len(r.places) for r in some) if some else None


def encoder_settings(shape: PretrainModel, vocabulary: int, **ids: Any) -> Any:
    """Transformers' configuration of a ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663) all of whose
    layers see the whole row; ``ids`` are those of its special tokens."""
    from transformers import ModernBertConfig

    rope = {"rope_type": "default", "rope_theta": THETA}
    return ModernBertConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.context,
        layer_types=["full_attention"] * shape.layers,
        rope_parameters={"full_attention": rope, "sliding_attention": rope},
        initializer_range=shape.init_std,
        classifier_pooling="mean",
        tie_word_embeddings=True,
        **ids,
    )
