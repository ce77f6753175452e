"""How much memory a device has, and sizes as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil
import torch

from data.common.errors import UserError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", re.IGNORECASE)
USABLE = 0.92  # of a device: the rest goes to the driver, to fragments and to what an estimate leaves out
GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def parse_size(text: str, where: str) -> int:
    """Bytes of a size such as ``24GB``, ``80 GiB`` or ``500M``.

    Raises:
        UserError: it is none; ``where`` names the setting or option.
    """
    found = SIZE.fullmatch(text)
    if found is None or not float(found[1]):
        raise UserError(f"{where}: {text!r} is no size: write it as 24GB or 80GiB, or 'auto' for the device's own")
    return int(float(found[1]) * UNITS[(found[2] or "").upper()])


def device_memory(device: torch.device) -> int:
    """Bytes that one process may use: a GPU's own; on a CPU its share of the machine's, or of its container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [psutil.virtual_memory().total]
    for file in GROUPS:
        try:
            limits.append(int(Path(file).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
