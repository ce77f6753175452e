"""Training of a whole base on chunks of documents, by default on their next tokens, and its loss on held-out ones.

What pretraining from scratch and continued pretraining share: batches, processes, skipped steps and checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from data.batching import right_pad
from models.backbone.artifacts import naming
from models.backbone.forward import hidden_states, logits_of
from models.backbone.logprobs import token_logprobs
from models.backbone.oom_retry import OOMRetry
from models.backbone.processes import Processes
from models.backbone.seeds import generator
from models.backbone.tensor_files import readable
from stages.safe_points.checkpoints import State
from stages.safe_points.training_state import restore_training, training_tensors
from stages.stage import StageContext
from stages.training.nonfinite import NonFiniteSteps, norm_of


class Objective(Protocol):
    """What a step predicts of its rows."""

    def examples(self, rows: Sequence[Sequence[int]], step: int) -> Sequence[Any]:
        """What is made of all rows of a step, one of each, the same on every process."""

    def predicted(self, row: Any) -> int:
        """Tokens of an example whose loss counts."""

    def loss(self, lm: Any, rows: Sequence[Any], device: torch.device) -> Tensor:
        """Their summed loss, in nats."""


class NextTokens:
    """Each token but the first is predicted from those before it."""

    def examples(self, rows: Sequence[Sequence[int]], step: int) -> Sequence[Sequence[int]]:
        return rows

    def predicted(self, row: Sequence[int]) -> int:
        return len(row) - 1

    def loss(self, lm: Any, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        return nll_sum(lm, rows, device)


NEXT_TOKENS = NextTokens()


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How a base is trained, as far as stages differ in it.

    Attributes:
        key: what messages call the settings.
        name: what messages call the training; ``seed``: what its order is seeded by.
        steps, batch, shuffle, max_skipped_steps: as in the settings.
        optimizers: over all parameters, at their highest rates.
        factor: of the rates in a step, counted from 0.
        clipped: parameters whose gradients' norm is at most ``max_grad_norm``, all together.
        objective: what is predicted.
    """

    key: str
    name: str
    seed: str
    steps: int
    batch: int
    shuffle: bool
    max_skipped_steps: int | None
    optimizers: Sequence[torch.optim.Optimizer]
    factor: Callable[[int], float]
    clipped: Sequence[Tensor]
    max_grad_norm: float = 1.0
    objective: Objective = NEXT_TOKENS


def train(context: StageContext, lm: Any, rows: Sequence[list[int]], how: Steps) -> int:
    """Every process takes its share of each batch of chunks; gradients are summed over global token counts.

    Returns the number of steps that were skipped because loss or gradient was not finite.
    """
    optimizers = how.optimizers
    rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    order = row_stream(len(rows), generator(context.seed, how.seed) if how.shuffle else None)
    parameters = dict(lm.named_parameters())
    nonfinite = NonFiniteSteps(f"{how.key}.max_skipped_steps", how.max_skipped_steps)
    memory = OOMRetry("documents at once", context.warn_alone, context.processes.together)
    saved = context.checkpoints.resume()
    first = 0 if saved is None else saved.numbers["step"]
    if saved is not None:
        restore_training(parameters, optimizers, saved.tensors)
        nonfinite.restore(saved.numbers["skips"])
        memory.limit = saved.own_numbers["limit"]
        for _ in range(first * how.batch):
            next(order)
    for step in range(first, how.steps):
        batch = how.objective.examples([rows[next(order)] for _ in range(how.batch)], step)
        tokens = sum(map(how.objective.predicted, batch))
        mine = [batch[i] for i in context.processes.share(len(batch))]
        loss = memory.run(
            partial(backward, lm, mine, tokens, objective=how.objective),
            max(1, len(mine)),
            undo=lambda: lm.zero_grad(set_to_none=True),
        )
        context.processes.sum_gradients(p for p in lm.parameters())
        value = context.processes.sum(loss).item()
        norm = norm_of(lm.parameters())
        finite = math.isfinite(value) and math.isfinite(norm)
        torch.nn.utils.clip_grad_norm_(how.clipped, how.max_grad_norm)
        factor = how.factor(step)
        for optimizer, base_rates in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            if finite:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        nonfinite.record(finite, f"{how.name}, step {step + 1}", f"loss {value:g}, gradient norm {norm:g}")
        row = {"loss": value, "learning_rate": factor, "tokens": tokens, "skipped_steps": nonfinite.total}
        context.log.write(step + 1, row)
        context.bar.advance(step + 1, {"loss": value}, tokens)
        save = partial(snapshot, parameters, optimizers, nonfinite, step + 1, memory.limit)
        context.checkpoints.safe_point(step + 1, save, step + 1, good=nonfinite.in_a_row == 0)
    lm.eval()
    nonfinite.require_a_step(how.steps, how.name)
    return nonfinite.total


def save_base(context: StageContext, lm: Any, tokenizer: Any) -> None:
    """Write the plain Transformers folder ``model/``, on which later stages stand; the main process does."""
    folder = context.out / "model"
    if context.processes.is_main:
        with naming(folder):
            lm.save_pretrained(folder)
            readable(folder)
            tokenizer.save_pretrained(folder)


def snapshot(
    parameters: dict[str, Tensor], optimizers: Sequence[Any], nonfinite: NonFiniteSteps, done: int, limit: int | None
) -> State:
    """What a checkpoint holds after ``done`` steps; ``limit``: documents that memory has room for at once."""
    numbers = {"step": done, "skips": nonfinite.as_dict()}
    return State(tensors=training_tensors(parameters, optimizers), numbers=numbers, own_numbers={"limit": limit})


def backward(lm: Any, rows: Sequence[Any], tokens: int, size: int, objective: Objective = NEXT_TOKENS) -> Tensor:
    """Loss of the rows (of ``tokens`` in the whole batch), ``size`` of them at a time, and its gradient."""
    total = torch.zeros((), device=lm.device)
    for start in range(0, len(rows), size):
        loss = objective.loss(lm, rows[start : start + size], lm.device) / max(1, tokens)
        loss.backward()
        total = total + loss.detach()
    return total


def row_stream(count: int, g: torch.Generator | None) -> Any:
    """Endless row numbers, each row once a pass: each pass a fresh permutation, or as given without a generator."""
    while True:
        yield from range(count) if g is None else map(int, torch.randperm(count, generator=g))


def nll_sum(lm: Any, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Summed next-token loss () over real tokens, in nats."""
    return -next_token_logprobs(lm, rows, device)[0].sum()


def next_token_logprobs(lm: Any, rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) in nats of all real tokens but the first of each row, and which they are: bool (B, L - 1).

    Args:
        lm: a causal LM.
        rows: B rows of ids, padded to the longest, L.
        device: of the model.
    """
    ids, mask = (t.to(device) for t in right_pad(rows, 0))
    predicted = mask[:, 1:]
    hidden = hidden_states(lm, ids, mask)[:, :-1]
    logprobs, _ = token_logprobs(hidden[predicted], ids[:, 1:][predicted], lambda h: logits_of(lm, h), chunk=2048)
    return logprobs, predicted


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


@torch.no_grad()
def row_nlls(lm: Any, rows: Sequence[Sequence[int]], memory: OOMRetry, batch: int = 64) -> list[float]:
    """Summed next-token loss of each chunk, in nats; ``memory`` says how many are read at once, and hears of each."""
    found = [0.0] * len(rows)

    def add_losses(part: Sequence[int]) -> None:
        logprobs, predicted = next_token_logprobs(lm, [rows[i] for i in part], lm.device)
        where = predicted.nonzero()[:, 0].cpu()
        sums = torch.zeros(len(part), dtype=torch.float64).index_add(0, where, -logprobs.cpu().double())
        for i, nats in zip(part, sums.tolist(), strict=True):
            found[i] = nats

    memory.each(range(len(rows)), batch, add_losses)
    return found
