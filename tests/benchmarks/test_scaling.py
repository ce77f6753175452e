"""The page on scale: current, its operations and bytes those of independent counts, its figures of the right kind."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from benchmarks import scaling
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from tests.conftest import word_tokenizer

TINY = scaling.Model(
    name="tiny", layers=3, width=32, inner=80, heads=4, key_heads=2, head_size=8, vocabulary=96, tied=False
)
ROWS, LENGTH = 2, 16


def tiny_llama() -> LlamaForCausalLM:
    config = LlamaConfig(  # type: ignore[call-arg]
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
    )
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config).requires_grad_(False)


def test_the_page_is_current() -> None:
    found = json.loads(scaling.RESULTS.read_text(encoding="utf-8"))
    assert scaling.PAGE.read_text(encoding="utf-8") == scaling.page(found), "run `python benchmarks/scaling.py`"


def test_operations_are_those_that_torch_counts() -> None:
    """Torch counts the products themselves: all of attention's scores, and in backward those of inputs alone."""
    lm, tokens = tiny_llama(), float(ROWS * LENGTH)
    x = torch.randn(ROWS, LENGTH, 32, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        loss = lm(inputs_embeds=x).logits.sum()
    assert forward.get_total_flops() == scaling.forward_flops(TINY, tokens, LENGTH, tokens, causal=1.0)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() == scaling.gradient_flops(TINY, tokens, LENGTH, tokens, causal=1.0)


def test_training_every_weight_adds_a_product_of_each() -> None:
    lm, tokens = tiny_llama().requires_grad_(True), float(ROWS * LENGTH)
    x = torch.randn(ROWS, LENGTH, 32, requires_grad=True)
    with FlopCounterMode(display=False) as both:
        lm(inputs_embeds=x).logits.sum().backward()
    counted = scaling.full_training_flops(TINY, tokens, LENGTH, tokens)
    halves = scaling.forward_flops(TINY, tokens, LENGTH, 0) + scaling.gradient_flops(TINY, tokens, LENGTH, 0)
    whole = [f(TINY, tokens, LENGTH, 0, causal=1.0) for f in (scaling.forward_flops, scaling.gradient_flops)]
    assert both.get_total_flops() == counted - halves + sum(whole)


def test_adapters_add_six_operations_a_number_and_token() -> None:
    """LoRA of rank 4 on all matrices of the blocks: forward, and backward by input and by weight."""
    base = SharedBase(tiny_llama(), word_tokenizer(), name="tiny")
    base.add_role("policy", AdapterConfig(rank=4, alpha=8))
    numbers = sum(p.numel() for p in base.parameters_of("policy").values())
    assert numbers == TINY.adapter(4) == TINY.shape(4).adapter
    tokens = float(ROWS * LENGTH)
    with base.training("policy"), base.role("policy") as view:
        x = torch.randn(ROWS, LENGTH, 32, requires_grad=True)
        with FlopCounterMode(display=False) as both:
            view.lm(inputs_embeds=x).logits.sum().backward()
    plain = [f(TINY, tokens, LENGTH, tokens, causal=1.0) for f in (scaling.forward_flops, scaling.gradient_flops)]
    assert both.get_total_flops() == sum(plain) + 6 * numbers * tokens
    once = scaling.training_flops(TINY, 4, tokens, LENGTH, tokens, again=False)
    again = scaling.training_flops(TINY, 4, tokens, LENGTH, tokens)
    assert again - once == scaling.forward_flops(TINY, tokens, LENGTH, 0)
    halves = [f(TINY, tokens, LENGTH, tokens) for f in (scaling.forward_flops, scaling.gradient_flops)]
    assert once == sum(halves) + 6 * numbers * tokens


def test_bytes_are_those_of_the_weights() -> None:
    lm = tiny_llama()
    assert TINY.parameters == sum(p.numel() for p in lm.parameters())
    inside = sum(p.numel() for p in lm.model.layers.parameters() if p.ndim == 2)
    assert TINY.linear == inside
    keys_and_values = 2 * 3 * 16 * 5 * 7  # of 5 rows of 7 tokens, in 3 layers of 2 heads of 8
    assert scaling.decoding_bytes(TINY, 5, 7) == 2 * (inside + 96 * 32 + keys_and_values)


def test_parameters_are_those_that_are_published() -> None:
    known = {
        "Qwen2.5-0.5B": 494_032_768,
        "Qwen2.5-1.5B": 1_543_714_304,
        "Llama-3.1-8B": 8_030_261_248,
        "Qwen2.5-32B": 32_763_876_352,
        "Llama-3.1-70B": 70_553_706_496,
    }
    assert {m.name: m.parameters for m in scaling.MODELS} == known
    opt = OPTForCausalLM(
        OPTConfig(
            hidden_size=32,
            ffn_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            vocab_size=50272,
            max_position_embeddings=2048,
        )
    )
    assert scaling._opt("tiny", 2, 32, 4).parameters == sum(p.numel() for p in opt.parameters())


def test_more_gpus_take_no_longer_until_a_sharded_base_is_what_is_waited_for() -> None:
    job = scaling.Job()
    for model in scaling.MODELS:
        seconds = [scaling.stage_seconds(model, scaling.H100, n, job) for n in scaling.GPUS]
        assert all(b["rankings"] <= a["rankings"] for a, b in pairwise(seconds))
        assert min(s["ppo"] for s in seconds) == seconds[-1]["ppo"] or scaling.sharded(model, scaling.H100)
    eight = next(m for m in scaling.MODELS if m.name == "Llama-3.1-8B")
    one, two = (scaling.stage_seconds(eight, scaling.H100, n, job)["ppo"] for n in (1, 2))
    assert one < 2 * two * 1.05 and two < one


def test_a_message_is_counted_by_a_ring() -> None:
    """Each of 4 sends 3/4 of all numbers twice: 2 x 3/4 x 4 bytes x 1e9 / (0.6 x 450e9) s, and six small messages."""
    found = scaling.reduce_seconds(1e9, scaling.H100, 4)
    assert found == pytest.approx(2 * 0.75 * 4e9 / 270e9 + 6 * 30e-6)
    assert scaling.reduce_seconds(1e9, scaling.H100, 1) == 0
    slow = replace(scaling.H100, network=25e9)
    assert scaling.reduce_seconds(1e9, slow, 16) > scaling.reduce_seconds(1e9, scaling.H100, 16) > found


def test_errors_against_others_are_shown_as_they_are() -> None:
    text = scaling.PAGE.read_text(encoding="utf-8")
    found = scaling.published()
    assert len(found) == 5
    for one in found:
        row = next(line for line in text.splitlines() if one.what in line)
        assert f"{one.counted / one.published - 1:+.0%}" in row and f"{one.published:,.4g}" in row
