"""Roles of virtual tokens: what a fresh one says, where they stand, and that every pass has them or not at all."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from data.common.errors import UserError
from models.backbone.forward import hidden_states
from models.backbone.settings import METHODS, AdapterConfig
from models.backbone.soft_prompts import prompts_of
from models.roles.export import save_role, write_model
from models.sampling.fast import FastEngine
from models.sampling.generate import CachedEngine, SamplingParams, generate, sampling_noise
from models.sampling.stream import stream
from reward.shared_prompt import can_share
from tests.conftest import make_base, tiny_lm

VIRTUAL = [name for name, method in METHODS.items() if method.virtual]
FROM_TOKENS = ["prompt_tuning", "prefix_tuning"]
IDS = torch.tensor([[5, 9, 11, 7, 20, 21]])
MASK = torch.ones_like(IDS, dtype=torch.bool)
COUNT = 3


def with_role(method, family="llama", trained=True, **more):
    base = make_base(family)
    base.add_role("sft", AdapterConfig(method=method, virtual_tokens=COUNT, **more))
    if trained:
        with base.training("sft") as parameters, torch.no_grad():
            for n, p in enumerate(parameters.values()):
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(n)))
    return base


def logits(base, role, ids=IDS, mask=MASK):
    with base.role(role) as view, torch.no_grad():
        return view.logits(view.hidden(ids, mask))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen3", "gemma", "gpt_neox"])
@pytest.mark.parametrize("method", FROM_TOKENS)
def test_a_fresh_role_says_what_the_base_says_behind_some_tokens(method, family):
    base = with_role(method, family, trained=False)
    torch.manual_seed(0)
    embeddings = base.lm.get_input_embeddings()(torch.arange(40))  # of Gemma they are scaled
    if method == "prompt_tuning":
        vectors = prompts_of(base.lm)["sft"].vectors()
        tokens = [next(i for i, row in enumerate(embeddings) if torch.equal(row, v)) for v in vectors]
    else:  # the same seed
        other = with_role("prompt_tuning", family, trained=False)
        vectors = prompts_of(other.lm)["sft"].vectors()
        tokens = [next(i for i, row in enumerate(embeddings) if torch.equal(row, v)) for v in vectors]
    assert not {0, 1, 2, 3} & set(tokens)  # ordinary ones
    whole = torch.cat([torch.tensor([tokens]), IDS], dim=1)
    expected = logits(base, "base", whole, torch.ones_like(whole, dtype=torch.bool))[:, COUNT:]
    torch.testing.assert_close(logits(base, "sft"), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen3", "gemma", "gpt_neox", "phi"])
@pytest.mark.parametrize("method", VIRTUAL)
def test_plain_peft_gives_the_same_on_every_family(method, family, tmp_path):
    base = with_role(method, family)
    save_role(base, "sft", tmp_path)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(tiny_lm(family).eval(), tmp_path / "adapter")(input_ids=IDS).logits
    ours = logits(base, "sft")
    torch.testing.assert_close(ours, theirs[:, -6:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, logits(base, "base"), atol=1e-2)
    again = make_base(family)
    again.add_role("sft", tmp_path)
    assert torch.equal(logits(again, "sft"), ours)


def test_the_lstm_encoder_trains_and_is_left_behind(tmp_path):
    base = with_role("p_tuning", encoder="lstm", encoder_width=5)
    names = {name.split("encoder.")[1].split(".")[0] for name in base.parameters_of("sft")}
    assert names == {"embedding", "lstm_head", "mlp_head"}
    assert {p.shape[0] for n, p in base.parameters_of("sft").items() if "weight_hh" in n} == {4 * 5}
    save_role(base, "sft", tmp_path)
    base.add_role("policy", AdapterConfig(method="p_tuning", virtual_tokens=COUNT), copy_of="sft")
    assert list(base.parameters_of("policy")) == ["soft_prompts.policy.encoder.embedding.weight"]
    torch.testing.assert_close(logits(base, "policy"), logits(base, "sft"), atol=5e-5, rtol=1e-4)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(tiny_lm().eval(), tmp_path / "adapter")(input_ids=IDS).logits
    torch.testing.assert_close(logits(base, "sft"), theirs[:, -6:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", VIRTUAL)
def test_padding_on_either_side_and_a_cache_change_nothing(method):
    base, expected = with_role(method), None
    expected = logits(base, "sft")
    nothing, no = torch.zeros((1, 2), dtype=torch.long), torch.zeros((1, 2), dtype=torch.bool)
    left = logits(base, "sft", torch.cat([nothing, IDS], 1), torch.cat([no, MASK], 1))[:, 2:]
    right = logits(base, "sft", torch.cat([IDS, nothing], 1), torch.cat([MASK, no], 1))[:, :6]
    torch.testing.assert_close(left, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(right, expected, atol=1e-5, rtol=1e-4)
    with base.role("sft") as view, torch.no_grad():
        states = view.states(IDS, MASK, torch.arange(6))
    torch.testing.assert_close(view.logits(states)[None], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", VIRTUAL)
def test_sampled_tokens_are_those_of_whole_passes(method):
    """Rows of several lengths, left-padded, that leave the batch; each token by the inverse of its distribution."""
    base = with_role(method)
    prompts, steps = [[5, 9], [7, 8, 9, 10, 11], [20]], 8
    noise = sampling_noise(3, steps, torch.Generator().manual_seed(1))
    params = SamplingParams(max_new_tokens=steps, stop_ids=(2, 7, 30), pad_id=0)
    with base.role("sft") as view:
        made = generate(FastEngine(with_logprobs=True), view, prompts, params=params, noise=noise, batch=9)
        plain = generate(CachedEngine(), view, prompts, params=params, noise=noise, batch=1)
    assert made.ids == plain.ids and made.logprobs is not None
    for row, (prompt, ids) in enumerate(zip(prompts, made.ids, strict=True)):
        whole = torch.tensor([prompt + ids])
        found = logits(base, "sft", whole, torch.ones_like(whole, dtype=torch.bool))[0].log_softmax(-1)
        for place, token in enumerate(ids):
            at = found[len(prompt) - 1 + place]
            assert made.logprobs[row, place].item() == pytest.approx(at[token].item(), abs=1e-4)
            below, upto = at.exp().cumsum(0)[token] - at[token].exp(), at.exp().cumsum(0)[token]
            assert below - 1e-5 <= noise[row, place] <= upto + 1e-5
    greedy = SamplingParams(max_new_tokens=steps, temperature=0.0, stop_ids=(2,), pad_id=0)
    with base.role("sft") as view:
        streamed = list(stream(view, prompts[1], params=greedy, generator=torch.Generator()))
        assert streamed == generate(CachedEngine(), view, prompts[1:2], params=greedy, noise=None, batch=1).ids[0]


@pytest.mark.parametrize("method", VIRTUAL)
def test_greedy_responses_are_those_of_plain_peft(method, tmp_path):
    base = with_role(method)
    save_role(base, "sft", tmp_path)
    theirs = PeftModel.from_pretrained(tiny_lm().eval(), tmp_path / "adapter").generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    params = SamplingParams(max_new_tokens=8, stop_ids=(2,), pad_id=0)
    with base.role("sft") as view:
        ours = generate(CachedEngine(), view, IDS.tolist(), params=params, noise=None, batch=1).ids[0]
    assert theirs[0, -len(ours) :].tolist() == ours


@pytest.mark.parametrize("method", VIRTUAL)
def test_roles_have_their_own_and_the_base_has_none(method):
    base = with_role(method)
    before, plain = logits(base, "sft"), logits(make_base(), "base")
    base.add_role("value", AdapterConfig(method=method, virtual_tokens=COUNT), copy_of="sft", head=True)
    assert torch.equal(logits(base, "base"), plain) and torch.equal(logits(base, "value"), before)
    with base.training("value") as trained, torch.no_grad():
        for p in trained.values():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(9)))
    assert torch.equal(logits(base, "sft"), before) and not torch.equal(logits(base, "value"), before)
    with base.role("sft") as view:
        assert view.decoder() is None and not can_share(view.lm)
        with base.role("base") as inner:
            assert inner.decoder() is not None
            assert torch.equal(logits(base, "base"), plain)
        assert torch.equal(view.logits(view.hidden(IDS, MASK)).detach(), before)
    assert base.base_fingerprint() == base.fingerprint and base.roles == ("sft", "value")
    base.drop_roles()
    assert base.roles == () and torch.equal(logits(base, "base"), plain)
    assert not [n for n, _ in base.lm.named_parameters() if "soft_prompts" in n]


def test_virtual_tokens_take_positions():
    base = make_base("gpt2")
    whole = base.context_length
    base.add_role("sft", AdapterConfig(method="prompt_tuning", virtual_tokens=5))
    assert base.context_length == base.limits.positions == whole - 5
    full = torch.arange(whole - 5)[None] % 30 + 4
    assert logits(base, "sft", full, torch.ones_like(full, dtype=torch.bool)).isfinite().all()
    with pytest.raises(IndexError):
        longer = torch.arange(whole - 4)[None] % 30 + 4
        logits(base, "sft", longer, torch.ones_like(longer, dtype=torch.bool))


@pytest.mark.parametrize("method", VIRTUAL)
def test_nothing_is_merged(method, tmp_path):
    base = with_role(method)
    with pytest.raises(UserError, match=r"'sft' is tuned by virtual tokens.* nothing can be merged"):
        write_model(base, "sft", tmp_path, stop_ids=[2])
    write_model(base, "base", tmp_path, stop_ids=[2])  # without them
    with torch.no_grad():
        plain = type(tiny_lm()).from_pretrained(tmp_path)(input_ids=IDS).logits
    torch.testing.assert_close(plain, logits(base, "base"), atol=1e-5, rtol=1e-5)
    assert "full is asked for, 'sft' has " + method in base.unlike(AdapterConfig(method="full"), "sft")
    assert "lora is asked for" in base.unlike(AdapterConfig(), "sft")
    asked = AdapterConfig(method=method, virtual_tokens=9)
    assert base.unlike(asked, "sft") == f"virtual_tokens: 9 is asked for, 'sft' has {COUNT}"


@pytest.mark.parametrize("method", VIRTUAL)
def test_files_that_do_not_fit_are_refused(method, tmp_path):
    save_role(with_role(method), "sft", tmp_path)
    with pytest.raises(UserError, match=r"does not fit base .*its vectors are 3 x \d+, the base's are 3 x "):
        make_base(hidden_size=64, intermediate_size=64).add_role("sft", tmp_path)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config | {"num_virtual_tokens": 0}))
    with pytest.raises(UserError, match="num_virtual_tokens"):
        make_base().add_role("sft", tmp_path)


@pytest.mark.parametrize("method", VIRTUAL)
def test_bases_that_are_not_attention_alone_are_refused(method, monkeypatch):
    """By what their config says of layers, or by what padding does to their states."""
    base = make_base()
    base.lm.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(
        UserError, match=r"'llama' has layers that are not attention .* \(linear_attention\): use 'lora'"
    ):
        base.add_role("sft", AdapterConfig(method=method))
    assert base.roles == ()
    base = make_base()
    inner = base.lm.model.forward

    @functools.wraps(inner)
    def recurrent(*args, **kwargs):  # a state that every column, padding too, has a part in
        out = inner(*args, **kwargs)
        out.last_hidden_state = out.last_hidden_state.cumsum(1)
        return out

    monkeypatch.setattr(base.lm.model, "forward", recurrent)
    with pytest.raises(UserError, match="on base tiny-llama padding between virtual tokens and a row changes"):
        base.add_role("sft", AdapterConfig(method=method))
    assert base.roles == () and not prompts_of(base.lm)


def test_only_layers_that_are_computed_again_lose_a_prefix():
    """Why checkpointing is refused with prefix tuning, and is not with the others."""
    from models.backbone.forward import set_gradient_checkpointing

    for method in VIRTUAL:
        base = with_role(method)
        with base.role("sft") as view, base.training("sft") as trained:
            plain = hidden_states(view.lm, IDS, MASK)
            set_gradient_checkpointing(base.lm, True)
            if METHODS[method].past:
                with pytest.raises(RuntimeError):  # a mask with columns for keys that are gone
                    hidden_states(view.lm, IDS, MASK)
                continue
            again = hidden_states(view.lm, IDS, MASK)
            torch.testing.assert_close(again, plain, atol=1e-5, rtol=1e-4)
            again.square().sum().backward()
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())


def test_bf16_bases_have_fp32_vectors():
    base = make_base()
    base.lm.to(torch.bfloat16)
    base.add_role("sft", AdapterConfig(method="prefix_tuning", virtual_tokens=COUNT))
    assert {p.dtype for p in base.parameters_of("sft").values()} == {torch.float32}
    assert logits(base, "sft").dtype == torch.bfloat16


def test_the_files_are_pefts(tmp_path: Path):
    save_role(with_role("prefix_tuning"), "sft", tmp_path)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["peft_type"], config["num_virtual_tokens"], config["task_type"]) == ("PREFIX_TUNING", 3, "CAUSAL_LM")
    assert (config["num_layers"], config["num_attention_heads"], config["token_dim"]) == (2, 2, 16)
