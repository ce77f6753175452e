"""Products with a frozen weight: oneDNN's on a CPU, whose kernels beat the BLAS that torch calls for them.

Nothing here has a gradient. A weight that serves many products of few rows is packed once instead of at every call.
Which kernel runs depends on shapes and on the machine alone, so the same machine gives the same bytes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 128  # smaller weights cost more to prepare a kernel for (about 1 ms a new shape) than it saves


def has_kernels() -> bool:
    """Whether this build of torch has oneDNN's products (inductor's freezing calls the same two)."""
    ops = torch.ops.mkldnn
    found = hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")
    return found and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def has_kernels_for(x: Tensor, weight: Tensor) -> bool:
    """Whether ``linear`` takes them."""
    return weight.is_mkldnn or (x.dtype == torch.float32 and len(x) > 0 and _fits(weight))


def _fits(weight: Tensor) -> bool:
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.is_mkldnn
    return plain and min(weight.shape) >= LEAST and has_kernels()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias`` (N, out), x (N, in), weight (out, in) or as ``pack`` gives it; without gradients."""
    if has_kernels_for(x, weight):
        return product(x, weight, bias)
    return F.linear(x, weight, bias)


def pack(weight: Tensor, rows: int) -> Tensor:
    """A copy of the weight (out, in) as ``linear`` reads it fastest, best for so many rows; or the weight itself."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, max(1, rows)) if _fits(weight) else weight
