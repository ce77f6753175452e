"""Whether this processor multiplies bf16 matrices faster than fp32 ones. A GPU that has bf16 always does."""

from __future__ import annotations

import functools
import statistics
import time
from pathlib import Path

import torch

FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # of x86 and of Arm; without any of them bf16 products are emulated
WORTH = 1.5  # a CPU's bf16 products at least so many times as fast as its fp32 ones, or they are not used
SHAPE, PAIRS = (512, 1024, 1024), 5  # rows, in, out; alternating pairs of which the median counts


@functools.cache
def has_bf16_units() -> bool:
    """Whether bf16 products are worth their rounding on this CPU: units for them, and measured to be faster.

    AVX512-BF16 alone, or a library that is told to use less than there is, can be slower than fp32.
    """
    return has_flag() and bf16_speed() >= WORTH


def has_flag() -> bool:
    """Whether the processor says that it has units for bf16; where it says nothing, no."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return any(flag in line.split() for flag in FLAGS)


@functools.cache
def bf16_speed() -> float:
    """How many times as fast as in fp32 a product of a model's size is in bf16, as measured here and now."""
    rows, inner, outer = SHAPE
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn((rows, inner), generator=g), torch.randn((outer, inner), generator=g)
    pairs = [(_seconds(x, weight), _seconds(x.bfloat16(), weight.bfloat16())) for _ in range(1 + PAIRS)]
    return statistics.median(wide / narrow for wide, narrow in pairs[1:])  # the first prepares kernels


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    return time.perf_counter() - began
