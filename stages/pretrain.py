"""A base model from scratch: tokenizer, a small Llama, next-token training on documents, in chunks of the context; or a
small encoder that learns to predict hidden tokens, on which reward models stand.

For the demo and for data in languages without a small base. Matrices are trained with Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/), the rest with Adam. Knows nothing of prompts and responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, ModernBertForMaskedLM

from data.common.errors import UserError
from data.common.patience import each
from data.counting import log_row, tell, warned
from data.storage.views import Mapped
from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import derived_seed, isolated_rng
from models.hub.load import rows_for
from stages.settings import PretrainConfig, PretrainModel
from stages.stage import StageContext, StageResult, schedule_factor
from stages.training.chunks import ChunkCounts, chunked
from stages.training.masked import MaskedTokens, encoder_settings, masked_nll
from stages.training.new_tokenizer import train_tokenizer
from stages.training.next_token import NEXT_TOKENS, Objective, Steps, held_out_nll, save_base, train

VERSION = 4
HELD_OUT = 1000
"""Held-out documents of which the loss is computed, at most."""


def run(context: StageContext, config: PretrainConfig, given: Any = None) -> StageResult:
    """Train tokenizer and base; write a plain Transformers folder ``model/``. There is no base to stand on yet.

    Args:
        context: of the stage.
        config: its settings.
        given: a tokenizer, instead of one that is trained.
    """
    documents = Mapped(attrgetter("text"), context.corpus.documents.train)
    if not documents:
        raise UserError("data.documents: base.pretrain needs training documents, and there are none")
    tokenizer = tokenizer_for(documents, config, given)
    rows, counts = chunked(
        tokenizer,
        each(documents, "cutting into chunks", "documents"),
        config.model.context,
        read=config.steps * config.batch,
    )
    others = context.corpus.documents.held_out
    first = Mapped(attrgetter("text"), others[:HELD_OUT])
    held_out, held_out_counts = chunked(tokenizer, first, config.model.context, "held-out documents", there=len(others))
    for count in (counts, held_out_counts):
        tell(count, "pretraining", context.say, context.warn)
    context.log.note(log_row(counts.as_dict()) | log_row(held_out_counts.as_dict(), "held_out"))
    lm = new_model(tokenizer, config, context.seed).to(context.processes.device)
    masking = MaskedTokens.of(tokenizer, context.seed) if config.objective == "masked" else None
    memory = OOMRetry("documents at once", context.warn_alone)
    before = held_out_loss(context, lm, held_out, masking, memory) if masking is not None else None
    skipped = train(context, lm, rows, steps_of(lm, config, masking or NEXT_TOKENS))
    found = held_out_loss(context, lm, held_out, masking, memory)
    if found is not None:
        was = "" if before is None else f"{before:.4g} before, "
        unit = "a token" if masking is None else "a hidden token"
        context.say(f"pretraining: held-out loss {was}{found:.4g} nats {unit} after {config.steps:,} steps")
    save_base(context, lm, tokenizer)
    return StageResult(
        metrics={
            **(
                {"held_out_nll": found}
                if masking is None
                else {"held_out_masked_nll_before": before, "held_out_masked_nll": found}
            ),
            **warned(counts.warning(), held_out_counts.warning()),
            "documents": len(documents),
            "counts": counts.as_dict(),
            "held_out_counts": held_out_counts.as_dict(),
            "vocabulary": len(tokenizer),
            "skipped_steps": skipped,
            "parameters": sum(p.numel() for p in lm.parameters()),
        }
    )


def tokenizer_for(documents: Sequence[str], config: PretrainConfig, given: Any) -> Any:
    """The tokenizer that is given, or one that is trained on the documents.

    Raises:
        UserError: the given one has no mask token, where hidden tokens are to be predicted.
    """
    if given is None:
        return train_tokenizer(documents, config)
    if config.objective == "masked" and given.mask_token_id is None:
        raise UserError(
            f"base.pretrain.given_tokenizer: {config.given_tokenizer} has no mask token, which objective 'masked' needs"
        )
    return given


def planned(
    documents: Sequence[str],
    held_out: Sequence[str],
    config: PretrainConfig,
    there: int | None = None,
    given: Any = None,
) -> dict[str, ChunkCounts]:
    """The counts before training, by the ``given`` tokenizer or one trained on these documents, which may be a sample
    of ``there``."""
    if not documents:
        return {}
    tokenizer, context = tokenizer_for(documents, config, given), config.model.context
    read, random = config.steps * config.batch, there is not None and there > len(documents)
    mine = chunked(tokenizer, documents, context, read=read, there=there, random=random)
    theirs = chunked(tokenizer, held_out[:HELD_OUT], context, "held-out documents", there=len(held_out))
    return {
        "counts": mine[1],
        "held_out_counts": theirs[1],
    }


def model_settings(shape: PretrainModel, vocabulary: int, **ids: Any) -> LlamaConfig:
    """Transformers' configuration of a base from scratch; ``ids`` are those of its special tokens."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        initializer_range=shape.init_std,
        **ids,
    )


def untrained(config: PretrainConfig, vocabulary: int, **ids: Any) -> LlamaForCausalLM | ModernBertForMaskedLM:
    """A model of the recipe's shape with random weights; ``ids`` are those of its special tokens."""
    if config.objective == "masked":
        return ModernBertForMaskedLM(encoder_settings(config.model, vocabulary, **ids))
    return LlamaForCausalLM(model_settings(config.model, vocabulary, **ids))


def new_model(tokenizer: Any, config: PretrainConfig, seed: int) -> Any:
    """A model for this tokenizer, with the weights that the seed gives it."""
    names = ("pad", "bos", "eos", "cls", "sep") if config.objective == "masked" else ("pad", "bos", "eos")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    with isolated_rng(derived_seed(seed, "pretrain/init")):
        return untrained(config, rows_for(tokenizer), **ids)


def held_out_loss(
    context: StageContext, lm: Any, rows: Sequence[list[int]], masking: MaskedTokens | None, memory: OOMRetry
) -> float | None:
    """Nats a token of held-out documents: of all but the first, or of hidden ones, which are the same each time."""
    with memory.reporting(context.bar.phase("held-out documents", len(rows))):
        if masking is None:
            return held_out_nll(lm, rows, context.processes, memory)
        return masked_nll(lm, masking.held_out(rows), context.processes.device, memory)


def optimizers_of(lm: Any, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, Adam for all else."""
    matrices = [p for n, p in lm.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in lm.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    return [
        Muon(matrices, config.matrix_learning_rate),
        torch.optim.Adam(others, lr=config.learning_rate, betas=(0.9, 0.99), eps=1e-10),
    ]


def steps_of(lm: Any, config: PretrainConfig, objective: Objective = NEXT_TOKENS) -> Steps:
    """The training of a base from scratch: cosine to zero; the norm is clipped of what Adam trains."""
    optimizers = optimizers_of(lm, config)
    return Steps(
        key="base.pretrain",
        name="pretraining",
        seed="pretrain/order",
        steps=config.steps,
        batch=config.batch,
        shuffle=config.shuffle,
        max_skipped_steps=config.max_skipped_steps,
        optimizers=optimizers,
        factor=lambda step: schedule_factor("cosine", step / config.steps),
        clipped=optimizers[1].param_groups[0]["params"],
        objective=objective,
    )


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps, for matrices; in fp32.

    ``torch.optim.Muon`` orthogonalises in bf16, which is slow and coarse on CPUs; the coefficients are the same.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(self, params: Any, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = self._orthogonalise(torch.lerp(p.grad, buffer, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)

    def _orthogonalise(self, g: Tensor) -> Tensor:
        a, b, c = self.COEFFICIENTS
        tall = g.shape[0] > g.shape[1]
        x = (g.T if tall else g).float()
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            square = x @ x.T
            x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x
