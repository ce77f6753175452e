"""What checkpoints cost the demo's PPO stage, in CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_cost.py runs/demo --updates 6 --repeats 3

takes the finished stages of a demo run and runs its PPO stage for a few updates, in turns: with no checkpoint, at the
default interval, after every update, and at every safe point. Both the time on the training thread (copying, looking
whether one is due) and that of the writing thread are measured as well as the whole stage's. The share at the default
interval is that of one checkpoint in ten minutes of this stage, however short the demo is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairs import device

from pipelines.run.pipeline import Pipeline
from stages.ppo import stage as ppo_stage
from stages.safe_points.checkpoints import Checkpoints
from stages.settings import CheckpointConfig

ROOT = Path(__file__).parents[1]
DEFAULT = CheckpointConfig().every_minutes or 0.0
CASES = {
    "none": ["checkpoint.every_minutes=null"],
    "default": [],
    "every update": ["checkpoint.every_minutes=null", "checkpoint.every_steps=1"],
    "every safe point": ["checkpoint.every_minutes=0"],
}


class Meter:
    """Seconds of CPU and wall time, in the training thread and in the writer's."""

    def __init__(self) -> None:
        self.stage = self.training = self.waiting = self.writing = 0.0
        self.points = self.saves = 0

    def install(self) -> None:
        point, write, run = Checkpoints.safe_point, Checkpoints._write, ppo_stage.run

        def safe_point(*args: Any, **kwargs: Any) -> None:
            self.points += 1
            cpu, wall = time.thread_time(), time.perf_counter()
            point(*args, **kwargs)
            self.training += time.thread_time() - cpu
            self.waiting += time.perf_counter() - wall

        def writer(*args: Any, **kwargs: Any) -> None:
            self.saves += 1
            cpu = time.thread_time()
            write(*args, **kwargs)
            self.writing += time.thread_time() - cpu

        def stage(*args: Any, **kwargs: Any) -> Any:
            cpu = time.process_time()
            found = run(*args, **kwargs)
            self.stage = time.process_time() - cpu
            return found

        self.put(safe_point, writer, stage)
        self.before = (point, write, run)

    @staticmethod
    def put(safe_point: Any, writer: Any, stage: Any) -> None:
        Checkpoints.safe_point, Checkpoints._write, ppo_stage.run = safe_point, writer, stage  # type: ignore[method-assign]


def measure(run: Path, updates: int, settings: list[str]) -> Meter:
    meter = Meter()
    meter.install()
    inputs = {name: str(run / name) for name in ("pretrain", "sft", "reward")}
    try:
        with tempfile.TemporaryDirectory() as folder:
            changes = [f"ppo.updates={updates}", "ppo.self_check=false", "reward.gate=off", *settings]
            Pipeline.from_recipe(ROOT / "examples/demo.yaml", changes, run_dir=folder, inputs=inputs).run(only=["ppo"])
    finally:
        meter.put(*meter.before)
    return meter


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("run", type=Path, help="a finished demo run: its pretrain, sft and reward are used")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/checkpoint_cost.json")
    chosen = parser.parse_args()
    found: dict[str, list[Meter]] = {name: [] for name in CASES}
    for i in range(chosen.repeats):
        for name in list(CASES) if i % 2 == 0 else list(CASES)[::-1]:
            found[name].append(measure(chosen.run, chosen.updates, CASES[name]))
            m = found[name][-1]
            print(f"{name}: stage {m.stage:.2f} s, {m.saves} saves, {m.training:.3f} + {m.writing:.3f} s", flush=True)

    def middle(name: str, value: Any) -> float:
        return statistics.median(value(m) for m in found[name])

    cases = {
        name: {
            "stage_cpu_s": middle(name, lambda m: m.stage),
            "ratio_to_none": statistics.median(
                m.stage / n.stage for m, n in zip(found[name], found["none"], strict=True)
            ),
            "share_measured_in_threads": middle(name, lambda m: (m.training + m.writing) / m.stage),
            "saves": middle(name, lambda m: m.saves),
            "safe_points": middle(name, lambda m: m.points),
        }
        for name in CASES
    }
    dense = found["every safe point"]
    save = statistics.median((m.training + m.writing) / m.saves for m in dense)
    look = statistics.median(m.training / m.points for m in found["none"])
    per_second = middle("none", lambda m: m.points / m.stage)
    out = {
        "device": device(),
        "updates": chosen.updates,
        "repeats": chosen.repeats,
        "cases": cases,
        "cpu_s_a_checkpoint": save,
        "of_it_on_the_training_thread": statistics.median(m.training / m.saves for m in dense),
        "cpu_s_a_look": look,
        "share_at_the_default_interval": save / (60 * DEFAULT) + look * per_second,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
