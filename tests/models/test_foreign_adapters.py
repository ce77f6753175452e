"""Adapters that PEFT saved mean in trivet what they mean in PEFT, or are refused by the setting's name."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data.common.errors import UserError
from models.hub.validate import IGNORED, PLAIN_STARTS, _Adapter
from models.roles.shared_base import SharedBase
from tests.conftest import tiny_lm, word_tokenizer

IDS = torch.tensor([[5, 9, 11, 7, 20, 21]])
MASK = torch.ones_like(IDS)
TARGETS = {"llama": ["q_proj", "v_proj", "up_proj"], "gpt2": ["c_attn", "c_fc"]}


def trained(tmp_path, family="llama", *, begun=None, lm=None, **settings):
    """A base's folder and that of an adapter which PEFT began, trained for some steps and saved."""
    base, out = tmp_path / "base", tmp_path / "adapter"
    tiny_lm(family, initializer_range=0.3, **(lm or {})).save_pretrained(base)
    lm = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[family], "task_type": "CAUSAL_LM"}
    model = get_peft_model(lm, LoraConfig(**(defaults | settings)))
    if begun is not None:
        model.save_pretrained(begun)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(5):
        model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    return base, out, model.eval()


def logits_here(base, adapter):
    shared = SharedBase(AutoModelForCausalLM.from_pretrained(base), word_tokenizer(), name="tiny")
    shared.load_role("sft", adapter)
    with shared.role("sft") as view, torch.no_grad():
        return view.logits(view.hidden(IDS, MASK.bool()))


def logits_in_peft(base, adapter):
    lm = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        return lm(input_ids=IDS, attention_mask=MASK).logits


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


TAKEN = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora and rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "patterns of one layer": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}},
    "a layer": {"layers_to_transform": [1]},
    "a layer by its pattern": {"layers_to_transform": 1, "layers_pattern": "layers"},
    "a regular expression": {"target_modules": r".*\.(0|1)\.self_attn\.(q|o)_proj"},
    "all linear": {"target_modules": "all-linear"},
    "some excluded": {"exclude_modules": ["v_proj"]},
    "some excluded by a pattern": {"exclude_modules": r".*\.0\.self_attn\.v_proj"},
    "the output layer": {"target_modules": ["q_proj", "lm_head"]},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_trained_adapter_gives_pefts_logits(name, tmp_path):
    base, adapter, model = trained(tmp_path, **TAKEN[name])
    here = logits_here(base, adapter)
    torch.testing.assert_close(here, logits_of(model), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(here, logits_in_peft(base, adapter), atol=1e-4, rtol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert (here - logits_of(plain)).abs().max() > 0.05  # it has an effect


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_bias": True}, {"fan_in_fan_out": True}])
def test_an_adapter_on_gpt2_gives_pefts_logits(settings, tmp_path):
    base, adapter, model = trained(tmp_path, "gpt2", **settings)
    torch.testing.assert_close(logits_here(base, adapter), logits_of(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_weights_relative_to_a_changed_base_are_refused_and_converted_ones_are_exact(start, tmp_path):
    base, adapter, model = trained(tmp_path, begun=tmp_path / "begun", init_lora_weights=start)
    with pytest.raises(UserError, match=rf"init_lora_weights: '{start}'.*path_initial_model_for_weight_conversion"):
        logits_here(base, adapter)
    expected = logits_of(model)
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=tmp_path / "begun")
    torch.testing.assert_close(logits_here(base, tmp_path / "converted"), expected, atol=2e-3, rtol=1e-3)
    lm = model.merge_and_unload()
    torch.testing.assert_close(logits_of(lm), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "PiSSA", "something_new", 3, ["pissa"], {"a": 1}])
def test_other_starts_are_refused_by_name(start, tmp_path):
    base, adapter, _ = trained(tmp_path)
    change(adapter, init_lora_weights=start)
    with pytest.raises(UserError, match="init_lora_weights"):
        logits_here(base, adapter)


def test_a_data_driven_start_that_leaves_the_base_alone_is_taken(tmp_path):
    """EVA chooses A by the data's principal directions, B is 0; the saved weights say everything."""
    base, adapter, model = trained(tmp_path)
    change(adapter, init_lora_weights="eva", eva_config={"rho": 2.0})
    torch.testing.assert_close(logits_here(base, adapter), logits_of(model), atol=1e-4, rtol=1e-4)


def change(adapter, **settings):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_every_start_that_peft_knows_has_been_judged():
    """A new one in PEFT's own list fails here: does it leave the base as it is?"""
    from typing import get_args, get_type_hints

    def texts(kind):
        return {kind} if isinstance(kind, str) else {t for part in get_args(kind) for t in texts(part)}

    named = texts(get_type_hints(LoraConfig)["init_lora_weights"])
    changing = {"olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq", "lora_ga"}
    assert named and named <= {*map(str, PLAIN_STARTS)} | changing


REFUSED = {
    "modules_to_save": ["lm_head"],
    "bias": "all",
    "target_parameters": ["mlp.weight"],
    "layer_replication": [[0, 2], [1, 2]],
    "alora_invocation_tokens": [5],
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "megatron_config": {"a": 1},
    "velora_config": {"a": 1},
    "monteclora_config": {"a": 1},
    "arrow_config": {"a": 1},
    "kasa_config": {"a": 1},
    "a_setting_of_a_later_peft": True,
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_mean_something_else_are_refused_by_name(name, tmp_path):
    base, adapter, _ = trained(tmp_path)
    change(adapter, **{name: REFUSED[name]})
    with pytest.raises(UserError, match=rf"adapter_config\.json: {name}"):
        logits_here(base, adapter)


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable_token_indices": [5, 6]},
        {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [7, 8]}},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
)
def test_embeddings_and_rows_that_peft_trained_are_read(settings, tmp_path):
    base, adapter, _ = trained(tmp_path, **settings)
    torch.testing.assert_close(logits_here(base, adapter), logits_in_peft(base, adapter), atol=1e-5, rtol=1e-4)


def test_rows_without_their_weights_are_refused(tmp_path):
    base, adapter, _ = trained(tmp_path)
    change(adapter, trainable_token_indices=[5, 6])
    with pytest.raises(UserError, match=r"no rows for these tokens"):
        logits_here(base, adapter)


@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["norm"]}, {"bias": "lora_only"}], ids=lambda s: next(iter(s))
)
def test_adapters_that_peft_really_trained_so_are_refused_by_name(settings, tmp_path):
    base, adapter, _ = trained(tmp_path, "gpt2" if "bias" in settings else "llama", **settings)
    with pytest.raises(UserError, match=next(iter(settings))):
        logits_here(base, adapter)


def test_every_setting_of_pefts_has_been_judged():
    """Read, ignored because the weights are given, or refused: a new field of PEFT's fails here."""
    known = set(_Adapter.model_fields) | IGNORED | {"peft_type", "init_lora_weights"} | set(REFUSED)
    assert {f.name for f in dataclasses.fields(LoraConfig)} <= known


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("copies", [False, True])
def test_an_adapter_on_embeddings_is_exact_with_and_without_pefts_copies_of_them(tied, copies, tmp_path):
    base, adapter, model = trained(
        tmp_path, target_modules=["q_proj", "embed_tokens"], lm={"tie_word_embeddings": tied}
    )
    model.save_pretrained(adapter, save_embedding_layers=copies)
    assert any("base_layer" in name for name in load_file(adapter / "adapter_model.safetensors")) == copies
    torch.testing.assert_close(logits_here(base, adapter), logits_of(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["embed_tokens.base_layer", "embed_tokens", "norm"])
def test_a_copy_that_differs_from_the_base_is_refused_by_name(name, tmp_path):
    base, adapter, _ = trained(tmp_path)
    file = adapter / "adapter_model.safetensors"
    own = AutoModelForCausalLM.from_pretrained(base).get_parameter(f"model.{name.removesuffix('.base_layer')}.weight")
    for shift in (0.0, 0.01):
        extra = {f"base_model.model.model.{name}.weight": own.detach() + shift}
        save_file(load_file(file) | extra, file, metadata={"format": "pt"})
        if shift:
            with pytest.raises(UserError, match="would change the shared base"):
                logits_here(base, adapter)
        else:
            logits_here(base, adapter)


def adalora(tmp_path, **schedule):
    """An AdaLoRA adapter that PEFT's own model has trained, and its base."""
    base, out = tmp_path / "base", tmp_path / "adapter"
    tiny_lm().save_pretrained(base)
    settings = {"init_r": 4, "target_r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), AdaLoraConfig(**settings, **schedule))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for step in range(1, 6):
        model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.save_pretrained(out)
    return base, out


def test_adalora_of_one_rank_is_read_and_a_resized_one_is_refused(tmp_path):
    base, adapter = adalora(tmp_path / "whole", total_step=100, tinit=50)
    torch.testing.assert_close(logits_here(base, adapter), logits_in_peft(base, adapter), atol=1e-5, rtol=1e-4)
    base, adapter = adalora(tmp_path / "resized", total_step=5, tfinal=2)
    with pytest.raises(UserError, match=r"rank_pattern: trivet reads AdaLoRA adapters of one rank"):
        logits_here(base, adapter)
