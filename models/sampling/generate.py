"""Sampling from a role: token ids in, token ids and finish flags out. It knows nothing of text.

Every warper is neutral by construction: tokens are sampled from softmax(logits / T) and nothing else, whatever the
model's ``generation_config`` says. Noise comes in from outside, one uniform number a row and step, so what a row gets
depends neither on its neighbours nor on the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from data.batching import left_pad
from data.common.config import greedy_or_warm
from data.common.errors import UserError
from data.stop_strings import StopStrings
from models.backbone.forward import checkpointing_paused
from models.backbone.oom_retry import OOMRetry
from models.backbone.processes import Processes
from models.backbone.transfers import sent, wide
from models.roles.role_view import RoleView


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Sampled responses: ids include the stop token, or all tokens of the stop string, where there is one; nothing is
    ever written over them."""

    ids: list[list[int]]
    finished: list[bool]  # True = the row ends in a stop token or string that was sampled
    # (B, max_new_tokens) fp32 of the tempered distribution, in nats, 0 after a row's end; None: not computed
    logprobs: Tensor | None = field(default=None, compare=False)
    entropy: Tensor | None = field(default=None, compare=False)
    # one (T, D) a row, its prompt included: what enters some layer below which no adapter is; None: not kept
    prefix_states: Sequence[Tensor] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How responses are sampled.

    Attributes:
        max_new_tokens: longest response, stop token included.
        temperature: divides the logits, in fp32.
        stop_ids: any of these ends a row; it is part of the response.
        pad_id: fills the left of shorter prompts; masked, so that any id will do.
        stop_strings: the token that completes any of these ends a row; it is part of the response, and so are those
            that began the string.
    """

    max_new_tokens: int
    temperature: float = 1.0
    stop_ids: Sequence[int]
    pad_id: int = 0
    stop_strings: StopStrings | None = None

    def __post_init__(self) -> None:
        """Refuse a temperature that logits cannot be divided by.

        Raises:
            UserError: it is neither 0 nor at least ``COOLEST``.
        """
        try:
            greedy_or_warm(self.temperature)
        except ValueError as error:
            raise UserError(f"temperature {self.temperature:g}: {error}") from None

    def end(self, ids: Sequence[int]) -> int | None:
        """Where in a response the token is that ends it; None where none does."""
        stops = set(self.stop_ids)
        places = [next((i for i, token in enumerate(ids) if token in stops), None)]
        places.append(self.stop_strings.end(ids) if self.stop_strings else None)
        return min((place for place in places if place is not None), default=None)


class Ends:
    """Which rows end with the token that they have just been given; knows of each how far a stop string has come.

    Nothing here waits for the device.

    Args:
        params: the ids and strings.
        rows: of the batch.
        device: where tokens are.
    """

    def __init__(self, params: SamplingParams, rows: int, device: torch.device) -> None:
        (self.ids,) = sent([torch.tensor(list(params.stop_ids), dtype=torch.long)], device)
        self.table = _table(params.stop_strings, str(device)) if params.stop_strings else None
        self.states = torch.zeros(rows, dtype=torch.long, device=device)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B,) bool of the next tokens (B,); where strings are searched for, each of a batch is to be given once."""
        done = torch.isin(tokens, self.ids)
        if self.table is None:
            return done
        self.states.copy_(self.table[self.states, tokens.clamp(max=self.table.shape[1] - 1)])
        return done | (self.states == self.table.shape[0] - 1)

    def keep(self, places: Tensor) -> None:
        """Go on with these rows of the batch alone, in this order."""
        self.states = self.states[places]


@lru_cache(maxsize=4)
def _table(strings: StopStrings, device: str) -> Tensor:
    return torch.from_numpy(strings.table).to(device)


class Engine(Protocol):
    """What a rollout needs; inject your own in tests or to sample elsewhere."""

    def __call__(
        self,
        role: RoleView,
        prompts: Sequence[Sequence[int]],
        *,
        params: SamplingParams,
        noise: Tensor | None,
    ) -> Generated: ...


BLOCK = 128  # tokens whose probabilities are added up at once


class Sampled(NamedTuple):
    """One token of each row."""

    tokens: Tensor  # (B,)
    logprobs: Tensor | None  # (B,) of the tempered distribution, in nats, where they are computed
    entropy: Tensor | None  # (B,)


def sample_tokens(logits: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
    """Token ids (B,) by the inverse of the cumulative distribution; argmax where there is no noise."""
    return sample_with_statistics(logits, noise, temperature, with_logprobs=False).tokens


def sample_with_statistics(
    logits: Tensor, noise: Tensor | None, temperature: float, with_logprobs: bool = True
) -> Sampled:
    """Tokens as ``sample_tokens`` gives them, and with ``with_logprobs`` what the distribution says of them."""
    if noise is None and not with_logprobs:
        return Sampled(logits.argmax(-1), None, None)
    tempered = logits.float() if temperature == 1.0 else logits.float() / temperature
    probabilities = torch.softmax(tempered, dim=-1)
    tokens = logits.argmax(-1) if noise is None else inverse_cdf(probabilities, noise)
    if not with_logprobs:
        return Sampled(tokens, None, None)
    logprobs = probabilities.gather(1, tokens[:, None]).log()
    normaliser = tempered.gather(1, tokens[:, None]) - logprobs
    entropy = normaliser.squeeze(1) - torch.linalg.vecdot(probabilities, tempered)
    return Sampled(tokens, logprobs.squeeze(1), entropy)


def inverse_cdf(probabilities: Tensor, noise: Tensor) -> Tensor:
    """One token a row (B,) of (B, V), by the inverse of the cumulative distribution at ``noise`` (B,) in [0, 1).

    In two steps, the block of tokens and then the token, so that most of the vocabulary is added up in fp32 and only
    the sums over blocks in float64 (in fp32 on a GPU). Far cheaper than ``torch.multinomial`` on CPU. Every row stands
    for itself.
    """
    short = -probabilities.shape[-1] % BLOCK
    blocks = torch.nn.functional.pad(probabilities, (0, short)) if short else probabilities
    blocks = blocks.unflatten(1, (-1, BLOCK))
    inside = wide(blocks.sum(-1))
    upto = inside.cumsum(-1)
    point = noise.to(inside)[:, None] * upto[:, -1:]
    # right=True: a token of probability 0 has no interval and cannot be sampled
    block = torch.searchsorted(upto, point, right=True).clamp(max=upto.shape[1] - 1)
    point = point - (upto.gather(1, block) - inside.gather(1, block))
    cumulative = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]]
    cumulative = wide(cumulative).cumsum(-1)
    # the two sums of one block may differ in their last digits
    point = torch.minimum(point, torch.nextafter(cumulative[:, -1:], torch.zeros_like(point)))
    return (block * BLOCK + torch.searchsorted(cumulative, point, right=True)).squeeze(1)


def sampling_noise(rows: int, steps: int, generator: torch.Generator) -> Tensor:
    """Uniform noise (rows, steps) in [0, 1), made on the CPU for every device alike."""
    return torch.rand((rows, steps), generator=generator, dtype=torch.float64)


class CachedEngine:
    """A decoding loop with a key-value cache over the model's own modules, for every Transformers causal LM.

    Rows that have finished leave the batch once they are half of it.

    Args:
        with_logprobs: give log-probabilities and entropies too.
    """

    def __init__(self, with_logprobs: bool = False) -> None:
        self.with_logprobs = with_logprobs

    @torch.no_grad()
    def __call__(
        self,
        role: RoleView,
        prompts: Sequence[Sequence[int]],
        *,
        params: SamplingParams,
        noise: Tensor | None,
    ) -> Generated:
        """Continue ``prompts``.

        Args:
            role: an entered role.
            prompts: B lists of ids, none empty.
            params: how they are sampled.
            noise: (B, max_new_tokens) in [0, 1), or None for greedy decoding.
        """
        device, steps = role.lm.device, params.max_new_tokens
        ids, mask = (t.to(device) for t in left_pad(prompts, params.pad_id))
        ends = Ends(params, len(prompts), device)
        noise = None if noise is None else noise.to(device)
        cache = DynamicCache(config=role.lm.config)
        rows = torch.arange(len(prompts), device=device)  # batch row -> prompt
        out = torch.full((len(prompts), steps), -1, device=device)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        logprobs, entropy = (torch.zeros((len(prompts), steps), device=device) for _ in range(2))
        step_ids = ids
        with checkpointing_paused(role.lm):
            for step in range(steps):
                hidden = role.hidden(step_ids, mask, cache=cache)[:, -1]
                step_noise = None if noise is None else noise[rows, step]
                made = sample_with_statistics(role.logits(hidden), step_noise, params.temperature, self.with_logprobs)
                tokens, live = made.tokens, ~done[rows]
                out[rows[live], step] = tokens[live]
                if made.logprobs is not None and made.entropy is not None:
                    logprobs[rows[live], step], entropy[rows[live], step] = made.logprobs[live], made.entropy[live]
                done[rows[live]] = ends(tokens)[live]
                left = (~done[rows]).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                if len(left) <= len(rows) // 2:
                    # `batch_select_indices` is lacking, or leaves the state out, in layers with a recurrent state
                    cache.reorder_cache(left)  # type: ignore[arg-type]  # any integers will do
                    rows, mask, tokens = rows[left], mask[left], tokens[left]
                    ends.keep(left)
                mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
                step_ids = tokens[:, None]
        result = Generated(ids=[[t for t in row if t >= 0] for row in out.tolist()], finished=done.tolist())
        return replace(result, logprobs=logprobs, entropy=entropy) if self.with_logprobs else result


@torch.profiler.record_function("trivet/sample")
def generate(
    engine: Engine,
    role: RoleView,
    prompts: Sequence[Sequence[int]],
    *,
    params: SamplingParams,
    noise: Tensor | None,
    batch: int,
    memory: OOMRetry | None = None,
) -> Generated:
    """Run an engine over any number of prompts in batches of similar length; results in the prompts' order.

    With ``memory``, batches that do not fit are sampled again as smaller ones.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    ids: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    parts: list[Generated] = []

    def sample(chosen: Sequence[int]) -> None:
        part = engine(
            role,
            [prompts[i] for i in chosen],
            params=params,
            noise=None if noise is None else noise[list(chosen)],
        )
        for i, row, flag in zip(chosen, part.ids, part.finished, strict=True):
            ids[i], finished[i] = row, flag
        parts.append(part)

    if memory is not None:
        memory.each(order, batch, sample)
    else:
        for start in range(0, len(order), batch):
            sample(order[start : start + batch])
    back = sorted(range(len(order)), key=order.__getitem__)
    logprobs, entropy = (_joined([getattr(p, name) for p in parts], back) for name in ("logprobs", "entropy"))
    states = [x for p in parts for x in p.prefix_states or ()]
    prefix_states = [states[i] for i in back] if states and len(states) == len(order) else None
    return Generated(ids=ids, finished=finished, logprobs=logprobs, entropy=entropy, prefix_states=prefix_states)


def gathered(made: Generated, processes: Processes) -> Generated:
    """The responses of all processes, in rank order, of which each has made some or none."""
    if processes.world_size == 1:
        return made
    rows = processes.gather(list(zip(made.ids, made.finished, strict=True)))
    packed = None if made.prefix_states is None else torch.cat(list(made.prefix_states))
    logprobs, entropy, states = (
        _of_all(rows_of, not made.ids, processes) for rows_of in (made.logprobs, made.entropy, packed)
    )
    lengths = processes.gather([len(x) for x in made.prefix_states or ()])
    return Generated(
        ids=[ids for ids, _ in rows],
        finished=[finished for _, finished in rows],
        logprobs=logprobs,
        entropy=entropy,
        prefix_states=None if states is None else states.split(lengths),
    )


def _of_all(rows: Tensor | None, empty: bool, processes: Processes) -> Tensor | None:
    """Rows (B, ...) of all processes, of which some have made none; None where one with responses has no numbers."""
    mine = "empty" if empty else None if rows is None else (tuple(rows.shape[1:]), rows.dtype)
    kinds = [kind for kind in processes.gather([mine]) if kind != "empty"]
    if not kinds or None in kinds:
        return None
    shape, dtype = kinds[0]
    none = torch.zeros((0, *shape), dtype=dtype, device=processes.device)
    return processes.gather_rows(none if empty or rows is None else rows)


def _joined(parts: Sequence[Tensor | None], order: Sequence[int]) -> Tensor | None:
    known = [p for p in parts if p is not None]
    return torch.cat(known)[order] if known and len(known) == len(parts) else None
