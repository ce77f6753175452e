"""Run by torchrun in test_other_processes: stages of a run that is there, each stopped at a safe point or resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipelines.run.pipeline import Pipeline
from stages.safe_points.checkpoints import Checkpoints
from stages.safe_points.interrupts import INTERRUPTS

POINTS = {"pretrain": 5, "sft": 2, "rankings": 1, "reward": 2, "ppo": 3, "evaluate": 2}
"""Safe points before the stop; PPO's third is in the midst of a cycle."""


def stop_at(points: int) -> None:
    """From here on the main process asks for a stop at that safe point."""
    seen = [0]

    def safe_point(self, *args, **more):
        seen[0] += 1
        INTERRUPTS.asked = seen[0] == points and self.processes.is_main
        return real(self, *args, **more)

    Checkpoints.safe_point = safe_point  # type: ignore[method-assign]


real = Checkpoints.safe_point


def main(recipe: Path, folder: Path, stages: list[str], stop: bool) -> None:
    for name in stages:
        if stop:
            stop_at(POINTS[name])
        pipeline = Pipeline.from_recipe(json.loads(recipe.read_text()), run_dir=folder / name)
        try:
            pipeline.run(only=[name])
        except KeyboardInterrupt:
            assert stop
        INTERRUPTS.clear()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:], sys.argv[3] == "stop")
