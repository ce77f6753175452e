"""What writer and reader of GGUF files both know: families, ways of splitting text, and kinds of tokens.

The format is that of the GGUF specification (github.com/ggml-org/ggml).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How llama.cpp calls a family, and whether it turns neighbouring numbers of queries and keys, not halves."""

    name: str
    neighbours: bool = False


FAMILIES = {
    "llama": Family(name="llama", neighbours=True),
    "mistral": Family(name="llama", neighbours=True),
    "qwen2": Family(name="qwen2"),
    "qwen3": Family(name="qwen3"),
}
"""Transformers' model types that can be written."""
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}
"""Regular expressions by which byte-level tokenizers split text, and llama.cpp's names of them."""
SAME_SPLITS = {
    **dict.fromkeys(("phi-2", "mpt", "olmo"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3"), "llama-bpe"),
    "deepseek-r1-qwen": "qwen2",
}
"""Other names that llama.cpp has for ways of splitting text that we know."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens."""
ROPE_FACTORS = "rope_freqs.weight"
"""The tensor by which the turning of queries and keys is slowed down, a number for each frequency."""


def neighbouring(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in the order in which neighbours are turned together: (heads x size, ...), each head's
    first half between its second."""
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def in_halves(weight: Tensor, heads: int) -> Tensor:
    """The inverse of ``neighbouring``."""
    pairs = weight.view(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def rope_factors(base: float, size: int, factor: float, low: float, high: float, context: int) -> Tensor:
    """What Llama 3's scaling divides each frequency by (Llama 3.1's ``apply_scaling``).

    Args:
        base: of the frequencies.
        size: of a head.
        factor: by which low frequencies are slowed down.
        low: waves longer than ``context / low`` are low frequencies.
        high: waves shorter than ``context / high`` stay as they are.
        context: length of the context that the model had before.

    Returns:
        (size / 2,) in fp32.
    """
    waves = 2 * torch.pi * base ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    smooth = (context / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = torch.where(waves < context / high, 1.0, torch.where(waves > context / low, factor, between))
    return found.float()
