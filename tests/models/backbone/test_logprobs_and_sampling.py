"""Log-probabilities and sampling: exact values, padding, positions, neutral warpers, stop tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from data.batching import left_pad
from models.backbone.logprobs import make_rows, scatter, token_logprobs
from models.sampling.generate import CachedEngine, SamplingParams, generate, sample_tokens, sampling_noise
from tests.conftest import ADAPTER, FAMILIES, make_base, randomise

PROMPTS = [[5, 9], [7, 8, 9, 10, 11], [12, 13, 2, 14, 15, 16, 17, 18, 19]]  # one with a stop id inside


def run(base, role="base", prompts=PROMPTS, noise=None, steps=8, stops=(2,), temperature=1.0, batch=99):
    with base.role(role) as view:
        return generate(
            CachedEngine(),
            view,
            prompts,
            noise=noise,
            batch=batch,
            params=SamplingParams(max_new_tokens=steps, temperature=temperature, stop_ids=stops, pad_id=0),
        )


def logprobs(base, queries, responses, temperature=1.0, role="base"):
    rows = make_rows(queries, responses, 0, "cpu")
    with base.role(role) as view:
        hidden = view.hidden(rows.ids, rows.mask).flatten(0, 1)[rows.response_positions()]
        return token_logprobs(hidden, rows.targets(), view.logits, temperature)


def test_response_positions_predict_each_response_token():
    """L1: query of 3 and response of 2 at width 6."""
    rows = make_rows([[5, 6, 7], [8]], [[9, 2], [10, 11, 12, 2, 3]], 0, "cpu")
    assert rows.ids.shape == (2, 6)
    assert rows.response_positions().tolist() == [2, 3, 6, 7, 8, 9, 10]
    assert rows.targets().tolist() == [9, 2, 10, 11, 12, 2, 3]
    assert scatter(torch.arange(7.0), rows.response_lengths, 5).tolist() == [[0, 1, 0, 0, 0], [2, 3, 4, 5, 6]]
    assert rows.lengths.tolist() == [5, 6]
    with pytest.raises(ValueError, match="query"):
        make_rows([[]], [[1]], 0, "cpu")


@pytest.mark.parametrize(("chunk", "temperature"), [(1, 0.7), (3, 2.5), (512, 0.7)])
def test_logprobs_and_entropy_are_those_of_the_tempered_softmax(base, chunk, temperature):
    """L1, L3, R5, against the model's own full logits."""
    queries, responses = PROMPTS, [[20, 21, 2], [0, 23], [24, 2, 25, 26]]  # the pad id as a sampled token
    rows = make_rows(queries, responses, 0, "cpu")
    with base.role("base") as view, torch.no_grad():
        hidden = view.hidden(rows.ids, rows.mask).flatten(0, 1)[rows.response_positions()]
        found, entropy = token_logprobs(hidden, rows.targets(), view.logits, temperature, chunk)
        expected, spread = [], []
        for q, r in zip(queries, responses, strict=True):
            full = view.lm(input_ids=torch.tensor([q + r]), use_cache=False).logits[0].double() / temperature
            table = torch.log_softmax(full, -1)
            expected += [table[len(q) - 1 + i, t] for i, t in enumerate(r)]
            spread += [-(table[len(q) - 1 + i].exp() * table[len(q) - 1 + i]).sum() for i in range(len(r))]
    assert_close(found.double(), torch.stack(expected), atol=2e-5, rtol=1e-5)
    assert_close(entropy.double(), torch.stack(spread), atol=2e-5, rtol=1e-5)
    assert found.dtype == torch.float32


def test_the_default_temperature_is_1_and_no_tokens_give_no_values():
    table = torch.log_softmax(torch.arange(6.0)[None], -1)
    found, _ = token_logprobs(torch.zeros(1, 4), torch.tensor([5]), lambda h: torch.arange(6.0)[None])
    assert_close(found, table[:, 5])
    logprobs, entropy = token_logprobs(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), lambda h: h)
    assert logprobs.shape == entropy.shape == (0,)


def test_entropy_has_its_gradient_unless_it_is_only_measured():
    """O5: an entropy bonus that somebody adds without more ado works."""
    states = torch.ones(1, 3, requires_grad=True)
    tokens, plain = torch.tensor([1]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    _, entropy = token_logprobs(states, tokens, lambda h: h @ plain.T)
    found = torch.autograd.grad(entropy.sum(), states)[0]
    table = torch.log_softmax(states @ plain.T, -1)
    assert_close(found, torch.autograd.grad(-(table.exp() * table).sum(), states)[0])
    _, entropy = token_logprobs(states, tokens, lambda h: h @ plain.T, entropy_gradient=False)
    assert not entropy.requires_grad


def test_entropy_of_uniform_logits_is_log_v():
    """O5."""
    _, entropy = token_logprobs(torch.zeros(1, 4), torch.tensor([3]), lambda h: torch.zeros(h.shape[0], 40))
    assert entropy.item() == pytest.approx(math.log(40))


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_chunks_have_the_gradient_of_the_whole(trained_head, cap):
    """C10: frozen and trained output layers, with a soft cap between them and the logits, against plain autograd."""

    def head(h):
        return h @ weight.T if cap is None else torch.tanh(h @ weight.T / cap) * cap

    hidden = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(11, 5, generator=torch.Generator().manual_seed(1)).requires_grad_(trained_head)
    targets, scale = torch.arange(7), torch.linspace(-1, 2, 7)
    leaves = [hidden, weight] if trained_head else [hidden]
    table = torch.log_softmax(head(hidden) / 0.7, -1)
    logprobs, entropy = table.gather(1, targets[:, None]).squeeze(1), -(table.exp() * table).sum(-1)
    for bonus in (0.0, 0.3):
        expected = torch.autograd.grad((scale * (logprobs + bonus * entropy)).sum(), leaves, retain_graph=True)
        for chunk in (2, 100):
            a, b = token_logprobs(hidden, targets, head, 0.7, chunk, entropy_gradient=bonus > 0)
            assert_close(a, logprobs)
            assert_close(b, entropy)
            found = torch.autograd.grad((scale * (a + bonus * b)).sum(), leaves)
            assert_close(found, expected, atol=1e-5, rtol=1e-5)
            assert b.requires_grad == (bonus > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_neighbours_change_nothing(family):
    """R2, L8, L9: rows alone and together; left-padded hidden states equal those without padding."""
    base = make_base(family)
    responses = [[20, 21, 2], [22, 23], [24, 25, 26, 27, 2]]
    together = logprobs(base, PROMPTS, responses)[0]
    alone = torch.cat([logprobs(base, [q], [r])[0] for q, r in zip(PROMPTS, responses, strict=True)])
    assert_close(together, alone, atol=1e-4, rtol=1e-4)
    ids, mask = left_pad([*PROMPTS, list(range(3, 26))], 0)
    with base.role("base") as view, torch.no_grad():
        padded = view.hidden(ids, mask)[:, -1]
        plain = [view.hidden(torch.tensor([q]), torch.ones(1, len(q), dtype=torch.bool))[0, -1] for q in PROMPTS]
    assert torch.isfinite(padded).all()
    assert_close(padded[:3], torch.stack(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_does_not_depend_on_the_batch_and_agrees_with_the_training_path(family):
    """R1, R15, R19: together, in small batches, one by one; greedy tokens are the training forward's argmax."""
    base = make_base(family)
    u = sampling_noise(3, 8, torch.Generator().manual_seed(0))
    together = run(base, noise=u)
    assert run(base, noise=u, batch=2) == together
    for i, prompt in enumerate(PROMPTS):
        alone = run(base, prompts=[prompt], noise=u[i : i + 1])
        assert alone.ids[0] == together.ids[i] and alone.finished[0] == together.finished[i]
    greedy = run(base)
    with base.role("base") as view, torch.no_grad():
        for prompt, response in zip(PROMPTS, greedy.ids, strict=True):
            row = torch.tensor([prompt + response])
            best = view.logits(view.hidden(row, torch.ones_like(row, dtype=torch.bool)))[0].argmax(-1)
            assert best[len(prompt) - 1 : -1].tolist() == response


def test_generation_equals_transformers_own_greedy(base):
    expected = []
    for prompt in PROMPTS:
        out = base.lm.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=8, eos_token_id=2, pad_token_id=0
        )
        expected.append(out[0, len(prompt) :].tolist())
    assert run(base).ids == expected


def test_sampled_tokens_follow_the_models_distribution_whatever_its_generation_config_says():
    """R4: warpers in the model's generation config are poison and change nothing; chi-square over 20,000 draws."""
    from scipy.stats import chisquare

    base = make_base()
    poisoned = base.lm.generation_config
    poisoned.top_k, poisoned.top_p, poisoned.repetition_penalty, poisoned.do_sample = 5, 0.3, 1.3, True
    poisoned.suppress_tokens, poisoned.min_new_tokens = [2], 8
    base.lm.generation_config = poisoned
    n, temperature = 20_000, 1.7
    made = run(base, prompts=[PROMPTS[0]] * n, noise=sampling_noise(n, 1, torch.Generator().manual_seed(1)), steps=1,
               temperature=temperature, batch=n)  # fmt: skip
    with base.role("base") as view, torch.no_grad():
        row = torch.tensor([PROMPTS[0]])
        logits = view.logits(view.hidden(row, torch.ones_like(row, dtype=torch.bool)))[0, -1]
    expected = torch.softmax(logits.double() / temperature, -1) * n
    counts = torch.bincount(torch.tensor([ids[0] for ids in made.ids]), minlength=len(expected)).double()
    big = expected > 5
    observed, wanted = counts[big].numpy(), expected[big].numpy()
    assert observed.sum() > 0.99 * n
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3
    assert (counts[expected > 20] > 0).all()


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).repeat(5, 1)
    u = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 1e-12], dtype=torch.float64)
    assert sample_tokens(logits, u, 1.0).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize("size", [5, 128, 129, 3000])
def test_draws_are_those_of_the_whole_cumulative_distribution(size):
    """R4: by blocks or in one sum, the same tokens, whatever the vocabulary's size; ends of the interval included."""
    g = torch.Generator().manual_seed(size)
    logits = torch.randn(400, size, generator=g) * 3
    logits[:, 1::3] = -math.inf
    u = torch.rand(400, generator=g, dtype=torch.float64)
    u[0], u[1] = 0.0, 1 - 2**-53
    found = sample_tokens(logits, u, 0.7)
    table = torch.softmax(logits.double() / 0.7, -1)
    upto = table.cumsum(-1)
    low, high = (upto - table).gather(1, found[:, None])[:, 0], upto.gather(1, found[:, None])[:, 0]
    assert ((low - 1e-6 <= u) & (u <= high + 1e-6)).all()
    assert (table.gather(1, found[:, None]) > 0).all()
    whole = torch.searchsorted(upto, u[:, None] * upto[:, -1:], right=True).squeeze(1)
    assert (whole == found).float().mean() > 0.99


def test_rows_end_with_the_first_stop_token_and_keep_it():
    """R8, R9, R10, R11, R18: several stop ids; a truncated row keeps what it sampled; flags are by row."""
    base = make_base()
    u = sampling_noise(64, 6, torch.Generator().manual_seed(3))
    prompts = [[5, 9]] * 64
    made = run(base, prompts=prompts, noise=u, steps=6, stops=(2, 7, 11, 12, 13))
    lengths = {len(ids) for ids in made.ids}
    assert 1 in lengths and 6 in lengths
    flags = set()
    for ids, finished in zip(made.ids, made.finished, strict=True):
        inner = [t for t in ids[:-1] if t in (2, 7, 11, 12, 13)]
        assert not inner and finished == (ids[-1] in (2, 7, 11, 12, 13))
        assert finished or len(ids) == 6
        flags.add((finished, len(ids) == 6))
    assert (True, True) in flags and (False, True) in flags  # at the limit: by stop token, and cut
    free = run(base, prompts=prompts, noise=u, steps=6, stops=(999,))
    for cut, whole in zip(made.ids, free.ids, strict=True):
        assert whole[: len(cut)] == cut


def test_a_changed_adapter_changes_the_next_generation():
    """R15: nothing stale."""
    base = make_base()
    base.add_role("policy", ADAPTER)
    before = run(base, "policy")
    assert before == run(base)
    randomise(base, "policy", 0, scale=1.0)
    assert run(base, "policy") != before


def test_generation_leaves_the_model_as_it_was(base):
    """R7, E10."""
    flags = {n: m.training for n, m in base.lm.named_modules()}
    cache, rng = base.lm.config.use_cache, torch.get_rng_state()
    run(base, noise=sampling_noise(3, 8, torch.Generator().manual_seed(0)))
    assert flags == {n: m.training for n, m in base.lm.named_modules()}
    assert base.lm.config.use_cache == cache and torch.equal(rng, torch.get_rng_state())
