"""Whether this processor multiplies bf16 matrices faster than fp32 ones. A GPU that has bf16 always does."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from data.storage.kept import Memo, key_of

FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # of x86 and of Arm; without any of them bf16 products are emulated
WORTH = 1.5  # a CPU's bf16 products at least so many times as fast as its fp32 ones, or they are not used
MIN_WIDTH = 512  # of a base: where products are smaller, what stands around them takes the time
CAPS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")  # less of the processor than there is
SHAPE, PAIRS = (512, 1024, 1024), 5  # rows, in, out; alternating pairs


_agreed: bool | None = None  # by all processes of a group


def has_bf16_units() -> bool:
    """Whether bf16 products are worth their rounding on this CPU, and on those of all processes that work together."""
    return own_bf16_units() if _agreed is None else _agreed


def agree_on_units(found: Sequence[bool]) -> None:
    """bf16 products are made where every process has units for them: what each of a group found, in any order.

    Processes of unlike precisions would train other weights than they say, and may stand on machines of their own.
    """
    global _agreed
    _agreed = all(found)


@functools.cache
def own_bf16_units() -> bool:
    """Whether this CPU has units for bf16 products, and they were measured to be faster.

    AVX512-BF16 alone, or a library that is told to use less than there is, can be slower than fp32.
    """
    return has_flag() and remembered_speed() >= WORTH


def has_flag() -> bool:
    """Whether the processor says that it has units for bf16; where it says nothing, no."""
    return any(flag in _cpu_says("flags", "Features").split() for flag in FLAGS)


def _cpu_says(*names: str) -> str:
    """What stands behind the first of these names in the processor's description; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(names)), "")


def remembered_speed() -> float:
    """``bf16_speed``, as this processor, build of torch and cap gave it first, kept in the cache.

    Measured again it could fall on the other side of ``WORTH``, and a run that resumes needs the precision of before;
    so do the processes of one run, which may measure at the same time.
    """
    caps = {name: os.environ[name] for name in CAPS if name in os.environ}
    processor = [_cpu_says("model name"), _cpu_says("flags", "Features")]
    memo = Memo(key_of(["bf16 speed", processor, torch.__version__, caps]))
    return float(memo.first("speed", lambda: str(bf16_speed())))


def bf16_speed() -> float:
    """How many times as fast as in fp32 a product of a model's size is in bf16, as measured here and now.

    Of the least times: other work on the machine makes a product slower, and none makes it faster.
    """
    rows, inner, outer = SHAPE
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn((rows, inner), generator=g), torch.randn((outer, inner), generator=g)
    pairs = [(_seconds(x, weight), _seconds(x.bfloat16(), weight.bfloat16())) for _ in range(1 + PAIRS)]
    wide, narrow = zip(*pairs[1:], strict=True)  # the first prepares kernels
    return min(wide) / min(narrow)


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    return time.perf_counter() - began
