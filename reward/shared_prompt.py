"""Scores of rankings with each prompt computed once: one row holds the prompt and, side by side, its responses.

Positions restart after the prompt, and a response sees the prompt and itself only, so every token has the states that
it has in a row of its own: by the fast path in rows of attention (``branch_layout``), by the modules behind a mask of
four dimensions. Knows nothing of losses or trainers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.batching import length_bucketed, right_pad
from models.backbone.encoders import is_encoder
from models.backbone.forward import body_of, kept_for_backward, offloads, precision, recomputes, takes_positions
from models.backbone.logprobs import Rows
from models.backbone.soft_prompts import active_prompt
from models.backbone.transfers import sent
from models.fast import hidden_states as fast_body
from models.fast.hidden_states import usable
from models.fast.layout import branch_layout
from models.fast.weights import Decoder
from models.roles.response_loss import cells_worth_a_pass
from models.roles.role_view import RoleView

WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "attention_window_size", "local_attention")


Tree = tuple[list[int], list[list[int]]]
"""A prompt and the branches behind it, as ids."""


def branch_states(lm: Any, rows: Sequence[Tree], decoder: Decoder | None = None) -> Tensor:
    """Last hidden states (B, L, D) of rows ``prompt, branch, branch, ...``, right-padded; by ``decoder``, if given."""
    if decoder is None:
        return _states_of_modules(lm, rows)
    packed = _states_of_decoder(decoder, lm, rows)
    return pad_sequence(packed.split([size_of(row) for row in rows]), batch_first=True)


def size_of(tree: Tree) -> int:
    """Tokens of a prompt and of its branches."""
    prompt, branches = tree
    return len(prompt) + sum(map(len, branches))


def _states_of_modules(lm: Any, rows: Sequence[Tree]) -> Tensor:
    """(B, L, D), behind a mask of four dimensions."""
    ids, _ = right_pad([[*p, *(t for b in branches for t in b)] for p, branches in rows], 0)
    positions, segments = torch.zeros_like(ids), torch.full_like(ids, -1)
    for i, (prompt, branches) in enumerate(rows):
        at = len(prompt)
        positions[i, :at], segments[i, :at] = torch.arange(at), 0
        for number, branch in enumerate(branches, start=1):
            positions[i, at : at + len(branch)] = torch.arange(len(prompt), len(prompt) + len(branch))
            segments[i, at : at + len(branch)] = number
            at += len(branch)
    ids, positions, segments = sent([ids, positions, segments], lm.device)
    same = segments[:, :, None] == segments[:, None, :]  # padding sees padding, so that no row of the mask is empty
    sees = (same | (segments[:, None, :] == 0)).tril()
    dtype = getattr(lm, "compute_dtype", None) or lm.get_input_embeddings().weight.dtype
    mask = torch.zeros(sees.shape, dtype=dtype, device=ids.device)
    mask = mask.masked_fill(~sees, torch.finfo(dtype).min)[:, None]
    with precision(lm), kept_for_backward(lm):
        out = body_of(lm)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return out.last_hidden_state


def _states_of_decoder(decoder: Decoder, lm: Any, rows: Sequence[Tree]) -> Tensor:
    """(T, D), packed: of the tokens of one row after another."""
    layout = branch_layout([(len(p), [len(b) for b in branches]) for p, branches in rows], lm.device)
    ids = torch.tensor([t for p, branches in rows for part in (p, *branches) for t in part], dtype=torch.long)
    (tokens,) = sent([ids], lm.device)
    return fast_body.states(decoder, tokens, layout, recompute=recomputes(lm), offload=offloads(lm))


def shared_states(view: RoleView, rows: Rows, counts: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Last hidden states (T, D) of the responses' own tokens, packed in the order of ``rows``, and tokens of each.

    ``counts`` responses follow each other in a ranking.
    By the fast path where it can compute this pass; by the modules only of an architecture that ``can_share``.
    """
    decoder = usable(view.lm, view.fast)
    lengths, queries = rows.lengths.tolist(), rows.query_lengths.tolist()
    whole = [ids[:n] for ids, n in zip(rows.ids.tolist(), lengths, strict=True)]
    trees: list[Tree] = []
    first, at = [], 0
    for count in counts:
        mine = range(at, at + count)
        shared = common_length([whole[i][: queries[i]] for i in mine])
        trees.append((whole[at][:shared], [whole[i][shared:] for i in mine]))
        first.append(at)
        at += count
    out: list[Tensor] = [torch.empty(0)] * at
    for group in length_bucketed([size_of(tree) for tree in trees], cells_worth_a_pass(view.lm)):
        chosen = [trees[g] for g in group]
        if decoder is not None:
            states, width = _states_of_decoder(decoder, view.lm, chosen), None
        else:
            states = _states_of_modules(view.lm, chosen)
            states, width = states.flatten(0, 1), states.shape[1]
        _place(out, states, width, [(first[g], trees[g]) for g in group], queries)
    return torch.cat(out), [n - q for n, q in zip(lengths, queries, strict=True)]


def _place(
    out: list[Tensor], states: Tensor, width: int | None, trees: Sequence[tuple[int, Tree]], queries: Sequence[int]
) -> None:
    """Put the states of each response into its place of ``out``.

    One split, whose gradient is one concatenation: each slice by itself has one as large as all ``states``.

    Args:
        out: to be filled, one a response.
        states: (T, D) of one tree after another.
        width: cells of each tree, padding behind it included; None: there is no padding.
        trees: the number of each tree's first response, and the tree.
        queries: tokens of each response's query.
    """
    sizes: list[int] = []
    for begin, tree in trees:
        prompt, branches = tree
        sizes.append(len(prompt))
        for i, branch in enumerate(branches, start=begin):
            own = queries[i] - len(prompt)  # of a query that is not the same as the others
            sizes += [own, len(branch) - own]
        sizes.append(0 if width is None else width - size_of(tree))
    parts = iter(states.split(sizes))
    for begin, (_, branches) in trees:
        next(parts)
        for i in range(begin, begin + len(branches)):
            next(parts)
            out[i] = next(parts)
        next(parts)


def common_length(rows: Sequence[list[int]]) -> int:
    """How many leading ids all rows have in common."""
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


@torch.no_grad()
def can_share(lm: Any) -> bool:
    """Whether the modules give a branch the states that it has in a row of its own (tried on a few tokens).

    Needs explicit positions. Windows and chunks of attention count neighbours in the row, so such models do not share
    but by the fast path.
    """
    config = lm.config.get_text_config()
    if is_encoder(lm):  # whose prompts see the responses
        return False
    if active_prompt(lm) is not None:  # whose virtual tokens these passes do not have
        return False
    if not takes_positions(body_of(lm)) or any(getattr(config, name, None) for name in WINDOWS):
        return False
    prompt, branches = [3, 4, 5], [[6, 7], [8, 9, 5, 4]]
    size = lm.get_input_embeddings().weight.shape[0]
    if size < 10:
        return False
    try:
        together, at = branch_states(lm, [(prompt, branches)])[0], len(prompt)
    except (RuntimeError, ValueError):  # no masks of four dimensions here
        return False
    for branch in branches:
        alone = branch_states(lm, [(prompt + branch, [])])[0][len(prompt) :]
        here = together[at : at + len(branch)]
        exact = alone.dtype in (torch.float32, torch.float64) and getattr(lm, "compute_dtype", None) is None
        tolerance = 1e-4 if exact else 5e-2
        if (here - alone).abs().max() > tolerance * max(1.0, alone.abs().max().item()):
            return False
        at += len(branch)
    return True
