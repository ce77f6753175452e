"""A base model from scratch: tokenizer, a small Llama, next-token training on documents, in chunks of the context.

For the demo and for data in languages without a small base. Matrices are trained with Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/), the rest with Adam. Knows nothing of prompts and responses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.batching import right_pad
from data.common.errors import UserError
from data.common.patience import each, patience
from data.counting import log_row
from data.storage.token_rows import row_store
from data.storage.views import Mapped
from models.backbone.artifacts import naming
from models.backbone.forward import hidden_states, logits_of
from models.backbone.logprobs import token_logprobs
from models.backbone.oom_retry import OOMRetry
from models.backbone.processes import Processes
from models.backbone.seeds import derived_seed, generator, isolated_rng
from models.backbone.tensor_files import readable
from stages.safe_points.checkpoints import State
from stages.safe_points.training_state import restore_training, training_tensors
from stages.settings import PretrainConfig, PretrainModel
from stages.stage import StageContext, StageResult, schedule_factor
from stages.training.nonfinite import NonFiniteSteps, norm_of

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
VERSION = 4
AT_ONCE = 256
"""Documents that the tokenizer is given together."""
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
    skipped = train(context, lm, rows, config)
    memory = OOMRetry("documents at once", context.warn_alone)
    with memory.reporting(context.bar.phase("held-out documents", len(held_out))):
        nll = held_out_nll(lm, held_out, context.processes, memory)
    if context.processes.is_main:
        with naming(context.out / "model"):
            lm.save_pretrained(context.out / "model")
            readable(context.out / "model")
            tokenizer.save_pretrained(context.out / "model")
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


def encode(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """``<bos>`` text ``<eos>`` of each text. The reward stage and SFT see the same start and stop tokens."""
    texts = iter(texts)
    while some := list(islice(texts, AT_ONCE)):
        for ids in tokenizer(some, add_special_tokens=False, return_attention_mask=False)["input_ids"]:
            yield [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]


def chunks(ids: Sequence[int], context: int) -> list[list[int]]:
    """A document's ids in chunks of at most ``context``, so that each of them but the first is predicted once.

    A chunk begins with the last id of the one before; no chunk holds two documents, so none attends to another.
    """
    return [list(ids[i : i + context]) for i in range(0, len(ids) - 1, context - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCounts:
    """Counts of documents that are packed in chunks of the context: no token is cut.

    ``read`` is how many chunks training asks for, each once before any comes again; None where all are read once.
    ``there`` is the number of documents of which those counted are the first ones, or a sample.
    """

    unit: str
    documents: int
    several: int
    chunks: int
    tokens: int
    read: int | None = None
    there: int | None = None
    random: bool = False

    def as_dict(self) -> dict[str, int]:
        """Plain numbers for manifests, plans and reports."""
        out = {
            "documents": self.documents,
            "documents_in_several_chunks": self.several,
            "chunks": self.chunks,
            "tokens": self.tokens,
        }
        out |= {} if self.read is None else {"chunks_read": min(self.chunks, self.read)}
        return out | ({} if self.there is None else {"sample_of" if self.random else "first_of": self.there})

    def sampled(self) -> str:
        """That a sample was counted; empty where all documents were."""
        return f"a sample of {self.documents:,} of {self.there:,} {self.unit} is counted" if self.random else ""

    def summary(self) -> str:
        """One line for the terminal; empty where every document is one chunk that is read."""
        parts = [f"{self.several:,} longer than the context, in several chunks"] if self.several else []
        if self.read is not None and self.read < self.chunks and not self.random:
            unread = self.chunks - self.read
            parts.append(
                f"{unread:,} of {self.chunks:,} chunks are not read (base.pretrain.steps x batch is {self.read:,})"
            )
        if self.there is not None and not self.random:
            parts.append(f"the first {self.documents:,} are measured")
        many = self.documents if self.there is None else self.there
        return f"of {many:,} {self.unit} " + ", ".join(parts) if parts else ""

    def warning(self) -> str:
        """Nothing is lost but by the number of steps, which is the recipe's."""
        return ""


def chunked(
    tokenizer: Any,
    documents: Iterable[str],
    context: int,
    unit: str = "documents",
    *,
    read: int | None = None,
    there: int | None = None,
    random: bool = False,
) -> tuple[Sequence[list[int]], ChunkCounts]:
    """All documents' chunks, and their counts; see ``ChunkCounts`` for what is told of them."""
    rows, count, several, tokens = row_store(), 0, 0, 0
    for ids in encode(tokenizer, documents):
        cut = chunks(ids, context)
        rows.extend(cut)
        count += 1
        several += len(cut) > 1
        tokens += sum(len(row) - 1 for row in cut)
    return rows, ChunkCounts(
        unit=unit,
        documents=count,
        several=several,
        chunks=len(rows),
        tokens=tokens,
        read=read,
        there=there if there is not None and there > count else None,
        random=random,
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


def train(context: StageContext, lm: Any, rows: Sequence[list[int]], config: PretrainConfig) -> int:
    """Cosine to zero; every process takes its share of each batch, gradients are summed over global token counts.

    Returns the number of steps that were skipped because loss or gradient was not finite.
    """
    optimizers = optimizers_of(lm, config)
    rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    order = row_stream(len(rows), generator(context.seed, "pretrain/order") if config.shuffle else None)
    lm.train()
    parameters = dict(lm.named_parameters())
    nonfinite = NonFiniteSteps("base.pretrain.max_skipped_steps", config.max_skipped_steps)
    memory = OOMRetry("documents at once", context.warn_alone, context.processes.together)
    saved = context.checkpoints.resume()
    first = 0 if saved is None else saved.numbers["step"]
    if saved is not None:
        restore_training(parameters, optimizers, saved.tensors)
        nonfinite.restore(saved.numbers["skips"])
        memory.limit = saved.own_numbers["limit"]
        for _ in range(first * config.batch):
            next(order)
    for step in range(first, config.steps):
        batch = [rows[next(order)] for _ in range(config.batch)]
        tokens = sum(len(r) - 1 for r in batch)
        mine = [batch[i] for i in context.processes.share(len(batch))]
        loss = memory.run(
            partial(backward, lm, mine, tokens), max(1, len(mine)), undo=lambda: lm.zero_grad(set_to_none=True)
        )
        context.processes.sum_gradients(p for p in lm.parameters())
        value = context.processes.sum(loss).item()
        norm = norm_of(lm.parameters())
        finite = math.isfinite(value) and math.isfinite(norm)
        torch.nn.utils.clip_grad_norm_(optimizers[1].param_groups[0]["params"], 1.0)
        factor = schedule_factor("cosine", step / config.steps)
        for optimizer, base_rates in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            if finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        nonfinite.record(finite, f"pretraining, step {step + 1}", f"loss {value:g}, gradient norm {norm:g}")
        row = {"loss": value, "learning_rate": factor, "tokens": tokens, "skipped_steps": nonfinite.total}
        context.log.write(step + 1, row)
        context.bar.advance(step + 1, {"loss": value}, tokens)
        save = partial(snapshot, parameters, optimizers, nonfinite, step + 1, memory.limit)
        context.checkpoints.safe_point(step + 1, save, step + 1, good=nonfinite.in_a_row == 0)
    lm.eval()
    nonfinite.require_a_step(config.steps, "pretraining")
    return nonfinite.total


def snapshot(
    parameters: dict[str, Tensor], optimizers: list[Any], nonfinite: NonFiniteSteps, done: int, limit: int | None
) -> State:
    numbers = {"step": done, "skips": nonfinite.as_dict()}
    return State(tensors=training_tensors(parameters, optimizers), numbers=numbers, own_numbers={"limit": limit})


def backward(lm: Any, rows: Sequence[Sequence[int]], tokens: int, size: int) -> Tensor:
    """Loss of the rows (of ``tokens`` in the whole batch), ``size`` of them at a time, and its gradient."""
    total = torch.zeros((), device=lm.device)
    for start in range(0, len(rows), size):
        loss = nll_sum(lm, rows[start : start + size], lm.device) / tokens
        loss.backward()
        total = total + loss.detach()
    return total


def row_stream(count: int, g: torch.Generator | None) -> Any:
    """Endless row numbers, each row once a pass: each pass a fresh permutation, or as given without a generator."""
    while True:
        yield from range(count) if g is None else map(int, torch.randperm(count, generator=g))


def nll_sum(lm: Any, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Summed next-token loss over real tokens."""
    ids, mask = (t.to(device) for t in right_pad(rows, 0))
    hidden = hidden_states(lm, ids, mask)[:, :-1]
    logprobs, _ = token_logprobs(hidden[mask[:, 1:]], ids[:, 1:][mask[:, 1:]], lambda h: logits_of(lm, h), chunk=2048)
    return -logprobs.sum()


@torch.no_grad()
def held_out_nll(
    lm: Any, rows: Sequence[list[int]], processes: Processes, memory: OOMRetry, batch: int = 64
) -> float | None:
    """Nats a token on held-out documents, over all of them."""
    rows = [r for r in rows if len(r) > 1]
    if not rows:
        return None
    found: list[float] = []

    def add_loss(part: Sequence[int]) -> None:
        found.append(nll_sum(lm, [rows[i] for i in part], processes.device).item())

    memory.each(range(len(rows)), batch, add_loss)
    return sum(found) / sum(len(r) - 1 for r in rows)


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
