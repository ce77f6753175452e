"""Continued pretraining: the whole of a base that is there, trained on further documents into a new base.

Weights are kept in fp32; learning rates rise again and fall, without which a base learns little more (Ibrahim et al.
2024, https://arxiv.org/abs/2403.08763). New tokens' rows start as the mean of the rows of the old tokens that they are
made of (Gee et al. 2022, https://arxiv.org/abs/2402.09977). Knows nothing of prompts and responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from data.common.errors import UserError
from data.common.patience import each, patience
from data.counting import log_row, tell, warned
from data.storage.views import Mapped
from data.vocabulary import KEY, extended
from models.backbone.encoders import is_encoder
from models.backbone.forward import check_logit_path, full_copy, set_gradient_checkpointing
from models.backbone.oom_retry import OOMRetry
from models.hub.limits import Limits, check_rows, limits_of_model
from models.hub.load import add_rows, load_lm_and_tokenizer, load_tokenizer
from models.hub.spec import BaseModelSpec
from stages.settings import ContinuedConfig
from stages.stage import StageContext, StageResult, schedule_factor
from stages.training.chunks import ChunkCounts, chunked, document_rows
from stages.training.learnt import Values, change, loss_of, sentence
from stages.training.masked import MaskedTokens, masked_nlls
from stages.training.next_token import NEXT_TOKENS, Objective, Steps, row_nlls, save_base, train

VERSION = 1
HELD_OUT = 1000
"""Held-out documents of which the loss is computed, at most."""
LONGEST = 1024
"""Tokens of a chunk where the recipe names no context, at most."""
BETAS = (0.9, 0.95)


def run(context: StageContext, config: ContinuedConfig, spec: BaseModelSpec, dtype: torch.dtype) -> StageResult:
    """Train the whole base on documents; write a plain Transformers folder ``model/``, on which later stages stand.

    Args:
        context: of the stage; it opens no base, since it trains the whole of one.
        config: its settings.
        spec: the base to go on from.
        dtype: of the products; weights are fp32.
    """
    documents = Mapped(attrgetter("text"), context.corpus.documents.train)
    if not documents:
        raise UserError("data.documents: continued needs training documents, and there are none")
    given = context.corpus.documents.held_out
    held_out = Mapped(attrgetter("text"), given[:HELD_OUT])
    lm, tokenizer = load_lm_and_tokenizer(spec, torch.float32, context.processes.device)
    lm = full_copy(lm, dtype)
    check_logit_path(lm, spec.name)
    limits = limits_of_model(lm, spec.name)
    length = context_of(config, limits.positions)
    check_context(length, limits, context.warn)
    masking = masking_of(spec.name, tokenizer, config, context.seed) if is_encoder(lm) else None
    before = losses(context, lm, tokenizer, held_out, length, masking)

    added = 0
    if config.added_vocabulary:
        tokenizer, added = learn_tokens(context, config, lm, tokenizer, documents)
    shared: Any = {"key": "continued", "encoder": masking is not None}
    read = config.steps * config.batch
    rows, counts = chunked(tokenizer, each(documents, "cutting into chunks", "documents"), length, read=read, **shared)
    _, held_out_counts = chunked(tokenizer, held_out, length, "held-out documents", there=len(given), **shared)
    for count in (counts, held_out_counts):
        tell(count, "continued pretraining", context.say, context.warn)
    context.log.note(log_row(counts.as_dict()) | log_row(held_out_counts.as_dict(), "held_out"))
    check_ids(lm, lm.name_or_path, rows)

    lm.requires_grad_(True)
    set_gradient_checkpointing(lm, context.gradient_checkpointing, context.offload_activations)
    skipped = train(context, lm, rows, steps_of(lm, config, masking or NEXT_TOKENS))
    set_gradient_checkpointing(lm, False)
    lm.requires_grad_(False)

    after = losses(context, lm, tokenizer, held_out, length, masking)
    save_base(context, lm, tokenizer)
    return StageResult(
        metrics={
            **compared(before, after),
            **outcome(context, judged(before, after, config), counts.warning(), held_out_counts.warning()),
            "documents": len(documents),
            "counts": counts.as_dict(),
            "held_out_counts": held_out_counts.as_dict(),
            "vocabulary": len(tokenizer),
            "added_tokens": added,
            "skipped_steps": skipped,
            "parameters": sum(p.numel() for p in lm.parameters()),
        }
    )


def masking_of(name: str, tokenizer: Any, config: ContinuedConfig, seed: int) -> MaskedTokens:
    """What is predicted of an encoder's rows.

    Raises:
        UserError: its tokenizer has no mask token, or is to learn further tokens.
    """
    if tokenizer.mask_token_id is None:
        raise UserError(
            f"continued: base {name} is an encoder, which predicts hidden tokens, and its tokenizer has no mask token"
        )
    if config.added_vocabulary:
        raise UserError(f"{KEY}: base {name} is an encoder, whose vocabulary is not extended here: set it to 0")
    return MaskedTokens.of(tokenizer, seed)


def learn_tokens(
    context: StageContext, config: ContinuedConfig, lm: Any, tokenizer: Any, documents: Sequence[str]
) -> tuple[Any, int]:
    """Learn further tokens from the documents, and give the base a row for each.

    Returns:
        The tokenizer that has them, and how many they are.
    """
    with patience(f"learning tokens on {len(documents):,} documents"):
        made, added = extended(tokenizer, documents, config.added_vocabulary, load_tokenizer)
    start_rows(lm, tokenizer.get_vocab(), made.get_vocab(), added.parts)
    if len(added.parts) < config.added_vocabulary:
        context.warn(f"{KEY}: the documents gave {len(added.parts)} tokens and no more: no pair of tokens is left")
    return made, len(added.parts)


def context_of(config: ContinuedConfig, positions: int | None) -> int:
    """Tokens of a chunk: the recipe's, or the base's positions as far as ``LONGEST``."""
    return config.context or min(LONGEST, positions or LONGEST)


def check_context(length: int, limits: Limits, warn: Callable[[str], None]) -> None:
    """Compare the length of a chunk with the base's positions.

    Raises:
        UserError: it is beyond a table of them.
    """
    if limits.positions is None or length <= limits.positions:
        return
    text = f"continued.context: chunks of {length} tokens are longer than the {limits.positions} positions of base"
    if limits.table:
        raise UserError(f"{text} {limits.name}: lower it")
    warn(f"{text} {limits.name}: beyond them it has not been trained, and learns them here")


def check_ids(lm: Any, name: str, rows: Sequence[Sequence[int]]) -> None:
    """Refuse rows with an id that has no embedding.

    Raises:
        UserError: some tokenizers have added tokens beyond them.
    """
    limits = replace(limits_of_model(lm, name), positions=None)
    check_rows(limits, rows, "data.documents", "", lambda text: None)


def planned(
    tokenizer: Any,
    positions: int | None,
    documents: Sequence[str],
    held_out: Sequence[str],
    config: ContinuedConfig,
    there: int,
    encoder: bool = False,
) -> dict[str, ChunkCounts]:
    """The counts before training, by the tokenizer of the base; ``documents`` may be a sample of ``there``."""
    shared: Any = {"key": "continued", "encoder": encoder}
    length, read = context_of(config, positions), config.steps * config.batch
    random = there > len(documents)
    mine = chunked(tokenizer, documents, length, read=read, there=there, random=random, **shared)
    theirs = chunked(tokenizer, held_out[:HELD_OUT], length, "held-out documents", there=len(held_out), **shared)
    return {"counts": mine[1], "held_out_counts": theirs[1]}


@torch.no_grad()
def start_rows(lm: Any, old: Mapping[str, int], new: Mapping[str, int], parts: Mapping[str, Sequence[str]]) -> None:
    """Give each new token the mean of the rows of the old tokens that it is made of, in embeddings and output layer.

    Args:
        lm: gets further rows where it has too few.
        old, new: ids by token, before and after.
        parts: of each new token.
    """
    add_rows(lm, max(new.values()) + 1)
    modules = (lm.get_input_embeddings(), lm.get_output_embeddings())
    tables = {id(p): p for module in modules if module is not None for p in module.parameters()}
    for table in tables.values():
        for token, made_of in parts.items():
            table[new[token]] = table[[old[part] for part in made_of]].double().mean(0).to(table.dtype)


def steps_of(lm: Any, config: ContinuedConfig, objective: Objective = NEXT_TOKENS) -> Steps:
    """AdamW on all weights; norms and biases do not decay. The rate rises linearly, then follows the schedule."""
    named = dict(lm.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    rising = round(config.warmup * config.steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / (config.steps - rising)
        return schedule_factor(config.schedule, done, config.final_learning_rate)

    return Steps(
        key="continued",
        name="continued pretraining",
        seed="continued/order",
        steps=config.steps,
        batch=config.batch,
        shuffle=config.shuffle,
        max_skipped_steps=config.max_skipped_steps,
        optimizers=[torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=BETAS)],
        factor=factor,
        clipped=list(named.values()),
        max_grad_norm=config.max_grad_norm,
        objective=objective,
    )


@dataclass(frozen=True, slots=True)
class Losses:
    """Of held-out documents, each (n,): nats, predicted tokens, and bytes of the text.

    ``hidden``: the tokens are those that an encoder does not see, which are the same before and after.
    """

    nats: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    bytes: tuple[int, ...] = ()
    hidden: bool = False

    @property
    def unit(self) -> str:
        """Of the loss that is compared: a byte's where tokens may not be the same before and after."""
        return "nats a hidden token" if self.hidden else "nats a byte"

    @property
    def values(self) -> Values:
        """As rows to compare."""
        none = [0.0] * len(self.nats)
        weights = self.tokens if self.hidden else self.bytes
        return np.array([self.nats, weights, none, none], dtype=np.float64).T


def losses(
    context: StageContext, lm: Any, tokenizer: Any, texts: Sequence[str], length: int, masking: MaskedTokens | None
) -> Losses:
    """The base's loss of each held-out document that has a token to predict."""
    rows, of = list[list[int]](), list[int]()
    for number, cut in enumerate(document_rows(tokenizer, texts, length, masking is not None)):
        rows += cut
        of += [number] * len(cut)
    check_ids(lm, lm.name_or_path, rows)
    memory = OOMRetry("documents at once", context.warn_alone)
    with memory.reporting(context.bar.phase("held-out documents", len(rows))):
        if masking is None:
            found, predicted = row_nlls(lm, rows, memory), [len(row) - 1 for row in rows]
        else:
            masked = masking.held_out(rows)
            found, predicted = masked_nlls(lm, masked, lm.device, memory), [masking.predicted(row) for row in masked]
    nats, tokens = [0.0] * len(texts), [0] * len(texts)
    for number, count, value in zip(of, predicted, found, strict=True):
        nats[number] += value
        tokens[number] += count
    there = [i for i, text in enumerate(texts) if tokens[i] and text]
    sizes = [len(texts[i].encode(errors="surrogatepass")) for i in there]
    own = tuple(nats[i] for i in there), tuple(tokens[i] for i in there), tuple(sizes)
    return Losses(*own, hidden=masking is not None)


def compared(before: Losses, after: Losses) -> dict[str, Any]:
    """Held-out loss before and after: nats a token, and nats a byte, which further tokens leave comparable; of an
    encoder nats a hidden token.

    ``held_out_change`` is the difference of the last with an interval of 95 %, over documents; empty without any.
    """
    name = "held_out_masked_nll" if after.hidden else "held_out_nll"
    if not before.nats or len(before.nats) != len(after.nats):
        return {f"{name}_before": None, name: None}
    found = change(before.values, after.values, range(len(before.nats)))
    bytewise = {f"{name}_per_byte_before": loss_of(before.values), f"{name}_per_byte": loss_of(after.values)}
    return {
        f"{name}_before": sum(before.nats) / sum(before.tokens),
        name: sum(after.nats) / sum(after.tokens),
        **({} if after.hidden else bytewise),
        "held_out_change": found.loss,
        **({} if found.ci95 is None else {"held_out_change_ci95": list(found.ci95)}),
    }


def outcome(context: StageContext, curve: dict[str, Any], *warnings: str) -> dict[str, Any]:
    """Say what held-out documents showed, as a warning where nothing was learnt; and metrics of it and of ``warnings``
    before it."""
    if not curve:
        return warned(*warnings)
    text, in_vain = f"continued pretraining: {curve['text']}", curve["learnt"] is False
    (context.warn if in_vain else context.say)(text)
    return {"held_out_curves": {"base": curve}, **warned(*warnings, text if in_vain else "")}


def judged(before: Losses, after: Losses, config: ContinuedConfig) -> dict[str, Any]:
    """What held-out documents showed of the training, as of the roles of other stages; empty without any."""
    if not before.nats or len(before.nats) != len(after.nats):
        return {}
    found, last = change(before.values, after.values, range(len(before.nats))), loss_of(after.values)
    text = sentence(
        found,
        before.values,
        after.values,
        step=config.steps,
        steps=config.steps,
        lowest=(config.steps, last),
        key="continued",
        rate=config.learning_rate,
        unit=f" {after.unit}",
        rows="documents",
        amount="steps",
    )
    return {
        "documents": found.prompts,
        "unit": after.unit,
        "before": {"step": 0, "loss": loss_of(before.values)},
        "change": found.loss,
        "change_ci95": None if found.ci95 is None else list(found.ci95),
        "learnt": found.learnt,
        "within_chance": found.within_chance,
        "text": text,
    }
