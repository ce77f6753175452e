"""What each of several processes multiplies a bf16 weight in, where all have units for bf16 and where only one has."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from models.backbone import processes
from models.backbone.processes import Processes, resolve_dtype
from models.fast.products import product_dtype


def main(folder: Path) -> None:
    found, rank, weight = {}, os.environ["RANK"], torch.zeros(1, dtype=torch.bfloat16)
    for case, having in (("all have them", "01"), ("one has them", "1")):
        processes.own_bf16_units = lambda having=having: rank in having  # type: ignore[assignment]
        Processes("cpu")
        found[case] = [str(product_dtype(weight)), str(resolve_dtype("auto", weight.device, 512))]
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
