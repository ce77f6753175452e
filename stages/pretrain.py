"""A base model from scratch: tokenizer, a small Llama, next-token training on documents, in chunks of the context.

For the demo and for data in languages without a small base. Matrices are trained with Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/), the rest with Adam. Knows nothing of prompts and responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.common.errors import UserError
from data.common.patience import each, patience
from data.counting import log_row
from data.storage.views import Mapped
from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import derived_seed, isolated_rng
from stages.settings import PretrainConfig, PretrainModel
from stages.stage import StageContext, StageResult, schedule_factor
from stages.training.chunks import ChunkCounts, chunked
from stages.training.next_token import Steps, held_out_nll, save_base, train

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
VERSION = 4
HELD_OUT = 1000
"""Held-out documents of which the loss is computed, at most."""


def run(context: StageContext, config: PretrainConfig) -> StageResult:
    """Train tokenizer and base; write a plain Transformers folder ``model/``. There is no base to stand on yet."""
    documents = Mapped(attrgetter("text"), context.corpus.documents.train)
    if not documents:
        raise UserError("data.documents: base.pretrain needs training documents, and there are none")
    tokenizer = train_tokenizer(documents, config)
    rows, counts = chunked(
        tokenizer,
        each(documents, "cutting into chunks", "documents"),
        config.model.context,
        read=config.steps * config.batch,
    )
    given = context.corpus.documents.held_out
    first = Mapped(attrgetter("text"), given[:HELD_OUT])
    held_out, held_out_counts = chunked(tokenizer, first, config.model.context, "held-out documents", there=len(given))
    for count in (counts, held_out_counts):
        if text := count.summary():
            context.say(f"pretraining: {text}")
    context.log.note(log_row(counts.as_dict()) | log_row(held_out_counts.as_dict(), "held_out"))
    lm = new_model(tokenizer, config, context.seed).to(context.processes.device)
    skipped = train(context, lm, rows, steps_of(lm, config))
    memory = OOMRetry("documents at once", context.warn_alone)
    with memory.reporting(context.bar.phase("held-out documents", len(held_out))):
        nll = held_out_nll(lm, held_out, context.processes, memory)
    save_base(context, lm, tokenizer)
    return StageResult(
        metrics={
            "held_out_nll": nll,
            "documents": len(documents),
            "counts": counts.as_dict(),
            "held_out_counts": held_out_counts.as_dict(),
            "vocabulary": len(tokenizer),
            "skipped_steps": skipped,
            "parameters": sum(p.numel() for p in lm.parameters()),
        }
    )


def train_tokenizer(documents: Sequence[str], config: PretrainConfig) -> PreTrainedTokenizerFast:
    """Words split on white space, byte-level BPE, or single characters."""
    special = [PAD, BOS, EOS, UNKNOWN]
    if config.tokenizer == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=max(config.vocabulary, len(special) + len(alphabet)),
            special_tokens=special,
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        if config.tokenizer == "words":
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            tokenizer.normalizer = normalizers.NFKC()
            tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
            tokenizer.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(vocab_size=config.vocabulary, special_tokens=special, show_progress=False)
    with patience(f"training a tokenizer on {len(documents):,} documents"):
        tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )


def planned(
    documents: Sequence[str], held_out: Sequence[str], config: PretrainConfig, there: int | None = None
) -> dict[str, ChunkCounts]:
    """The counts before training, by a tokenizer trained on these documents, which may be a sample of ``there``."""
    if not documents:
        return {}
    tokenizer, context = train_tokenizer(documents, config), config.model.context
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


def new_model(tokenizer: Any, config: PretrainConfig, seed: int) -> LlamaForCausalLM:
    """A Llama of this shape with random weights, the same for the same seed."""
    settings = model_settings(
        config.model,
        len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with isolated_rng(derived_seed(seed, "pretrain/init")):
        return LlamaForCausalLM(settings)


def optimizers_of(lm: Any, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, Adam for all else."""
    matrices = [p for n, p in lm.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in lm.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    return [
        Muon(matrices, config.matrix_learning_rate),
        torch.optim.Adam(others, lr=config.learning_rate, betas=(0.9, 0.99), eps=1e-10),
    ]


def steps_of(lm: Any, config: PretrainConfig) -> Steps:
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
