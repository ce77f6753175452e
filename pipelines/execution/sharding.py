"""Whether the processes of a run hold its frozen base in parts (``runtime.sharding``)."""

from __future__ import annotations

import torch

from models.backbone.device_memory import USABLE, device_memory
from models.backbone.launch import START
from pipelines.recipe.schema import Recipe

ROOM = 0.75
"""Of what can be used of a card: a base that takes more of it leaves too little for what is computed with it."""


def is_divided(recipe: Recipe, device: torch.device, processes: int, weights: float | None) -> bool:
    """Whether a base is held in parts.

    Args:
        recipe: what asks for it.
        device: of each process.
        processes: that work together.
        weights: bytes of the base; None where they are not known yet.
    """
    runtime = recipe.runtime
    if processes == 1 or runtime.sharding == "none":
        return False
    if runtime.sharding == "fsdp2":
        return True
    adapter = recipe.adapter
    unfit = (
        not adapter.tuning.divided
        or bool(adapter.embeddings_setting or adapter.new_tokens)
        or runtime.quantize is not None
    )
    if device.type == "cpu" or weights is None or unfit:
        return False
    return weights > ROOM * USABLE * device_memory(device)


def sentence(recipe: Recipe, divided: bool, processes: int) -> str:
    """What is said of it before the first stage; '' where there is nothing to say."""
    if divided:
        full = recipe.adapter.method == "full"
        what = "the base and all models that are trained" if full else "the frozen base"
        maker = recipe.base_stage
        whole = f"; {maker} is not divided: each process trains a whole base in fp32" if maker else ""
        return (
            f"runtime.sharding: {processes} processes hold {what} in parts and gather a layer where it is "
            f"computed with; passes are those of Transformers' modules, without trivet's fast path{whole}"
        )
    if processes == 1 and recipe.runtime.sharding == "fsdp2":
        return f"runtime.sharding: 'fsdp2' has no effect in one process, which holds the whole base; {START}"
    return ""
