"""Bases on the fast path, and sampling from them by either engine."""

from __future__ import annotations

from typing import Any

import torch

from models.backbone.settings import AdapterConfig
from models.sampling.generate import SamplingParams, generate
from tests.conftest import ADAPTER, make_base, randomise

QUERIES = [[5, 9], [7, 8, 9, 10, 11], [12, 13, 2, 14, 15, 16, 17, 18, 19], [20]]


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama, angles rescaled": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}},
    ),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral, a window": ("mistral", {"sliding_window": 4}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "olmo2": ("olmo2", {"num_key_value_heads": 2}),
    "phi3": ("phi3", {"sliding_window": 5}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
    "gemma2": ("gemma2", {"sliding_window": 4, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 11}),
    "gemma3": ("gemma3_text", {"sliding_window": 4, "query_pre_attn_scalar": 11}),
}


def world_size(kind: str = "llama", adapter: AdapterConfig = ADAPTER, dtype: torch.dtype = torch.float32):
    family, changes = KINDS[kind]
    base = make_base(family, **({"initializer_range": 0.2} | changes))
    base.lm.to(dtype)
    base.add_role("policy", adapter, head=True, trainable=True)
    randomise(base, "policy", seed=1, scale=0.1)
    with torch.no_grad():  # norms and biases that say something
        for name, p in base.lm.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    base.lm.to(dtype)
    return base


def sampled(base, engine, prompts, noise=None, stops=(2, 7), steps=12, batch=99, temperature=0.9, role="policy"):
    with base.role(role) as view:
        return generate(
            engine,
            view,
            prompts,
            noise=noise,
            batch=batch,
            params=SamplingParams(max_new_tokens=steps, temperature=temperature, stop_ids=stops, pad_id=0),
        )
