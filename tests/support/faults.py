"""PPO as a stage on a tiny base, to be stopped and run again in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.backbone.artifacts import files_of
from stages.ppo import stage as ppo_stage
from stages.safe_points.checkpoints import Checkpoints
from stages.settings import CheckpointConfig, PPOConfig
from stages.stage import MetricsLog
from tests.conftest import make_base, randomise
from tests.support.ppo import make_context

ALWAYS, NEVER = CheckpointConfig(every_minutes=0), CheckpointConfig(every_minutes=None)


def slowly(values: tuple) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


class Ppo:
    """PPO as a stage on a tiny base with checkpoints, to be run again and again in one folder."""

    def __init__(self, folder: Path, settings: CheckpointConfig = ALWAYS, **config) -> None:
        self.folder, self.settings, self.config, self.told = folder, settings, config, list[str]()

    def run(self, at_point=lambda number: None) -> dict:
        """``at_point`` is called after each safe point with its number; returns the bytes of what came out."""
        base, log = make_base(), self.folder / "metrics.jsonl"
        self.folder.mkdir(exist_ok=True)
        points = self.points = Checkpoints(self.folder / "checkpoints", "key", self.settings, warn=self.told.append)
        start = points.tidy(log) or 0
        kept = log.read_bytes() if start else b""
        context = make_context(base, self.folder, checkpoints=points)  # begins a log of its own
        log.write_bytes(kept)
        points.metrics = MetricsLog(log, start=start)
        object.__setattr__(context, "log", points.metrics)
        object.__setattr__(context, "recipe_folder", self.folder)
        base.add_role("reference", context.adapter)
        randomise(base, "reference", 1)
        real = points.safe_point

        def safe_point(number, *args, **kwargs):
            real(number, *args, **kwargs)
            at_point(number)

        points.safe_point = safe_point  # type: ignore[method-assign]
        config = PPOConfig(
            **{"updates": 3, "rollouts": 8, "epochs": 1, "minibatches": 2, "max_new_tokens": 6, "self_check": False}
            | {"value": {"init": "sft", "head": "zero"}, "reward": [{"source": "length", "max_length": 3}]}
            | self.config,
        )  # fmt: skip
        try:
            ppo_stage.run(context, config, None)
        finally:
            points.close()
        return {k: v for k, v in files_of(self.folder).items() if not k.startswith("checkpoints/")}


def small_memory(base, rows: int, in_backward: bool) -> None:
    """A model that holds at most so many rows: more raise what a GPU raises, forwards or half-way through backwards."""

    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def forward(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[0] > rows:
            if not in_backward:
                fail()
            if hidden.requires_grad:
                hidden.register_hook(lambda grad: fail())

    base.lm.model.layers[0].register_forward_hook(forward)
