"""The core identities where defects hide: every family, dropout in every place, padding, stops, checkpointing, bf16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from data.template import Renderer
from models.backbone.forward import set_gradient_checkpointing, switch_off_dropout
from models.backbone.logprobs import make_rows, token_logprobs
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from models.sampling.generate import CachedEngine, SamplingParams, generate, sampling_noise
from reward.losses import ranking_loss
from reward.model import score_rows
from tests.conftest import FAMILIES, make_base, randomise, tiny_lm, word_tokenizer
from tests.support.ppo import RAGGED, Injected, make_ppo

STOPS = ("<eos>", "w1", "w2", "w3", "w4", "w5")
PROMPTS = [[5, 9], [7, 8, 9, 10, 11], [12, 13, 2, 14, 15, 16, 17, 18, 19]]


def dropout_names(family: str) -> list[str]:
    """Every number of a family's configuration that is a dropout."""
    config = tiny_lm(family).config.to_dict()
    return [k for k, v in config.items() if ("dropout" in k or "pdrop" in k) and isinstance(v, float)]


def dropping_base(family: str, **kwargs: Any) -> SharedBase:
    changes: dict[str, Any] = dict.fromkeys(dropout_names(family), 0.5)
    return make_base(family, **kwargs, **changes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_identities_with_everything_awkward_at_once(family, checkpointing, tmp_path):
    """R3, R6, R8, R9, L2, W5, E1: dropout in every place that the config has, pad equal to EOS,
    six stop tokens, temperature 0.7, uneven micro-batches, real sampling; KL 0, ratio 1, flags as they were."""
    base = dropping_base(family, pad_is_eos=True)
    ppo = make_ppo(
        tmp_path, base=base, learning_rate=0.0, minibatches=2, micro_batch=3, temperature=0.7, updates=2,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    renderer = Renderer(base.tokenizer, template="dialogue", stop=STOPS)
    ppo.context = replace(ppo.context, open_base=lambda: (base, renderer))
    flags = {n: m.training for n, m in base.lm.named_modules()}
    for metrics in ppo.train():
        assert abs(metrics["objective/kl_per_token"]) < 1e-6
        assert metrics["ppo/policy/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert metrics["ppo/policy/approxkl"] < 1e-9 and metrics["ppo/policy/clipfrac"] == 0.0
    assert flags == {n: m.training for n, m in base.lm.named_modules()}
    assert not any(getattr(m, "gradient_checkpointing", False) for m in base.lm.modules())


def test_every_dropout_of_a_config_is_switched_off():
    """R6: by modules and by names, so that a family's functional dropout is found as well."""
    for family in FAMILIES:
        base = dropping_base(family)
        assert all(m.p == 0.0 for m in base.lm.modules() if isinstance(m, torch.nn.Dropout))
        assert all(getattr(base.lm.config, name) == 0.0 for name in dropout_names(family))
    lm = tiny_lm("llama", attention_dropout=0.5).train()
    switch_off_dropout(lm)
    assert lm.model.layers[0].self_attn.attention_dropout == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_the_adapters_is_off_in_rollout_and_update(family):
    """R6: two forwards of a role are the same although its adapter and its config ask for dropout."""
    base = dropping_base(family)
    base.add_role("policy", AdapterConfig(rank=4, alpha=8, dropout=0.5))
    randomise(base, "policy", 0)
    ids = torch.arange(5, 15)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    with base.training("policy"), base.role("policy") as view:
        set_gradient_checkpointing(base.lm, True)
        first, second = view.hidden(ids, mask), view.hidden(ids, mask)
        set_gradient_checkpointing(base.lm, False)
    assert torch.equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_the_same_under_gradient_checkpointing(family):
    """R7: recomputation silently throws the cache away, so it pauses; afterwards flags and cache are as they were."""
    base = make_base(family)
    use_cache, found = base.lm.config.use_cache, []
    for on in (False, True):
        set_gradient_checkpointing(base.lm, on)
        flags = {n: m.training for n, m in base.lm.named_modules()}
        with base.role("base") as view:
            found.append(
                generate(
                    CachedEngine(), view, PROMPTS, noise=sampling_noise(3, 8, torch.Generator().manual_seed(0)),
                    batch=9, params=SamplingParams(max_new_tokens=8, temperature=1.0, stop_ids=(2,), pad_id=0),
                )
            )  # fmt: skip
        assert flags == {n: m.training for n, m in base.lm.named_modules()}
    assert found[0] == found[1]
    assert base.lm.config.use_cache == use_cache


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_values_ignore_padding_on_either_side(family):
    """R2, L8, W8: 17 columns of left and 5 of right padding, of ids that are also real; positions from true masks."""
    base = make_base(family)
    base.add_role("reward", AdapterConfig(rank=4, alpha=8), head=True)
    randomise(base, "reward", 0)
    ids = torch.tensor([[5, 9, 2, 11, 7, 20, 2]])
    plain = torch.ones_like(ids, dtype=torch.bool)
    with base.role("reward") as view, torch.no_grad():
        hidden = view.hidden(ids, plain)
        expected, logprobs = view.head(hidden), view.logits(hidden).log_softmax(-1)
        for left, right in ((17, 0), (0, 5), (17, 5)):
            width = ids.shape[1]
            row = torch.cat([torch.full((1, left), 2), ids, torch.full((1, right), 2)], 1)
            mask = torch.zeros_like(row, dtype=torch.bool)
            mask[:, left : left + width] = True
            hidden = view.hidden(row, mask)[:, left : left + width]
            assert_close(view.head(hidden), expected, atol=1e-4, rtol=1e-4)
            assert_close(view.logits(hidden).log_softmax(-1), logprobs, atol=1e-4, rtol=1e-4)


# -- bf16 base ---------------------------------------------------------------------------------------------------


def bf16_base(family: str) -> SharedBase:
    return SharedBase(tiny_lm(family).to(torch.bfloat16), word_tokenizer(), name=f"bf16-{family}")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("autocast", [False, True], ids=["base", "autocast"])
def test_identities_on_a_bf16_base(family, autocast, tmp_path):
    """L2, C9, M10: what is trained is fp32 on a bf16 base, and under a caller's autocast; same path within 1e-3."""
    base = make_base(family) if autocast else bf16_base(family)
    ppo = make_ppo(tmp_path, base=base, learning_rate=0.0, minibatches=2, micro_batch=8, updates=1, epochs=1,
                   engine=Injected(RAGGED))  # fmt: skip
    assert {p.dtype for p in {**ppo.policy_parameters, **ppo.value_parameters}.values()} == {torch.float32}
    assert ppo.base.lm.get_input_embeddings().weight.dtype == (torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        metrics = next(iter(ppo.train()))
    assert abs(metrics["objective/kl_per_token"]) < 1e-3
    assert metrics["ppo/policy/ratio"] == pytest.approx(1.0, abs=1e-3)
    assert metrics["ppo/policy/approxkl"] < 1e-3 and ppo.base.base_fingerprint() == ppo.base.fingerprint


def test_small_steps_add_up_on_a_bf16_base(tmp_path):
    """C9: a hundred steps of relative size 1e-4 are not lost, since what is trained is fp32."""
    base = bf16_base("llama")
    base.add_role("policy", AdapterConfig(rank=4, alpha=8))
    with base.training("policy") as trainable, torch.no_grad():
        p = next(iter(trainable.values()))
        p.fill_(1.0)
        for _ in range(100):
            p += 1e-4
    assert p.mean().item() == pytest.approx(1.01, rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_a_bf16_model_are_fp32_and_normalised(temperature):
    """L3: upcast before temperature and softmax; probabilities of all tokens add up to 1 within 1e-6."""
    base = bf16_base("llama")
    rows = make_rows([[5, 9, 11]], [[20, 21, 2]], 0, "cpu")
    with base.role("base") as view, torch.no_grad():
        hidden = view.hidden(rows.ids, rows.mask).flatten(0, 1)[rows.response_positions()]
        assert hidden.dtype == torch.bfloat16
        tables = []
        for token in range(40):
            found, entropy = token_logprobs(hidden, torch.full((3,), token), view.logits, temperature)
            assert found.dtype == entropy.dtype == torch.float32
            tables.append(found)
        expected = torch.log_softmax(view.logits(hidden).float() / temperature, -1)
    table = torch.stack(tables, 1)
    assert_close(table, expected, atol=1e-6, rtol=1e-6)
    assert_close(table.exp().sum(1), torch.ones(3), atol=1e-6, rtol=0)


def test_scores_on_a_bf16_base_are_fp32_and_keep_small_differences():
    """M10, W14: a score near 8 that differs by 0.004 still differs, and so does its loss."""
    base = bf16_base("llama")
    base.add_role("reward", AdapterConfig(rank=4, alpha=8), head=True)
    found = []
    for bias in (8.0, 8.004):
        base.heads["reward"].bias.data.fill_(bias)
        found.append(score_rows(base, "reward", [[5, 9, 11]], [[20, 21, 2]], 0, 8))
    assert found[0].dtype == torch.float32
    assert (found[1] - found[0]).item() == pytest.approx(0.004, abs=1e-4)
    loss = ranking_loss(torch.stack(found, 1), torch.tensor([[1, 0]]))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0.6931472 - 0.002, abs=1e-5)
