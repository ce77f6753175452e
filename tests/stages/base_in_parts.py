"""Run by torchrun in test_base_in_parts: tiny stages of ``several_processes`` on a base that processes hold in parts.

Run by itself the base is whole. Every process but the first is short of memory in one of the cases, in the middle of
a pass.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from models.backbone.processes import Processes
from models.roles.shared_base import SharedBase
from tests.conftest import tiny_lm, word_tokenizer
from tests.stages import several_processes
from tests.stages.several_processes import ALIGNED, aligned, answered, ranked, sampled, tuned

PPO = {
    "odd": ALIGNED["odd"] | {"self_check": True},
    "one row": {"rollouts": 1},
}
SFT = {"a row a step": {"batch": 1, "micro_batch": 1}, "short of memory": {"batch": 6, "micro_batch": 6}}


def make_folder(folder: Path, **changes: Any) -> Path:
    """The same base as ``several_processes`` has, in files."""
    tiny_lm(attention_dropout=0.0, **changes).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@contextmanager
def short_of_memory(base: list[SharedBase], rank: int) -> Iterator[None]:
    """The second layer has no memory for several rows at once in any process but the first."""
    real = several_processes.BASE[0]

    def made() -> SharedBase:
        found = real()

        def fail(module: Any, given: Any) -> None:
            if rank > 0 and len(given[0]) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        found.lm.get_submodule("model.layers.1.mlp").register_forward_pre_hook(fail)
        base.append(found)
        return found

    several_processes.BASE[0] = made
    try:
        yield
    finally:
        several_processes.BASE[0] = real


def everything(folder: Path) -> dict[str, Any]:
    """What this process ended in."""
    processes = Processes("auto")
    found: dict[str, Any] = {
        "world": processes.world_size,
        "sft": {"a row a step": tuned(folder, "a row a step", SFT["a row a step"])},
        "reward": ranked(folder, 1),
        "rankings": sampled(folder),
        "ppo": {name: aligned(folder, name, settings) for name, settings in PPO.items()},
        "evaluation": answered(folder),
    }
    bases: list[SharedBase] = []
    with short_of_memory(bases, processes.rank):
        found["sft"]["short of memory"] = tuned(folder, "short of memory", SFT["short of memory"])
    found["divided"], found["fingerprint"] = bases[0].divided, bases[0].fingerprint
    return found


def main(folder: Path) -> None:
    processes = Processes("auto")
    if processes.is_main:
        make_folder(folder / "base")
    processes.barrier()
    several_processes.BASE[0] = lambda: SharedBase.load(
        folder / "base", device="cpu", dtype="float32", divided=processes
    )
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(everything(folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
