"""A frozen base's matrices in four bits (NF4, Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes, an extra.

What is computed with is each number's nearest of 16 levels times the scale of its block of 64, in the base's own
precision: whoever multiplies asks for a matrix whole, one at a time. Adapters, heads and all else stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from data.common.errors import UserError

PACKAGE = "bitsandbytes"
BLOCK = 64


def can_quantize() -> bool:
    """Whether the package is there."""
    return find_spec(PACKAGE) is not None


def check_package() -> None:
    """Refuse a base in four bits without the package.

    Raises:
        UserError: says how to install it.
    """
    if not can_quantize():
        raise UserError(f"runtime.quantize: nf4 needs {PACKAGE}: pip install 'trivet[nf4]'")


def quantize(lm: nn.Module, names: list[str], device: torch.device) -> None:
    """Put the matrices of these linear layers into four bits, one after another, and all of ``lm`` on the device.

    Args:
        lm: a base with its weights in the precision that it is to compute in.
        names: last names of the linear layers of its blocks.
        device: where it goes.

    Raises:
        UserError: the package is missing, or a layer is no ``nn.Linear``.
    """
    check_package()
    for path, module in list(lm.named_modules()):
        name = path.rsplit(".", 1)[-1]
        if name not in names or not any(part.isdigit() for part in path.split(".")):
            continue
        if type(module) is not nn.Linear:
            raise UserError(f"runtime.quantize: {path} is a {type(module).__name__}, and nf4 is for nn.Linear alone")
        parent = lm.get_submodule(path.rpartition(".")[0])
        setattr(parent, name, _packed(module, device))
    lm.to(device)


def _packed(module: nn.Linear, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    dtype, bias = module.weight.dtype, module.bias is not None
    made = Linear4bit(
        module.in_features,
        module.out_features,
        bias=bias,
        compute_dtype=dtype,
        quant_type="nf4",
        compress_statistics=False,
        device="meta",
    )
    made.support_avx512bf16_for_cpu = False  # it would lay the weight out anew in forward, under everybody's feet
    made.weight = _parameter(module.weight.detach(), device)
    if bias:
        made.bias = nn.Parameter(module.bias.detach().to(device), requires_grad=False)
    return made


def _parameter(weight: Tensor, device: torch.device) -> Any:
    from bitsandbytes.nn import Params4bit

    made: Any = Params4bit(weight, requires_grad=False, quant_type="nf4", blocksize=BLOCK, compress_statistics=False)
    return made.to(device)


def pack_matrix(weight: Tensor) -> PackedWeight:
    """A matrix (out, in) in four bits, on its device."""
    return PackedWeight(_parameter(weight, weight.device))


def is_packed(module: Any) -> bool:
    """Whether a module is a linear layer in four bits."""
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith(f"{PACKAGE}.")


def scales_of(weight: Tensor) -> Tensor | None:
    """The scales of a packed matrix's blocks; None of any other."""
    state = getattr(weight, "quant_state", None)
    return None if state is None else state.absmax


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix (out, in) in four bits, in the place of a tensor; ``whole()`` is what is multiplied with."""

    weight: Any

    @property
    def shape(self) -> torch.Size:
        """That of the matrix, (out, in)."""
        return torch.Size(self.weight.quant_state.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of what it is unpacked to."""
        found: torch.dtype = self.weight.quant_state.dtype
        return found

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        found: torch.device = self.weight.device
        return found

    @property
    def requires_grad(self) -> bool:
        """False: it is frozen."""
        return False

    def __len__(self) -> int:
        return self.shape[0]

    def whole(self) -> Tensor:
        """The matrix, unpacked."""
        from bitsandbytes.functional import dequantize_4bit

        with torch.no_grad():
            return dequantize_4bit(self.weight.data, self.weight.quant_state)


def whole(weight: Tensor | PackedWeight) -> Tensor:
    """A matrix as a tensor."""
    return weight.whole() if isinstance(weight, PackedWeight) else weight
