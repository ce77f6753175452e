"""The process's own state, kept from a user's code: generators, PyTorch's and NumPy's global settings, the folder.

A reward's file that says ``torch.set_grad_enabled(False)`` or ``torch.manual_seed(0)`` means its own model; left as it
is, that would stop or change the training around it. Knows nothing of functions or files.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

NUMPY_SEEDS = 2**32


@contextlib.contextmanager
def kept(seed: int) -> Iterator[None]:
    """Run code with seeded global generators, and put back afterwards what it changed of the process's state.

    Args:
        seed: of Python's, NumPy's and, where it is loaded, PyTorch's generators for this code.
    """
    folder = os.getcwd()
    python, numpy, errors = random.getstate(), np.random.get_state(), np.geterr()
    torch = sys.modules.get("torch")
    before = None if torch is None else _torch_state(torch)
    try:
        random.seed(seed)
        np.random.seed(seed % NUMPY_SEEDS)
        if torch is not None:
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        np.seterr(**errors)
        if os.getcwd() != folder:
            os.chdir(folder)
        if torch is not None and before is not None:
            _set_torch_state(torch, before)


def _torch_state(torch: Any) -> dict[str, Any]:
    """What PyTorch holds for the whole process and computations depend on."""
    return {
        "rng": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _set_torch_state(torch: Any, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["rng"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    torch.set_default_dtype(state["dtype"])
    torch.set_grad_enabled(state["grad"])
    if torch.get_num_threads() != state["threads"]:
        torch.set_num_threads(state["threads"])
    if torch.are_deterministic_algorithms_enabled() != state["deterministic"]:
        torch.use_deterministic_algorithms(state["deterministic"])
