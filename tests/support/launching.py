"""A script in several processes, and whether what they ended in is what one ended in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def launched(script: Path, folder: Path, count: int) -> list[dict[str, Any]]:
    """What each of several processes ended in; one that hangs raises TimeoutExpired.

    Args:
        script: is given a folder, and writes a file ``rank<number>.json`` into it.
        folder: which is made.
        count: of processes.
    """
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *TORCHRUN, str(count), str(script), str(folder)]
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=ROOT, **pipes) as launcher:
        try:
            _, said = launcher.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # which ends its processes; killed, it would leave them behind
            raise
    assert launcher.returncode == 0, said[-3000:]
    return [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]


def assert_same_training(
    one: dict[str, Any], others: list[dict[str, Any]], weights: float = 1e-5, metrics: float = 1e-6
) -> None:
    """Weights as one process has them and the same bits in all of several; every metric but times as well."""
    first = others[0]
    assert one["weights"].keys() == first["weights"].keys()
    assert all(other["weights"] == first["weights"] for other in others)
    for name, values in one["weights"].items():
        np.testing.assert_allclose(first["weights"][name], values, atol=weights, rtol=0, err_msg=name)
    for row, other in zip(one["log"], first["log"], strict=True):
        left_out = ("time/", "memory/")
        expected = {k: v for k, v in row.items() if not k.startswith(left_out)}
        assert {k: v for k, v in other.items() if not k.startswith(left_out)} == pytest.approx(
            expected, rel=metrics, abs=metrics
        )
