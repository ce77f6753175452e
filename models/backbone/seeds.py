"""One seed in the recipe; every consumer takes its noise from its own generator, derived from (seed, purpose, step).

So printing samples, evaluating more often or resuming changes nobody else's noise.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

from data.common.process_state import isolated_rng

__all__ = ["derived_seed", "generator", "global_rng", "isolated_rng", "set_global_rng"]


def derived_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed that depends on all three arguments and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator of its own: noise is made on the CPU so that every device sees the same ones."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, step))


def global_rng() -> dict[str, torch.Tensor]:
    """State of the global generators as tensors: Python's, NumPy's, torch's."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    assert version == 3 and kind == "MT19937"
    out = {
        "rng/python": torch.tensor(words, dtype=torch.int64),
        "rng/python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "rng/numpy": torch.tensor([int(k) for k in keys] + [int(position), int(has_gauss)], dtype=torch.int64),
        "rng/numpy_gauss": torch.tensor([float(cached)], dtype=torch.float64),
        "rng/torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        out |= {f"rng/cuda/{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return out


def set_global_rng(state: dict[str, torch.Tensor]) -> None:
    """The inverse of ``global_rng``."""
    gauss = state["rng/python_gauss"].tolist()
    random.setstate((3, tuple(state["rng/python"].tolist()), gauss[0] if gauss else None))
    *keys, position, has_gauss = state["rng/numpy"].tolist()
    cached = state["rng/numpy_gauss"].item()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["rng/torch"])
    for name in sorted(n for n in state if n.startswith("rng/cuda/")):
        torch.cuda.set_rng_state(state[name], int(name.rsplit("/", 1)[1]))
