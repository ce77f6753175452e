"""Embeddings, output layer and rows of new tokens beside an adapter: each role its own, the base untouched, and what
others read of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from data.common.errors import UserError
from models.backbone.architecture import linear_layers
from models.backbone.forward import set_gradient_checkpointing
from models.backbone.four_bits import can_quantize, quantize
from models.backbone.logprobs import make_rows
from models.backbone.settings import METHODS, AdapterConfig
from models.hub.load import add_rows, add_tokens
from models.hub.spec import BaseModelSpec
from models.roles.export import save_role, write_model
from models.roles.response_loss import response_nll
from models.roles.shared_base import SharedBase
from models.sampling.generate import CachedEngine, SamplingParams
from tests.conftest import tiny_lm, word_tokenizer

NEW = ("<think>", "</think>")  # ids 40 and 41
IDS = torch.tensor([[5, 9, 40, 7, 41, 21]])
PLAIN = torch.tensor([[5, 9, 11, 7, 20, 21]])
WHOLE, ROWS = {"modules_to_save": ("embed_tokens", "lm_head")}, {"new_tokens": NEW}
KINDS: Any = {"whole": WHOLE, "embeddings alone": {"modules_to_save": ("embed_tokens",)}, "rows": ROWS}
LORA = [name for name, method in METHODS.items() if "new_tokens" in method.settings and not method.copies]


def settings(method="lora", **more):
    own = {"rank": 4, "alpha": 8} if "rank" in METHODS[method].settings else {}
    return AdapterConfig(method=method, **own, **more)


def base_with(kind=WHOLE, tied=False, dtype=torch.float32):
    """A tiny base, with rows for the new tokens of these settings."""
    lm = tiny_lm(tie_word_embeddings=tied).to(dtype)
    tokenizer, tokens = word_tokenizer(), kind.get("new_tokens", ())
    add_tokens(tokenizer, BaseModelSpec(name="tiny", source="tiny", new_tokens=tokens))
    add_rows(lm, len(tokenizer))
    return SharedBase(lm, tokenizer, name="tiny")


def ids_of(base):
    return IDS if len(base.tokenizer) == 42 else PLAIN


def logits(base, role):
    ids = ids_of(base)
    with base.role(role) as view, torch.no_grad():
        return view.logits(view.hidden(ids, torch.ones_like(ids)))


def step(base, role, rate=0.02):
    ids = ids_of(base)
    with base.training(role) as trained, base.role(role) as view:
        nll, _, _ = response_nll(view.lm, ids, torch.ones_like(ids), ids, fast=True)
        nll.backward()
        with torch.no_grad():
            for p in trained.values():
                if p.grad is not None:
                    p -= rate * p.grad / max(1.0, p.grad.norm())
    return trained


def trained(kind, method="lora", tied=False, dtype=torch.float32):
    base = base_with(kind, tied, dtype)
    base.add_role("other", settings(method, **kind))
    base.add_role("sft", settings(method, **kind))
    for _ in range(3):
        step(base, "sft")
    return base


def beside(base, role):
    """What a role trains besides its adapter and head, by the module."""
    return {n.split(".modules")[0].split(".token")[0] for n in base.parameters_of(role) if "_proj" not in n} - {
        f"{role}.head.weight",
        f"{role}.head.bias",
    }


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_named_move_in_fp32_and_the_base_and_other_roles_stay(kind, dtype, tied):
    base = base_with(KINDS[kind], tied, dtype)
    for role in ("other", "sft"):
        base.add_role(role, settings(**KINDS[kind]))
    bare, other = logits(base, "base"), logits(base, "other")
    torch.testing.assert_close(other.float(), bare.float(), rtol=1e-2, atol=1e-5 if dtype == torch.float32 else 0.1)
    before = {n: p.detach().clone() for n, p in base.lm.named_parameters()}
    mine = base.parameters_of("sft")
    assert {p.dtype for p in mine.values()} == {torch.float32}
    for _ in range(2):
        step(base, "sft")
    moved = {n for n, p in base.lm.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in mine.items() if "_proj" not in n or ".lora_" in n}
    one = {"model.embed_tokens"} if tied or kind == "embeddings alone" else {"model.embed_tokens", "lm_head"}
    assert beside(base, "sft") == one
    assert torch.equal(logits(base, "base"), bare) and torch.equal(logits(base, "other"), other)
    assert base.base_fingerprint() == base.fingerprint == base_with(KINDS[kind], tied, dtype).fingerprint
    base.drop_roles()
    assert torch.equal(logits(base, "base"), bare)
    base.add_role("sft", settings())
    assert torch.equal(logits(base, "base"), bare)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_a_plain_copy(kind, tied):
    """Of -log p of all tokens, by the tensors of a model with no adapter at all."""
    base = base_with(KINDS[kind], tied)
    base.add_role("sft", settings(**KINDS[kind]))
    plain, ids = base_with(KINDS[kind], tied).lm.requires_grad_(True), ids_of(base)
    plain.train(False)
    torch.nn.functional.cross_entropy(plain(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum").backward()
    with base.training("sft") as mine, base.role("sft") as view:
        response_nll(view.lm, ids, torch.ones_like(ids), ids)[0].backward()
        for name, p in mine.items():
            if "_proj" in name:
                continue
            module = plain.lm_head if name.startswith("lm_head") else plain.model.embed_tokens
            expected = module.weight.grad
            rows = expected[40:] if "trainable_tokens" in name else expected
            torch.testing.assert_close(p.grad, rows, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", LORA)
def test_stored_and_read_again_by_us_and_by_plain_peft_and_transformers(tmp_path, method, kind, tied):
    base = trained(KINDS[kind], method, tied)
    save_role(base, "sft", tmp_path)
    again = base_with(KINDS[kind], tied)
    again.add_role("first", tmp_path)
    again.add_role("sft", tmp_path)  # the second on a base, too
    assert torch.equal(logits(again, "sft"), logits(base, "sft"))
    assert again.unlike(settings(method, **KINDS[kind]), "sft") == ""
    assert "whole modules" in again.unlike(settings(method), "sft")
    torch.manual_seed(5)
    lm = tiny_lm(tie_word_embeddings=tied).eval()
    if KINDS[kind].get("new_tokens"):
        lm.resize_token_embeddings(42)
        torch.manual_seed(6)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(lm, tmp_path / "adapter")(input_ids=ids_of(base)).logits
    torch.testing.assert_close(theirs, logits(base, "sft"), atol=1e-5, rtol=1e-4)
    write_model(base, "sft", tmp_path / "merged", stop_ids=[2])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids_of(base)).logits, theirs, atol=1e-4, rtol=1e-3)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    assert base.base_fingerprint() == base.fingerprint


@pytest.mark.parametrize("method", ["ia3"])
def test_ia3_with_embeddings_is_read_by_plain_peft(tmp_path, method):
    base = trained(WHOLE, method)
    save_role(base, "sft", tmp_path)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(tiny_lm().eval(), tmp_path / "adapter")(input_ids=PLAIN).logits
    torch.testing.assert_close(theirs, logits(base, "sft"), atol=1e-5, rtol=1e-4)
    again = base_with()
    again.add_role("sft", tmp_path)
    assert torch.equal(logits(again, "sft"), logits(base, "sft"))


def test_autopeft_makes_the_rows_by_itself(tmp_path):
    """What the export writes next to the adapter, the tokenizer, is what it asks."""
    base = trained(ROWS)
    tiny_lm().save_pretrained(tmp_path / "base")
    save_role(base, "sft", tmp_path)
    folder = tmp_path / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tmp_path / "base")})
    )
    base.tokenizer.save_pretrained(folder)
    opened = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=IDS).logits, logits(base, "sft"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_responses_are_those_of_the_merged_model(tmp_path, kind):
    base = trained(KINDS[kind])
    write_model(base, "sft", tmp_path, stop_ids=[])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompts = [[5, 9, 11], [7]]
    params = SamplingParams(max_new_tokens=12, stop_ids=(), pad_id=0)
    with base.role("sft") as view, torch.no_grad():
        ours = CachedEngine()(view, prompts, params=params, noise=None).ids
        for prompt, row in zip(prompts, ours, strict=True):
            ids = list(prompt)
            for token in row:
                assert merged(input_ids=torch.tensor([ids])).logits[0, -1].argmax() == token
                ids.append(token)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_role_with_a_scalar_head_leaves_the_output_layer_to_the_base(tmp_path, kind, tied):
    base = base_with(KINDS[kind], tied)
    base.add_role("sft", settings(**KINDS[kind]))
    base.add_role("reward", settings(**KINDS[kind]), head=True)
    step(base, "sft")
    base.add_role("value", settings(**KINDS[kind]), copy_of="sft", head=True)
    for role in ("reward", "value"):
        assert beside(base, role) == {"model.embed_tokens"}
        assert base.unlike(settings(**KINDS[kind]), role) == ""
    ids = ids_of(base)
    with base.role("sft") as view, torch.no_grad():
        states = view.hidden(ids, torch.ones_like(ids))
    with base.role("value") as view, torch.no_grad():
        assert torch.equal(view.hidden(ids, torch.ones_like(ids)), states)
    save_role(base, "value", tmp_path)
    again = base_with(KINDS[kind], tied)
    again.add_role("value", tmp_path, head=True)
    with again.role("value") as view, torch.no_grad():
        assert torch.equal(view.hidden(ids, torch.ones_like(ids)), states)
    with base.training("value") as mine, base.role("value") as view:
        view.head(view.hidden(ids, torch.ones_like(ids))).sum().backward()
        assert all(p.grad is not None for p in mine.values())


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_layers_and_row_groups_change_no_gradient(kind):
    base = base_with(KINDS[kind])
    base.add_role("sft", settings(**KINDS[kind]))
    rows = make_rows([[5, 9], [7]], [[11, 12, 13], [8, 6]], 0, "cpu")

    def gradients():
        with base.training("sft") as mine, base.role("sft") as view:
            states = view.states(rows.ids, rows.mask, rows.response_positions())
            view.logprobs(states, rows.targets())[0].sum().backward()
            return {n: None if p.grad is None else p.grad.clone() for n, p in mine.items()}

    plain = gradients()
    set_gradient_checkpointing(base.lm, True)
    again = gradients()
    set_gradient_checkpointing(base.lm, False)
    assert any(g is not None and g.abs().max() > 0 for n, g in plain.items() if "embed_tokens" in n) or kind == "rows"
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


def test_a_plain_adapter_and_one_with_rows_stand_on_one_base(tmp_path):
    base = base_with(ROWS)
    base.add_role("rows", settings(**ROWS))
    base.add_role("plain", settings())
    save_role(base, "plain", tmp_path)
    base.add_role("again", tmp_path)
    step(base, "rows")
    torch.testing.assert_close(logits(base, "again"), logits(base, "base"))
    assert not [n for n in base.parameters_of("plain") if "token" in n]


def test_new_rows_are_the_mean_and_the_same_each_time():
    lm = tiny_lm()
    first = lm.model.embed_tokens.weight.detach().clone()
    add_rows(lm, 42)
    assert torch.equal(lm.model.embed_tokens.weight[:40], first)
    torch.testing.assert_close(lm.model.embed_tokens.weight[40:], first.mean(0).expand(2, -1))
    base = base_with(ROWS)
    assert base.tokenizer.decode(base.tokenizer("w1 <think> w2")["input_ids"], skip_special_tokens=True) == (
        "w1 <think> w2"
    )


def test_spare_rows_of_the_base_are_taken_first():
    lm = tiny_lm()
    add_rows(lm, 40)
    assert lm.model.embed_tokens.weight.shape[0] == 40


@pytest.mark.parametrize(
    ("more", "tied", "family", "says"),
    [
        (
            {"modules_to_save": ("lm_heat",)},
            False,
            "llama",
            r"'lm_heat' is neither the embeddings nor .* mean 'lm_head'",
        ),
        ({"modules_to_save": ("norm",)}, False, "llama", r"'norm' is neither .* trained by adapter.method 'freeze'"),
        ({"modules_to_save": ("lm_head",), "targets": ("lm_head",)}, False, "llama", "lm_head carries an adapter too"),
        ({**WHOLE, "new_tokens": ("w1",)}, False, "llama", "trains their rows with all others: remove one"),
        ({"modules_to_save": ("wte",)}, True, "gpt2", "would untie them: use adapter.method 'freeze' or 'full'"),
        ({"new_tokens": ("<never>",)}, False, "gptj", "has a bias, which PEFT's rows lack"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(more, tied, family, says):
    changes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8} if family == "gptj" else {}
    lm = tiny_lm("llama" if family == "gptj" else family, **({"tie_word_embeddings": True} if tied else {}))
    if family == "gptj":
        from transformers import GPTJConfig, GPTJForCausalLM

        lm = GPTJForCausalLM(GPTJConfig(vocab_size=41, **changes))
    tokenizer = word_tokenizer()
    if "<never>" in more.get("new_tokens", ()):
        add_tokens(tokenizer, BaseModelSpec(name="tiny", source="tiny", new_tokens=("<never>",)))
    base = SharedBase(lm, tokenizer, name="tiny")
    with pytest.raises(UserError, match=says):
        base.add_role("sft", settings(**more))
    assert base.roles == ()


def test_tokens_that_are_there_or_are_none_are_refused():
    for token, says in (("w1", "is in the vocabulary of base tiny already"), (" ", "is empty")):
        with pytest.raises(UserError, match=rf"adapter\.new_tokens: '{token}' {says}"):
            add_tokens(word_tokenizer(), BaseModelSpec(name="tiny", source="tiny", new_tokens=(token,)))


def test_foreign_adapters_that_would_change_the_base_are_still_refused(tmp_path):
    base = trained(ROWS)
    save_role(base, "sft", tmp_path / "rows")
    with pytest.raises(UserError, match=r"the base has 40 rows and no 40; name its new tokens in adapter\.new_tokens"):
        base_with(WHOLE).add_role("sft", tmp_path / "rows")
    save_role(trained(WHOLE, tied=True), "sft", tmp_path / "whole")
    file = tmp_path / "whole" / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"ensure_weight_tying": False}))
    with pytest.raises(UserError, match="the base ties its embeddings and output layer, and this adapter unties them"):
        base_with(WHOLE, tied=True).add_role("sft", tmp_path / "whole")
    file.write_text(json.dumps(config | {"modules_to_save": ["model.norm"]}))
    with pytest.raises(UserError, match=r"modules_to_save: 'model.norm' has no weights next to it"):
        base_with(WHOLE, tied=True).add_role("sft", tmp_path / "whole")


@pytest.mark.skipif(not can_quantize(), reason="the extra nf4 (bitsandbytes) is not installed")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_they_stand_on_a_base_in_four_bits(tied):
    lm = tiny_lm(hidden_size=64, intermediate_size=128, initializer_range=0.1, tie_word_embeddings=tied)
    quantize(lm, linear_layers(lm), torch.device("cpu"))
    base = SharedBase(lm, word_tokenizer(), name="packed")
    bare = logits(base, "base")
    base.add_role("other", settings(**WHOLE))
    base.add_role("sft", settings(**WHOLE))
    assert torch.equal(logits(base, "sft"), bare)
    step(base, "sft")
    assert not torch.equal(logits(base, "sft"), bare) and torch.equal(logits(base, "other"), bare)
    assert base.base_fingerprint() == base.fingerprint
