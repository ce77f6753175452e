"""Tiny real models and tokenizers, made in milliseconds, no network."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["TRIVET_CACHE"] = tempfile.mkdtemp(prefix="trivet-tests-")

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase

torch.set_num_threads(1)


def pytest_collection_finish(session):
    gc.freeze()  # Transformers' trainer collects garbage twice a training, in all that imports have made as well


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["TRIVET_CACHE"], ignore_errors=True)


WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "user", "assistant", ":", *[f"w{i}" for i in range(33)]]
SHARED = Path(__file__).parents[2] / "shared"

FAMILIES = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2, "attention_dropout": 0.5},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.5},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2, "attention_dropout": 0.5},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8},
    "gemma": {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8},
    "gemma2": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 5.0},
    "gpt_neox": {"model_type": "gpt_neox", "attention_dropout": 0.5, "hidden_dropout": 0.1},
    "opt": {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.5},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "attention_dropout": 0.5},
    "phi": {"model_type": "phi", "resid_pdrop": 0.5},
}
MORE_FAMILIES = {  # for tests of the fast path alone
    "smollm3": {"model_type": "smollm3", "num_key_value_heads": 2, "attention_dropout": 0.5},
    "olmo2": {"model_type": "olmo2", "num_key_value_heads": 2, "attention_dropout": 0.5},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 2, "resid_pdrop": 0.5},
    "granite": {"model_type": "granite", "num_key_value_heads": 2, "attention_dropout": 0.5},
    "gemma3_text": {"model_type": "gemma3_text", "num_key_value_heads": 2, "head_dim": 8},
}


def word_tokenizer(pad_is_eos: bool = False, words: list[str] | None = None) -> PreTrainedTokenizerFast:
    words = words or WORDS
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<eos>" if pad_is_eos else "<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def tiny_lm(family: str = "llama", seed: int = 0, **changes: object):
    """Two layers, width 32, vocabulary 40, wide initial weights so that differences show."""
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.5 if family != "gpt2" else 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | (FAMILIES | MORE_FAMILIES)[family]
    if family == "gpt2":
        settings = {
            k: v for k, v in settings.items() if not k.startswith(("hidden_size", "num_", "intermediate", "max_p"))
        }
    settings |= changes
    config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)


def make_base(family: str = "llama", seed: int = 0, pad_is_eos: bool = False, **changes: object) -> SharedBase:
    return SharedBase(tiny_lm(family, seed, **changes), word_tokenizer(pad_is_eos), name=f"tiny-{family}")


def in_float64(lm):
    """The model in float64 throughout: RMS norms of Transformers compute in fp32, whatever the weights are.

    Two evaluations of one thing then agree to many digits on every processor, whatever its order of sums.
    """
    lm.double()
    for parent in list(lm.modules()):
        for name, norm in list(parent.named_children()):
            kind = type(norm).__name__
            if kind.endswith("RMSNorm"):
                epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
                plain = nn.RMSNorm(norm.weight.shape, epsilon, dtype=torch.float64)
                plain.weight = nn.Parameter(norm.weight + 1, False) if kind.startswith("Gemma") else norm.weight
                setattr(parent, name, plain)
    return lm


def randomise(base: SharedBase, role: str, seed: int, scale: float = 0.3) -> None:
    """Give a role's adapter a real effect (a fresh LoRA adapter changes nothing)."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in base.parameters_of(role).items():
            if ".head." not in name:
                p.normal_(0.0, scale, generator=g)


ADAPTER = AdapterConfig(rank=4, alpha=8)


@pytest.fixture
def base() -> SharedBase:
    return make_base()


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("real data: ../shared is not here")
    return SHARED
