"""Thousands of PPO updates with random kills: neither memory, nor time a step, nor checkpoints may grow.

``python -m tests.resume.soak`` runs the tiniest model for 5,000 updates, kills it with SIGKILL at random instants and
gives the same command again; then it asks for slopes whose 95 % intervals contain zero and writes
``benchmarks/results/soak.json``. Before each process of the long run and after the last one, the first updates of a
new run are measured, and of the long run's medians those of its two neighbours are taken off: whatever the machine does
meanwhile is in both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy import stats

from pipelines.run.pipeline import Pipeline
from stages.stage import MetricsLog
from tests.resume.kills import Warm, device
from tests.support.recipes import RECIPE, ROOT

SETTINGS = (
    "stages=[pretrain, sft, ppo]",
    "rankings=null",
    "base.pretrain.model={layers: 1, width: 16, feed_forward: 16, heads: 2, context: 64}",
    "ppo.reward=[{source: length, max_length: 3}]",
    "ppo.value.init=sft",
    "ppo.self_check=false",
    "ppo.keep_every=null",  # as by default: policies that are kept on purpose grow in number on purpose
    "ppo.learning_rate=1e-6",  # a policy that learns to be short makes updates cheaper: the work must stay the same
    "ppo.rollouts=4",
    "ppo.max_new_tokens=4",
    "checkpoint.every_minutes=null",
    "checkpoint.every_steps=20",
)
CONTROL = 160  # updates of a new run beside each process of the long one
WARM_UP = 60  # updates of a process that are left out: allocators and caches fill
BLOCK = 10  # updates of which the median time is taken


def work(run_dir: str, updates: int, only: tuple[str, ...], inputs: dict[str, str] | None = None) -> None:
    """In the child: run, and note after each update what the process has taken."""
    log = os.open(run_dir + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    real, process, before = MetricsLog.write, psutil.Process(), [time.process_time()]
    notes = open(run_dir + ".samples", "a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def write(self: MetricsLog, step: int, values: Any) -> None:
        real(self, step, values)
        if "objective/kl" in values:
            now, folders = time.process_time(), list((self.path.parent / "checkpoints").glob("step_*"))
            row = [os.getpid(), step, process.memory_info().rss, now - before[0], len(folders)]
            before[0] = now
            notes.write(json.dumps(row) + "\n")

    MetricsLog.write = write  # type: ignore[method-assign]
    settings = [*SETTINGS, f"ppo.updates={updates}"]
    Pipeline.from_recipe(RECIPE, settings, run_dir=run_dir, inputs=inputs or {}).run(only=only)


def samples(run_dir: str) -> list[list[float]]:
    path = Path(run_dir + ".samples")
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def count(run_dir: str) -> int:
    """Rows so far, in constant memory: children are forked from this process, and its pages count as theirs."""
    try:
        with open(run_dir + ".samples", "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 16), b""))
    except FileNotFoundError:
        return 0


def soak(run_dir: str, updates: int, apart: int, rng: random.Random) -> int:
    """Kill and go on until all updates are done; the number of kills."""
    warm, kills = Warm(), 0
    first = warm.context.Process(target=work, args=(run_dir, updates, ("pretrain", "sft")))
    first.start()
    first.join()
    while True:
        control(warm, run_dir, updates)
        process = warm.context.Process(target=work, args=(run_dir, updates, ("ppo",)))
        limit = count(run_dir) + rng.randint(apart // 2, apart + apart // 2)
        process.start()
        while process.is_alive() and count(run_dir) < limit:
            process.join(0.5)
        process.join(rng.uniform(0, 0.2))
        if not process.is_alive():
            if process.exitcode != 0:
                raise RuntimeError(f"exit code {process.exitcode}: {run_dir}.log")
            control(warm, run_dir, updates)
            return kills
        process.kill()
        process.join()
        kills += 1
        print(f"{kills} kills, {count(run_dir)} updates with those done twice", flush=True)


def control(warm: Warm, run_dir: str, updates: int) -> None:
    """The first updates of a new run that takes the long one's earlier stages; its samples are kept, the run is not."""
    fresh = run_dir + ".control"
    shutil.rmtree(fresh, ignore_errors=True)
    inputs = {name: f"{run_dir}/{name}" for name in ("pretrain", "sft")}
    process, goal = warm.context.Process(target=work, args=(fresh, updates, ("ppo",), inputs)), count(fresh) + CONTROL
    process.start()
    while process.is_alive() and count(fresh) < goal:
        process.join(0.1)
    process.kill()
    process.join()
    if count(fresh) < goal:
        raise RuntimeError(f"exit code {process.exitcode}: {fresh}.log")


def slope_within(rows: list[list[float]], column: int) -> dict[str, Any]:
    """Mean over processes of the slope in each, per 1,000 updates: a t-interval, since processes are independent."""
    slopes = []
    for mine in _processes(rows):
        values = np.array([row[column] for row in mine][WARM_UP:])
        blocks = [np.median(values[i : i + BLOCK]) for i in range(0, len(values) - BLOCK + 1, BLOCK)]
        if len(blocks) >= 5:
            slopes.append(stats.linregress(np.arange(len(blocks)) * BLOCK / 1000, blocks).slope)
    return _interval(np.mean(slopes), stats.sem(slopes), len(slopes) - 1) | {"processes": len(slopes)}


def slope_across(rows: list[list[float]], controls: list[list[float]], column: int) -> dict[str, Any]:
    """Slope over the whole run, per 1,000 updates, of the processes' medians less those of the new runs around them."""
    new = [np.median([row[column] for row in mine][WARM_UP:]) for mine in _processes(controls)]
    x, y, alone = [], [], []
    for mine, before, after in zip(_processes(rows), new[:-1], new[1:], strict=True):
        if len(mine) >= WARM_UP + 5 * BLOCK:
            x.append(np.median([row[1] for row in mine[WARM_UP:]]) / 1000)
            alone.append(np.median([row[column] for row in mine[WARM_UP:]]))
            y.append(alone[-1] - (before + after) / 2)
    found = stats.linregress(x, y)
    return _interval(found.slope, found.stderr, len(x) - 2) | {
        "median": float(np.median(alone)),
        "median_new_run": float(np.median(new)),
    }


def _processes(rows: list[list[float]]) -> list[list[list[float]]]:
    return [[row for row in rows if row[0] == pid] for pid in dict.fromkeys(row[0] for row in rows)]


def _interval(slope: float, error: float, freedom: int) -> dict[str, Any]:
    half = float(stats.t.ppf(0.975, freedom)) * float(error)
    return {"slope": float(slope), "ci95": [float(slope) - half, float(slope) + half], "zero": bool(abs(slope) <= half)}


def verdicts(run_dir: str, updates: int, rows: list[list[float]], keep: int = 2) -> dict[str, Any]:
    controls = samples(run_dir + ".control")
    slopes = [{"within": slope_within(rows, c), "across": slope_across(rows, controls, c)} for c in (2, 3)]
    lines = (Path(run_dir) / "ppo/metrics.jsonl").read_bytes().splitlines()
    tenth = updates // 10
    sizes = [len(line) for line in lines]
    growth = float(np.mean(sizes[-tenth:]) / np.mean(sizes[:tenth]))
    return {
        "memory_bytes_per_1000_updates": slopes[0],
        "cpu_seconds_per_1000_updates": slopes[1],
        "most_checkpoint_folders": int(max(row[4] for row in rows)),  # one more than is kept as the newest is renamed
        "metrics_rows": len(lines),
        "bytes_a_row_last_to_first_tenth": growth,
        "holds": bool(
            all(found["zero"] for both in slopes for found in both.values())
            and max(row[4] for row in rows) <= keep + 1
            and [json.loads(line)["step"] for line in lines] == list(range(1, updates + 1))
            and abs(growth - 1) < 0.05
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--apart", type=int, default=250, help="updates between kills, on average")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--run-dir", type=Path, help="an earlier soak's, to judge it again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/soak.json")
    options = parser.parse_args()
    run_dir = str(options.run_dir or Path(tempfile.mkdtemp(prefix="trivet-soak-")) / "run")
    print(f"soak in {run_dir}", flush=True)
    kills = 0 if options.run_dir else soak(run_dir, options.updates, options.apart, random.Random(options.seed))
    rows = samples(run_dir)
    kills = kills or len({row[0] for row in rows}) - 1
    found = {"device": device(), "updates": options.updates, "updates_done": len(rows), "kills": kills}
    found |= verdicts(run_dir, options.updates, rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    raise SystemExit(0 if found["holds"] else 1)


if __name__ == "__main__":
    main()
