"""The process's own state, kept from code that changes it: generators, settings of PyTorch and NumPy, the folder, and
the interpreter's (``interpreter_state``).

A reward's file that says ``torch.set_grad_enabled(False)`` or ``torch.manual_seed(0)`` means its own model; left as it
is, that would stop or change the training around it. Knows nothing of functions or files. PyTorch is not imported here,
but may be by the code that is run.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from data.common.interpreter_state import interpreter_kept, own_surroundings

NUMPY_SEEDS = 2**32


@contextlib.contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed the global generators for code that uses them, and put them back afterwards.

    Args:
        seed: of Python's, NumPy's and, where it is loaded, PyTorch's generators.
    """
    python, numpy, torch = random.getstate(), np.random.get_state(), sys.modules.get("torch")
    cpu = None if torch is None else torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch is not None and torch.cuda.is_initialized() else []
    try:
        random.seed(seed)
        np.random.seed(seed % NUMPY_SEEDS)
        if torch is not None:
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None:
            torch.set_rng_state(cpu)
        if torch is not None and cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def kept(seed: int, owner: str) -> Iterator[None]:
    """Run code in ``isolated_rng``, and put back afterwards what else it changed of the process's state.

    Args:
        seed: of the generators.
        owner: whose code it is, which finds environment and import path as it left them.
    """
    folder, errors = _folder(), np.geterr()
    before = _settings_of(sys.modules.get("torch"))
    try:
        with isolated_rng(seed), interpreter_kept(), own_surroundings(owner):
            yield
    finally:
        np.seterr(**errors)
        if folder is not None and _folder() != folder:
            os.chdir(folder)
        _set(sys.modules.get("torch"), before)


def _folder() -> str | None:
    """The folder that the process is in; None where it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _settings_of(torch: Any) -> dict[str, Any]:
    """What PyTorch holds for the whole process and computations depend on; as it begins, where it is not loaded yet."""
    if torch is None:
        return {
            "dtype": "float32",
            "grad": True,
            "threads": None,
            "precision": "highest",
            "deterministic": 0,
            "device": "cpu",
            "anomaly": False,
        }
    return {
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "device": str(torch.get_default_device()),
        "anomaly": torch.is_anomaly_enabled(),
    }


def _set(torch: Any, wanted: dict[str, Any]) -> None:
    if torch is None or (now := _settings_of(torch)) == wanted:
        return
    torch.set_default_dtype(getattr(torch, wanted["dtype"]))
    torch.set_grad_enabled(wanted["grad"])
    torch.set_float32_matmul_precision(wanted["precision"])
    torch.set_deterministic_debug_mode(wanted["deterministic"])
    torch.autograd.set_detect_anomaly(wanted["anomaly"])
    if now["device"] != wanted["device"]:
        torch.set_default_device(None if wanted["device"] == "cpu" else wanted["device"])
    if wanted["threads"] not in (None, now["threads"]):
        torch.set_num_threads(wanted["threads"])
