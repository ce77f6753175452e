"""Whole weights on their way to a folder: in which precision, in which shards, and what rounding does to them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.common.errors import UserError, nearest
from models.roles.lora import is_adapters, plain_name

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD = re.compile(r"[1-9]\d*(KB|MB|GB)")


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a lower precision does to weights, as ratios of Euclidean norms.

    Attributes:
        of_weights: the rounding error of all weights, over the weights.
        of_change: that of the tensors that training changed, over the change; None where none was changed.
    """

    of_weights: float
    of_change: float | None

    def sentence(self, dtype: str) -> str:
        """For the command and the model card."""
        text = f"Rounding to {dtype} changes the weights by {self.of_weights:.2g} of their norm"
        if self.of_change is None:
            return f"{text}."
        return f"{text}, which is {self.of_change:.2g} of the norm of what training changed in them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """How whole weights are written: ``dtype`` is a name of ``DTYPES`` or None (at least fp32 where an adapter was
    merged, else as they are held), ``max_shard_size`` a size such as ``5GB`` or None (Transformers' own).

    Raises:
        UserError: neither is one.
    """

    dtype: str | None = None
    max_shard_size: str | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(
                f"--dtype {self.dtype}: no such precision.{nearest(self.dtype, DTYPES)} One of: {', '.join(DTYPES)}"
            )
        if self.max_shard_size is not None and not SHARD.fullmatch(self.max_shard_size):
            raise UserError(f"--max-shard-size {self.max_shard_size}: is no size; write it as 500MB or 5GB")

    @property
    def shards(self) -> dict[str, Any]:
        """The argument of ``save_pretrained``."""
        return {} if self.max_shard_size is None else {"max_shard_size": self.max_shard_size}

    def cast(self, lm: Any, base: Any, say: Callable[[str], None]) -> Any:
        """The model in the precision asked for; ``say`` hears what rounding to it does.

        Args:
            lm: a model that nobody else holds.
            base: the model that it was trained from, which may hold adapters.
            say: takes a sentence.

        Raises:
            UserError: a weight is too large for the precision.
        """
        if self.dtype is None:
            return lm
        dtype = DTYPES[self.dtype]
        found = rounding(lm, base, dtype, self.dtype)
        if found.of_weights > 0:
            say(found.sentence(self.dtype))
        return lm.to(dtype)


def rounding(lm: Any, base: Any, dtype: torch.dtype, name: str) -> Rounding:
    """What rounding a model's weights to ``dtype`` does to them.

    Args:
        lm: the model.
        base: what it was trained from, which may hold adapters; tensors are matched by name.
        dtype: of the precision.
        name: how messages call it.

    Raises:
        UserError: a weight is too large for the precision.
    """
    before = {plain_name(key): p for key, p in base.named_parameters() if not is_adapters(key)}
    error = size = error_of_changed = change = 0.0
    for key, p in lm.named_parameters():
        exact = p.detach().double()
        rounded = p.detach().to(dtype).double()
        if not bool(rounded.isfinite().all()) and bool(exact.isfinite().all()):
            raise UserError(
                f"--dtype {name}: {key} holds {exact.abs().max().item():.3g}, too large for {name}; choose bf16 or fp32"
            )
        lost = _squares(rounded - exact)
        error, size = error + lost, size + _squares(exact)
        old = before.get(key)
        moved = _squares(exact - old.detach().double()) if old is not None and old.shape == p.shape else 0.0
        if moved:
            error_of_changed, change = error_of_changed + lost, change + moved
    return Rounding(math.sqrt(error / size) if size else 0.0, math.sqrt(error_of_changed / change) if change else None)


def _squares(tensor: Tensor) -> float:
    return float(tensor.square().sum())
