"""A ranking in one row gives the scores and gradients that its answers have in rows of their own."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.backbone.forward import body_of
from models.backbone.logprobs import make_rows
from models.backbone.scalar_head import ScalarHead
from models.backbone.settings import AdapterConfig
from models.fast.hidden_states import usable
from models.fast.layout import branch_layout
from reward.model import packed_scores, pooled, pooled_scores
from reward.shared_prompt import branch_states, can_share, shared_states
from tests.conftest import FAMILIES, in_float64, make_base, randomise
from tests.support.fast import KINDS, world_size

QUERIES = [[5, 6, 7, 8]] * 3 + [[9, 10]] * 2 + [[11, 12, 13], [11, 12, 14], [11, 12, 13]]
ANSWERS = [[20, 2], [20, 21, 22, 2], [23] * 9, [24], [25, 26, 2], [27, 2], [28, 29], [30] * 5]
COUNTS = [3, 2, 3]


def plain_states(view, rows, by_modules):
    """(B, L, D) of rows of their own; Gemma's modules have norms in fp32, so there the fast path is what is exact."""
    if by_modules:
        return view.hidden(rows.ids, rows.mask)
    places = rows.mask.flatten().nonzero().squeeze(1)
    packed = view.states(rows.ids, rows.mask, places, rows.packing)
    return (
        packed.new_zeros((rows.mask.numel(), packed.shape[1])).index_copy(0, places, packed).view(*rows.mask.shape, -1)
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["last", "mean", "learned"])
def test_scores_and_gradients_equal_those_of_plain_rows(family, pooling):
    base = make_base(family)
    base.add_role("reward", AdapterConfig(rank=4, alpha=8), head=True)
    if pooling == "learned":
        base.heads["reward"].add_attention().attention.data.normal_(generator=torch.Generator().manual_seed(1))
    randomise(base, "reward", 0, 0.1)
    in_float64(base.lm)
    base.heads.double()
    windows = family in ("mistral", "gemma2")  # which count neighbours in a row
    assert can_share(base.lm) != windows
    rows = make_rows(QUERIES, ANSWERS, 0, "cpu")
    weights = torch.linspace(-1, 1, len(QUERIES))
    with base.training("reward") as trainable, base.role("reward") as view:
        plain = pooled_scores(plain_states(view, rows, by_modules=family != "gemma2"), view.head, rows, pooling)
        (plain * weights).sum().backward()
        expected = {n: p.grad.clone() for n, p in trainable.items()}
        for p in trainable.values():
            p.grad = None
        states, lengths = shared_states(view, rows, COUNTS)
        assert lengths == [len(a) for a in ANSWERS] and len(states) == sum(lengths)
        if windows:
            assert view.decoder() is not None
        found = packed_scores(states, view.head, lengths, pooling)
        (found * weights).sum().backward()
        assert_close(found, plain, atol=1e-9 * max(1.0, plain.abs().max().item()), rtol=1e-9)
        for name, p in trainable.items():
            assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-9 * max(1.0, expected[name].abs().max().item()))


@pytest.mark.parametrize("pooling", ["last", "mean", "learned"])
def test_scores_of_packed_states_are_those_of_each_response_by_itself(pooling):
    """Values and gradients to 1e-6 in fp32; by hand for the mean; with an empty response, which scores 0, as well."""
    g = torch.Generator().manual_seed(0)
    head = ScalarHead(6, g)
    if pooling == "learned":
        head.add_attention().attention.data.normal_(generator=g)
    for lengths in ([3, 1, 7, 2], [4], [2, 0, 3]):
        if pooling == "last" and 0 in lengths:
            continue
        states = torch.randn(sum(lengths), 6, generator=g)
        results = []
        for packed in (True, False):
            head.zero_grad()
            mine = states.clone().requires_grad_()
            if packed:
                scores = packed_scores(mine, head, lengths, pooling)
            else:
                none = torch.zeros(())
                scores = torch.stack([pooled(s, head, pooling) if len(s) else none for s in mine.split(lengths)])
            (scores * torch.linspace(1, 2, len(lengths))).sum().backward()
            results.append([scores, mine.grad, *(p.grad for p in head.parameters())])
        for found, expected in zip(*results, strict=True):
            assert_close(found, expected, atol=1e-6, rtol=1e-6)
    head.weight.data[:] = torch.tensor([1.0, 2, 0, 0, 0, 0])
    states = torch.tensor([[1.0, 1, 9, 9, 9, 9], [3, 0, 9, 9, 9, 9], [0, 5, 9, 9, 9, 9]])
    if pooling == "mean":
        assert packed_scores(states, head, [2, 1], pooling).tolist() == [3.0, 10.0]


def test_the_gradient_of_a_ranking_makes_no_copy_of_all_states_a_response():
    """Twice as many responses make twice as many numbers, not four times."""
    made = []

    class Numbers(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            made[-1] += sum(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    base = make_base("llama")
    base.add_role("reward", AdapterConfig(rank=2), head=True, seed=0)
    with base.training("reward"), base.role("reward") as view:
        for count in (64, 128):
            rows = make_rows([[5, 6, 7]] * count, [[8, 9, 10, 11]] * count, 0, "cpu")
            states, lengths = shared_states(view, rows, [count])
            scores = packed_scores(states, view.head, lengths, "mean").sum()
            made.append(0)
            with Numbers():
                scores.backward()
    assert made[1] < 2.2 * made[0], made


def test_a_window_or_a_body_without_masks_of_four_dimensions_does_not_share(monkeypatch):
    """GPT-Neo's window has a name of its own; a body that refuses the mask is no failure of the stage."""
    lm = make_base("llama").lm
    assert can_share(lm)
    with monkeypatch.context() as patch:
        patch.setattr(lm.config, "window_size", 256, raising=False)
        assert not can_share(lm)

    def refuse(*_, **__):
        raise ValueError("attention_mask should be of shape (B, L)")

    handle = body_of(lm).register_forward_pre_hook(refuse)
    assert not can_share(lm)
    handle.remove()
    assert can_share(lm)


def test_recomputation_keeps_less_and_changes_no_gradient():
    """With gradient checkpointing the fast path keeps each layer's input alone, in the reward stage too."""
    from models.backbone.forward import set_gradient_checkpointing
    from models.fast import hidden_states as fast_body

    base = make_base("llama", num_hidden_layers=3)
    base.add_role("reward", AdapterConfig(rank=2), head=True, seed=0)
    randomise(base, "reward", seed=1)
    rows = make_rows([[5, 6, 7]] * 2, [[8, 9, 10], [11, 12]], 0, "cpu")
    found, kept = [], []
    for checkpointing in (False, True):
        set_gradient_checkpointing(base.lm, checkpointing)
        with base.training("reward") as tensors, base.role("reward") as view:
            states, _ = shared_states(view, rows, [2])
            node = states.grad_fn
            while node is not None and not hasattr(node, "saved_layers"):
                node = node.next_functions[-1][0] or node.next_functions[0][0]
            assert isinstance(node.saved_layers[0], fast_body.Saved)
            kept.append([saved.gu is not None for saved in node.saved_layers[:-1]])
            states.square().sum().backward()
            found.append({n: p.grad.clone() for n, p in tensors.items() if p.grad is not None})
        set_gradient_checkpointing(base.lm, False)
    assert kept == [[True] * 3, [False] * 3] and found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_no_pass_makes_a_mask_of_every_row(family):
    """No operation gives a tensor as wide and as high as a tree or a row, but one mask that all rows have in common."""
    prompt, branches = list(range(5, 18)), [[20 + i] * n for i, n in enumerate((7, 11, 4))]
    tree, row = 13 + 22, 13 + 11
    shapes = []

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            shapes.extend(tuple(t.shape) for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    base = make_base(family, **({"sliding_window": 8} if family == "mistral" else {}))
    base.add_role("reward", AdapterConfig(rank=2), head=True, seed=0)
    with base.training("reward"), base.role("reward") as view, Shapes():
        branch_states(view.lm, [(prompt, branches)] * 2, view.decoder()).square().sum().backward()
    squares = [s for s in shapes if s[-2:] in {(tree, tree), (row, row), (row - 13, row)}]
    assert (2, tree) in {s[:2] for s in shapes}  # it was watched
    assert squares and all(s.numel() == (row - 13) * row for s in map(torch.Size, squares)), squares


def test_a_layout_of_branches_names_each_tokens_cells():
    """By hand: prompts of 2 and 1 tokens with branches of (1, 2) and (3,), so rows of attention 3, 4 and 4 wide."""
    layout = branch_layout([(2, [1, 2]), (1, [3])], "cpu")
    assert layout.shape == (3, 4)
    assert layout.positions.tolist() == [0, 1, 2, 2, 3, 0, 1, 2, 3]
    assert layout.cells.tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    x = torch.arange(1.0, 10.0)[:, None, None]
    rows = layout.rows_of(x)[:, 0, :, 0].tolist()
    assert rows[0][:3] == [1, 2, 3] and rows[1] == [1, 2, 4, 5] and rows[2] == [6, 7, 8, 9]
    assert layout.gathered(layout.grid(torch.ones_like(x))).flatten().tolist() == [1.0] * 9
    ones = torch.ones(3, 1, 4, 1)
    ones[0, 0, 3] = 0.0  # where there is no token
    assert layout.gathered(ones).flatten().tolist() == [2, 2, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_base_shares_prompts_exactly(kind):
    """States and gradients are those of rows of their own, with windows and soft caps too, to 1e-10 in float64."""
    base = world_size(kind, dtype=torch.float64)
    in_float64(base.lm)
    trees = [([5, 6, 7, 8, 9], [[20, 21], [22] * 6, [23]]), ([11, 12], [[24, 25, 26], [27, 28, 29, 30]])]
    alone = [(p + b, []) for p, branches in trees for b in branches]
    with base.training("policy") as trained, base.role("policy") as view:

        def made(rows):
            for p in trained.values():
                p.grad = None
            return branch_states(view.lm, rows, view.decoder())

        expected = [
            row[len(p) : len(p) + len(b)]
            for row, (p, b) in zip(made(alone), [(p, b) for p, branches in trees for b in branches], strict=True)
        ]
        torch.cat(expected).sin().sum().backward()
        gradients = {n: p.grad.clone() for n, p in trained.items() if p.grad is not None}
        found = []
        for row, (prompt, branches) in zip(made(trees), trees, strict=True):
            found += row[len(prompt) : len(prompt) + sum(map(len, branches))].split([len(b) for b in branches])
        torch.cat(found).sin().sum().backward()
        assert_close(torch.cat(found), torch.cat(expected), atol=1e-10, rtol=1e-10)
        assert gradients
        for name, gradient in gradients.items():
            assert_close(trained[name].grad, gradient, atol=1e-10, rtol=1e-9)


def test_rankings_without_a_common_prompt_or_with_one_response_are_trees_too():
    lm = in_float64(make_base("llama").lm)
    decoder = usable(lm)
    with torch.no_grad():
        for rows in ([([], [[5, 6], [7]])], [([5, 6], [])], [([5], [[6, 7]]), ([8, 9], [[4], [3, 6], [7]])]):
            found, expected = branch_states(lm, rows, decoder), branch_states(lm, rows)
            for i, (prompt, branches) in enumerate(rows):
                size = len(prompt) + sum(map(len, branches))
                assert_close(found[i, :size], expected[i, :size], atol=1e-10, rtol=1e-10)
