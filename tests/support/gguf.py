"""Tiny models with byte-level tokenizers, and what llama.cpp says by their files. Not a test file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.hub.gguf_format import SPLITS
from tests.conftest import tiny_lm

TEXTS = [
    "Once upon a time there was a little fox. It didn't like the rain, and it's said that 2 of 31 foxes do.",
    "She sings; he dances!  Two blanks,\n\nnew lines and 12345 numbers.",
    "user: tell a story\nassistant: once there was a whale who'd sail.",
] * 4
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
SPLITTERS: dict[str, Any] = {
    "gpt-2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for pattern, name in SPLITS.items()
    },
}


def byte_tokenizer(split: str = "gpt-2") -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = SPLITTERS[split], decoders.ByteLevel()
    if split == "qwen2":
        made.normalizer = normalizers.NFC()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_tokens([AddedToken("<|user|>", special=True), AddedToken("<|assistant|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>", chat_template=TEMPLATE)


def sized(family: str, tokenizer: Any, **more: Any) -> Any:
    """A tiny model of a family whose rows of embeddings are more than the tokens."""
    settings = {"vocab_size": len(tokenizer) + 5, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 0}
    return tiny_lm(family, **(settings | {"max_position_embeddings": 256} | more)).eval()


def greedy(lm: Any, ids: list[int], count: int = 32, without: Sequence[int] = ()) -> list[int]:
    """Greedy tokens, without some; llama.cpp that ignores ends never says one."""
    given = torch.tensor([ids])
    more: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    more |= {"suppress_tokens": list(without)} if without else {}
    out = lm.generate(given, attention_mask=torch.ones_like(given), **more)  # which is not guessed from the ids
    return out[0, len(ids) :].tolist()


def by_llama_cpp(file: Path, prompt: str | list[int], count: int = 32) -> tuple[str, int]:
    """What llama.cpp says, greedily and with an fp32 cache, and how many tokens it makes of the prompt."""
    cpp = pytest.importorskip("xllamacpp")
    settings = cpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(file), 256, 1
    settings.warmup, settings.n_gpu_layers, settings.cpuparams.n_threads = False, 0, 1
    settings.cache_type_k = settings.cache_type_v = cpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = cpp.Server(settings)
    asked = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "cache_prompt": False, "ignore_eos": True}
    found = server.handle_completions(asked)
    found = found if isinstance(found, dict) else json.loads(found)
    assert "choices" in found, found
    return found["choices"][0]["text"], found["usage"]["prompt_tokens"]
