"""A decoding loop of our own for Llama-like decoders.

Key-value storage is allocated once, the adapter is added into copies of the weights for the duration, a prompt that
occurs several times is read once, and a row that finishes gives its place to the last one, so that no step computes
rows that are done. What enters one layer can be kept for those who would compute it again. Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batching import right_pad
from models.backbone.transfers import sent
from models.fast.attention import capped_weights
from models.fast.layers import added, embed, gate_and_up, gated, heads_of, rms_norm, start
from models.fast.layers import forward as layer_forward
from models.fast.layout import Layout, layout_of
from models.fast.logprobs import block_logits, output_weight
from models.fast.matmul import pack
from models.fast.products import Products, product_dtype, products_of
from models.fast.weights import Decoder
from models.roles.role_view import RoleView
from models.sampling.generate import Ends, Generated, SamplingParams, sample_with_statistics

MIN_GROWTH = 32  # columns
NOTHING = -1  # where no token is written


@dataclass(slots=True, kw_only=True)
class Storage:
    """Keys and values of every layer. Prompts end at column P, so all rows write their next token to one column.

    A CPU reads keys twice as fast where no gap is between those of two heads, so there the columns in use lie close
    together in the memory of all, and are allocated anew when they are full.
    """

    memory: Tensor  # (layers, 2, B * H' * (P + R) * d), one block, which is whole again when it is given back
    both: Tensor  # (layers, 2, B, H', W, d) the W columns in use; a part of ``memory``; finite
    hidden: Tensor  # (B, 1, 1, P + R) added to the scores: -inf before a prompt begins and where nothing is written yet
    prefix_states: Tensor | None  # (B, P + R, D) what enters one layer, by prompt and position; rows of it do not move

    def move(self, source: int, target: int) -> None:
        """Row ``source`` takes the place of row ``target``."""
        self.both[:, :, target] = self.both[:, :, source]
        self.hidden[target] = self.hidden[source]

    def as_columns(self, columns: int) -> Tensor:
        """The memory as (layers, 2, B, H', columns, d); what stands in it is not moved."""
        rows, heads, _, size = self.both.shape[2:]
        return self.memory[:, :, : rows * heads * columns * size].unflatten(2, (rows, heads, columns, size))

    def open_column(self, column: int, rows: int) -> None:
        """Make room for one more token of the first ``rows`` rows, which from now on see it."""
        used, whole = self.both.shape[4], self.hidden.shape[3]
        if column >= used:
            wider = self.as_columns(min(whole, used + max(MIN_GROWTH, used // 5)))
            for old, new in zip(self.both.flatten(0, 1), wider.flatten(0, 1), strict=True):
                new[:rows, :, :used] = old[:rows].clone()  # both are one memory
                new[:rows, :, used:] = 0.0
            self.both = wider
        self.hidden[:rows, :, :, column] = 0.0


class Decoding:
    """Rows on their way: what they have written, the storage they read from, and the states that come next.

    After every token rows that are done are dropped. What a row writes after its end is cut off at last.

    Args:
        depth: the layer whose input is kept for every token; 0: none.
        with_logprobs: log-probabilities and entropies are kept too.
    """

    def __init__(
        self,
        role: RoleView,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        depth: int,
        with_logprobs: bool,
    ) -> None:
        self.role, self.decoder, self.prompts, self.params, self.depth = role, decoder, prompts, params, depth
        self.products, output = products_of(decoder, keep=len(prompts)), output_weight(role.lm)
        self.output = None if output is None else output_of(output, len(prompts))
        device, room = role.lm.device, params.max_new_tokens
        lengths = torch.tensor([len(p) for p in prompts], dtype=torch.long)
        (self.lengths,) = sent([lengths], device)
        self.ends = Ends(params, len(prompts), device)  # by place
        self.hidden, self.storage = read_prompts(decoder, self.products, prompts, room, device, depth)
        self.width = max(map(len, prompts), default=0)
        self.at = torch.arange(len(prompts), device=device)  # place in the batch -> prompt
        self.out = torch.full((len(prompts), room), NOTHING, device=device)
        self.done = torch.zeros(len(prompts), dtype=torch.bool, device=device)  # by place
        self.statistics = [torch.zeros((len(prompts), room), device=device) for _ in range(2 * with_logprobs)]

    def run(self, noise: Tensor | None) -> Generated:
        """All tokens; ``noise`` (B, R) in [0, 1), or None for the likeliest ones."""
        for step in range(self.params.max_new_tokens):
            tokens = self.sample(step, None if noise is None else noise[self.at, step])
            if not self.read(step, tokens):
                break
        return self.generated()

    def sample(self, step: int | Tensor, noise: Tensor | None) -> Tensor:
        """The next token (B,) of each row that is not dropped; ``step``: a number, or (1,) on the device."""
        logits = self.role.logits(self.hidden) if self.output is None else block_logits(self.hidden, self.output)
        made = sample_with_statistics(logits, noise, self.params.temperature, bool(self.statistics))
        for into, found in zip(self.statistics, (made.logprobs, made.entropy), strict=False):
            assert found is not None
            into[self.at, step] = found
        self.out[self.at, step] = made.tokens
        self.done |= self.ends(made.tokens)
        return made.tokens

    def read(self, step: int, tokens: Tensor) -> bool:
        """Read the tokens (B,) of a step and drop rows that are done; False where nothing comes after it."""
        storage, column, last = self.storage, self.width + step, step + 1 == self.params.max_new_tokens
        done = [] if last else self.done.tolist()
        last = last or (bool(done) and all(done))
        if last and storage.prefix_states is None:
            return False
        storage.open_column(column, len(tokens))
        x, positions = embed(self.decoder, tokens), self.lengths[self.at] + step
        if storage.prefix_states is not None:  # of the tokens that end rows as well
            x = self._layers(range(self.depth), x, positions, column)
            storage.prefix_states[self.at, positions] = x
        if last:
            return False
        if any(done):
            places = torch.tensor(close_ranks(storage, done))
            self.at, self.done, x, positions = (t[places] for t in (self.at, self.done, x, positions))
            self.ends.keep(places)
        x = self._layers(range(self.depth, len(self.decoder.layers)), x, positions, column)
        self.hidden = rms_norm(x, self.decoder.norm, self.decoder.epsilon)
        return True

    def _layers(self, which: range, x: Tensor, positions: Tensor, column: int) -> Tensor:
        columns = self.storage.both.shape[4]
        return decode_layers(self.decoder, self.products, self.storage, which, x, positions, column, columns)

    def generated(self) -> Generated:
        """All rows, in the order of their prompts."""
        ids, finished = [], []
        for row in ([t for t in row if t != NOTHING] for row in self.out.tolist()):
            end = self.params.end(row)
            ids.append(row if end is None else row[: end + 1])
            finished.append(end is not None)
        logprobs, entropy = self._statistics(ids) if self.statistics else (None, None)
        states = None
        if self.storage.prefix_states is not None:
            rows = zip(self.storage.prefix_states, self.prompts, ids, strict=True)
            states = [x[: len(p) + len(r)] for x, p, r in rows]
        return Generated(ids=ids, finished=finished, logprobs=logprobs, entropy=entropy, prefix_states=states)

    def _statistics(self, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities and entropies (B, R), zero behind a row's end."""
        (lengths,) = sent([torch.tensor([len(row) for row in ids], dtype=torch.long)], self.out.device)
        behind = torch.arange(self.out.shape[1], device=self.out.device) >= lengths[:, None]
        return [t.masked_fill_(behind, 0.0) for t in self.statistics]


def output_of(weight: Tensor, rows: int) -> Tensor:
    """The output layer as a loop over ``rows`` rows reads it; packed in bf16 alone, where a copy is half as large."""
    weight = weight.to(product_dtype(weight))
    return pack(weight, rows) if weight.dtype == torch.bfloat16 else weight


def close_ranks(storage: Storage, done: Sequence[bool]) -> list[int]:
    """Unfinished rows, moved together to the front: their places before."""
    places, last = list(range(len(done))), len(done) - 1
    for place in range(len(done)):
        while last >= place and done[last]:
            last -= 1
        if last <= place:
            break
        if done[place]:
            storage.move(last, place)
            places[place] = last
            last -= 1
    return places[: last + 1]


def read_prompts(
    decoder: Decoder,
    products: Products,
    prompts: Sequence[Sequence[int]],
    room: int,
    device: torch.device,
    depth: int = 0,
) -> tuple[Tensor, Storage]:
    """States (B, D) that predict each row's first new token, and the storage with all prompts in it.

    ``depth``: the layer whose input is kept; 0: none.
    """
    numbers: dict[tuple[int, ...], int] = {}
    which = torch.tensor([numbers.setdefault(tuple(p), len(numbers)) for p in prompts], dtype=torch.long)
    ids, mask = right_pad([list(p) for p in numbers], 0)
    cells, lengths, width = mask.flatten().nonzero().squeeze(1), mask.sum(1), mask.shape[1]
    ids, cells, lengths, which = sent([ids.flatten()[cells], cells, lengths, which], device)
    layout = layout_of(mask, cells)
    last = lengths.cumsum(0) - 1  # flat positions of last tokens
    # a prompt's tokens move right, so that all end in one column
    ends = cells + (width - lengths)[torch.div(cells, max(1, width), rounding_mode="floor")]
    aligned = Layout(positions=layout.positions, cells=ends, shape=layout.shape)
    storage = new_storage(decoder, products.dtype, len(prompts), width, room)
    before = torch.arange(width, device=device) < width - lengths[which][:, None]
    storage.hidden[:, 0, 0, :width].masked_fill_(before, -torch.inf)
    run, x = start(decoder, layout, products), embed(decoder, ids)
    if depth:
        storage.prefix_states = x.new_empty((len(prompts), width + room, x.shape[1]))
    for index in range(len(decoder.layers)):
        if index == depth and storage.prefix_states is not None:
            storage.prefix_states[:, :width] = layout.grid(x[:, None])[which, 0]
        final = index + 1 == len(decoder.layers)

        def keep(k: Tensor, v: Tensor, into: Tensor = storage.both[index]) -> None:
            for x, place in zip((k, v), into, strict=True):
                place[:, :, :width] = aligned.grid(x)[which]

        x = layer_forward(run, index, x, last if final else None, None, keep)
    return rms_norm(x, decoder.norm, decoder.epsilon)[which], storage


def new_storage(decoder: Decoder, dtype: torch.dtype, rows: int, width: int, room: int) -> Storage:
    """Empty, for keys and values of ``dtype``, prompts that end at column ``width`` and ``room`` more tokens."""
    each = rows * decoder.key_heads * decoder.head_size
    memory = decoder.norm.new_empty((len(decoder.layers), 2, each * (width + room)), dtype=dtype)
    hidden = memory.new_zeros((rows, 1, 1, width + room))
    hidden[..., width:] = -torch.inf
    close = memory.device.type == "cpu"
    columns = min(width + room, width + MIN_GROWTH) if close else width + room
    both = memory[:, :, : each * columns].unflatten(2, (rows, decoder.key_heads, columns, decoder.head_size))
    both[:, :, :, :, width:] = 0.0
    return Storage(memory=memory, both=both, hidden=hidden, prefix_states=None)


@dataclass(slots=True, kw_only=True)
class Past:
    """What one step of decoding writes to the storage and reads from it; see ``decode_layers``."""

    storage: Storage
    rows: int
    column: int | Tensor
    columns: int
    masks: dict[int, Tensor] = field(default_factory=dict)  # by window, where the column is on the device

    def write(self, index: int, k: Tensor, v: Tensor) -> None:
        """Keys and values (B, H', d) of a layer."""
        for x, place in zip((k, v), self.storage.both[index, :, : self.rows], strict=True):
            if isinstance(self.column, int):
                place[:, :, self.column] = x
            else:
                place.index_copy_(2, self.column, x[:, :, None])

    def seen(self, index: int, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (B, H', W, d) of a layer, and what is added to their scores (B, 1, 1, W)."""
        first = 0
        if window is not None and isinstance(self.column, int):
            first = max(0, self.column + 1 - window)
        keys, values = self.storage.both[index, :, : self.rows, :, first : self.columns]
        hidden = self.storage.hidden[: self.rows, :, :, first : self.columns]
        if window is None or isinstance(self.column, int) or window >= self.columns:
            return keys, values, hidden
        if window not in self.masks:
            before = torch.arange(self.columns, device=hidden.device) <= self.column - window
            self.masks[window] = hidden.masked_fill(before, -torch.inf)
        return keys, values, self.masks[window]


def decode_layers(
    decoder: Decoder,
    products: Products,
    storage: Storage,
    which: range,
    x: Tensor,
    positions: Tensor,
    column: int | Tensor,
    columns: int,
) -> Tensor:
    """Some layers on one more token of each row, whose keys and values go to ``column`` of the storage.

    Args:
        which: indices of layers, one after another.
        x: (B, D) what enters the first of them.
        positions: (B,) each token's place in its own row.
        column: the same for all rows: a number, or (1,) on the device, where the host is not to know it.
        columns: so many, from the first, are read.

    Returns:
        (B, D) what leaves the last of them.
    """
    angles = decoder.angles(positions)
    count, groups = len(x), decoder.heads // decoder.key_heads
    past = Past(storage=storage, rows=count, column=column, columns=columns)
    for index in which:
        layer = decoder.layers[index]
        qkv = products(index, "attention", layer.attention, rms_norm(x, layer.norm, decoder.epsilon))
        q, k, v = heads_of(decoder, layer, qkv, angles)
        past.write(index, k, v)
        # the query heads of one key head stand where attention expects positions
        q = q.reshape(count, decoder.key_heads, groups, decoder.head_size)
        mixed = attend_to_past(q, *past.seen(index, layer.window), decoder.attention_scale, decoder.soft_cap)
        x = added(decoder, x, products(index, "output", layer.output, mixed.reshape(count, -1)), layer.post_norm)
        gu, wide = gate_and_up(decoder, products, index, x), products.wide(index, "down", layer.down, count)
        fed = products(index, "down", layer.down, gated(decoder, gu, wide))
        x = added(decoder, x, fed, layer.second_post_norm)
    return x


def attend_to_past(
    q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, scale: float | None = None, soft_cap: float | None = None
) -> Tensor:
    """Attention (B, H', G, d) of one token a row and query head.

    Args:
        q: (B, H', G, d).
        keys, values: (B, H', W, d).
        hidden: (B, 1, 1, W) added to the scores.
        scale: times the scores; None: d ** -0.5.
        soft_cap: of the scores; None: there is none.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if soft_cap is not None:
        weights = torch.softmax(capped_weights(q @ keys.transpose(2, 3), scale, soft_cap) + hidden, dim=-1)
        return weights.to(values.dtype) @ values
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=hidden, scale=scale)
    if q.dtype == torch.bfloat16:  # a score in bf16 would have three digits
        q, keys = q.float(), keys.float()
    scores = torch.bmm((q * scale).flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
    weights = torch.softmax(scores.unflatten(0, q.shape[:2]).add_(hidden), dim=-1).to(values.dtype)
    return torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).unflatten(0, q.shape[:2])
