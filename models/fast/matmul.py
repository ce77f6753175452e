"""Products with a frozen weight by oneDNN, whose kernels on a CPU beat the BLAS that torch calls for fp32; in bf16 they
are faster with a packed weight.

A weight that serves many products of few rows is packed once instead of at every call. oneDNN prepares a kernel for
each new shape (about 1 ms) and keeps it (0.6 MB), so only few shapes may come here: rows are filled up to one of a few
numbers. Which kernel runs depends on shapes and on the machine alone, so the same machine gives the same bytes.
Nothing here has a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIZE = 128  # smaller weights cost more in kernels than they save
SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # rows of a product; more go in blocks of the largest


def has_kernels() -> bool:
    """Whether this build of torch has oneDNN's products (inductor's freezing calls the same two)."""
    ops = torch.ops.mkldnn
    found = hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")
    return found and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def fits(weight: Tensor) -> bool:
    """Whether oneDNN is worth its while for this weight."""
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.is_mkldnn
    return plain and min(weight.shape) >= MIN_SIZE and has_kernels()


def packs(weight: Tensor) -> bool:
    """Whether oneDNN reads a packed copy of this weight faster: one that ``fits``, or in bf16 where it can."""
    if weight.dtype != torch.bfloat16:
        return fits(weight)
    plain = weight.device.type == "cpu" and not weight.is_mkldnn and min(weight.shape) >= MIN_SIZE
    return plain and has_kernels() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias`` by oneDNN; for callers whose shapes are few."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pack(weight: Tensor, rows: int) -> Tensor:
    """A copy of the weight (out, in) as ``linear`` reads it fastest, best for so many rows; or the weight itself."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, max(1, rows)) if packs(weight) else weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias`` (N, out), x (N, in), weight (out, in) as it is or as ``pack`` gives it."""
    return by_kernels(x, weight, bias) if weight.is_mkldnn else F.linear(x, weight, bias)


def by_kernels(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by oneDNN for any number of rows, for a weight that ``fits``, or that ``pack`` has packed."""
    parts = [_filled(part, weight, bias) for part in x.split(SIZES[-1])]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _filled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    size = next(s for s in SIZES if s >= len(x))
    if len(x) == size:
        return product(x, weight, bias)
    return product(F.pad(x, (0, 0, 0, size - len(x))), weight, bias)[: len(x)]
