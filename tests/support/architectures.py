"""Configs of small models of every kind that goes through a whole run: in the tests, and in the page of families."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from tests.conftest import WORDS

SMALL = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HYBRID = {
    "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
STATES = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2,
    "mamba_chunk_size": 8, "mamba_d_ssm": 64,
}  # fmt: skip
LATENT = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2, "topk_group": 1,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
SEEING = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "depth": 1, "num_attention_heads": 2,
    "num_heads": 2, "out_hidden_size": 32, "image_size": 28, "patch_size": 14,
}  # fmt: skip
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": EXPERTS | {"head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "deepseek_v3": LATENT,
    "qwen3_next": EXPERTS | HYBRID | {"shared_expert_intermediate_size": 16},
    "gemma3": {"text_config": SMALL | {"head_dim": 8}, "vision_config": SEEING},
    "qwen3_5": {"text_config": SMALL | HYBRID, "vision_config": SEEING},
    "phimoe": {"num_local_experts": 4},
    "llama4_text": {"num_local_experts": 4, "head_dim": 8, "intermediate_size_mlp": 64},
    "gemma3n_text": {
        "head_dim": 8, "vocab_size_per_layer_input": len(WORDS), "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0, 0.0], "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "olmoe": EXPERTS, "granitemoe": {"num_local_experts": 4}, "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16}, "qwen3_5_text": HYBRID,
    "lfm2": {"layer_types": ["conv", "full_attention"]}, "gemma3_text": {"head_dim": 8}, "phi3": {}, "granite": {},
    "olmo2": {}, "smollm3": {}, "cohere": {}, "starcoder2": {}, "stablelm": {}, "falcon": {}, "nemotron": {},
    "bloom": {"n_layer": 2, "n_head": 4}, "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2}, "exaone4": {},
    "jamba": {
        "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_d_conv": 2, "mamba_expand": 2,
    },
    "falcon_h1": STATES | {"head_dim": 8}, "granitemoehybrid": STATES | {
        "num_local_experts": 4, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16,
    },
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {"head_dim": 8}, "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8}, "olmo": {}, "phi": {}, "gpt_neox": {}, "helium": {"head_dim": 8}, "cohere2": {},
    "diffllama": {}, "doge": {}, "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "glm4": {"head_dim": 8}, "ernie4_5": {"head_dim": 8}, "hunyuan_v1_dense": {"head_dim": 8},
}  # fmt: skip


def config_of(kind: str) -> Any:
    settings = (ARCHITECTURES | MORE)[kind]
    return AutoConfig.for_model(kind, **(settings if "text_config" in settings else SMALL | settings))
