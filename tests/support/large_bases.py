"""Bases of billions of parameters as a hub's cache has them: config, tokenizer, and weights that are holes in files."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.conftest import word_tokenizer

COMMIT = "c" * 40


def cached_base(cache: Path, hub_id: str, layers: int, width: int, inner: int, heads: int, keys: int) -> None:
    """A Llama in bf16 in the cache of the hub's client; a vocabulary of 32,000, of which a few words are used."""
    home = cache / f"models--{hub_id.replace('/', '--')}"
    folder = home / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(COMMIT)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": keys, "vocab_size": 32_000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    word_tokenizer(words=["<pad>", "<bos>", "<eos>", "<unk>", *[f"w{i}" for i in range(100)]]).save_pretrained(folder)
    kv = width * keys // heads
    shapes = {"model.embed_tokens": [32_000, width], "lm_head": [32_000, width], "model.norm": [width]}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.{n}_proj": [s, width] for n, s in (("q", width), ("k", kv), ("v", kv), ("o", width))
        }
        shapes |= {f"{at}.mlp.{n}_proj": [inner, width] for n in ("gate", "up")} | {
            f"{at}.mlp.down_proj": [width, inner]
        }
        shapes |= {f"{at}.{n}_layernorm": [width] for n in ("input", "post_attention")}
    write_holes(folder / "model.safetensors", {f"{name}.weight": shape for name, shape in shapes.items()})


def write_holes(file: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file of bf16 tensors whose numbers were never written: it takes no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
