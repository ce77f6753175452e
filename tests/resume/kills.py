"""Kills a tiny run with SIGKILL wherever it stands; the resumed run must end in the bytes of one that nobody killed.

``python -m tests.resume.kills`` kills every stage at every step boundary (PPO between its minibatches as well), the
whole run at 100 random instants, two stages before each call that changes a file, and so export, gc, report and a run
with a store; it names the first difference
and writes what it did into ``benchmarks/results/kills.json``. Runs are forks of a process that has imported everything.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES
from pipelines.workspace.run_folder import read_run
from stages.safe_points.checkpoints import Checkpoints
from tests.resume.command_kills import COMMANDS, CommandKills, count_calls
from tests.support.recipes import RECIPE, ROOT, metrics, results

# what a run imports late; the process that is forked has it already
for late in (
    "data.demo.task",
    "evaluate",
    "evaluation.held_out",
    "peft.utils.transformers_weight_conversion",
    "pipelines.evaluate.stage",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "stages.ppo.stage",
    "stages.pretrain",
    "stages.rankings",
    "reward.card.gate",
    "stages.reward_model",
    "stages.training.sft_trainer",
):
    importlib.import_module(late)

SETTINGS = (
    "rankings.batch=4",
    "ppo.updates=3",
    "ppo.epochs=2",
    "ppo.minibatches=2",
    "adapter.dropout=0.1",  # so that the trainers' generators matter
    "sft.micro_batch=8",
    "reward.micro_batch=4",
    "reward.epochs=2",
)
EVERY = ("every_minutes=0", "every_steps=2", "every_steps=3")  # the last two leave steps to be done again
NAMES = {stage.folder: name for name, stage in STAGES.items()}


@dataclass(frozen=True, kw_only=True)
class Order:
    """One run in a process of its own.

    ``boundary``: kill it at this stage's n-th safe point, once the checkpoint is ``written`` or while it is being
    written. ``call``: kill it before its n-th call that changes a file.
    """

    run_dir: str
    only: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    boundary: tuple[str, int] | None = None
    written: bool = True
    call: int | None = None


def obey(order: Order) -> None:
    """In the child: run, and die where the order says."""
    gc.freeze()  # what is imported is not garbage
    log = os.open(order.run_dir + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    count_boundaries(order)
    calls = count_calls(order.run_dir, order.call)
    Pipeline.from_recipe(RECIPE, [*SETTINGS, *order.settings], run_dir=order.run_dir, inputs=order.inputs).run(
        only=order.only
    )
    Path(order.run_dir + ".calls").write_text(str(calls[0]))


def count_boundaries(order: Order) -> None:
    """Note every safe point in ``RUN.points``; at the ordered one, end this process as a kill does."""
    real, seen = Checkpoints.safe_point, Counter[str]()

    def safe_point(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        assert self.folder is not None
        stage = NAMES[self.folder.parent.name.split(".")[1]]
        seen[stage] += 1
        with open(order.run_dir + ".points", "a", encoding="utf-8") as file:
            file.write(f"{stage} {args[0]}\n")
        if order.boundary == (stage, seen[stage]):
            if order.written:
                self.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.safe_point = safe_point  # type: ignore[method-assign]


class Warm:
    """Starts runs as forks of a process in which everything is imported."""

    def __init__(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads is not forked
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.resume.kills"])

    def run(self, order: Order, seconds: float | None = None) -> int | None:
        """Run to the end, or kill it after ``seconds``; returns the exit code, negative for a signal."""
        process = self.context.Process(target=obey, args=(order,))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
        process.join()
        return process.exitcode


def facts(run: Path, names: Sequence[str]) -> dict[str, Any]:
    """What must not differ: bytes of all files, rows of metrics without times and memory, the manifests' numbers."""
    folders = [STAGES[name].folder for name in names]
    found: dict[str, Any] = {k: v for k, v in results(run).items() if k.split("/")[0] in folders}
    rows = metrics(run)
    for folder in folders:
        found[f"{folder}/metrics.jsonl"] = rows[folder]
        found[f"{folder}/manifest.json"] = json.loads((run / folder / "manifest.json").read_text())["metrics"]
    return found


def differences(whole: Path, run: Path, names: Sequence[str]) -> list[str]:
    """Files that differ between two runs, and what a finished run must not leave behind."""
    one, other = facts(whole, names), facts(run, names)
    out = [name for name in sorted(set(one) | set(other)) if one.get(name) != other.get(name)]
    out += [f"{f} is left" for f in run.glob(".*") if f.name != ".lock"]
    return out + [f"{f} is pickled" for f in run.rglob("*") if f.suffix in (".pt", ".pth", ".bin", ".pkl")]


class Harness:
    """The run that nobody kills, and those that are killed."""

    def __init__(self, folder: Path, settings: Sequence[str] = (), stages: Sequence[str] = tuple(STAGES)) -> None:
        self.folder, self.settings, self.stages, self.warm = folder, tuple(settings), tuple(stages), Warm()
        self.whole, self.number, self.failures = folder / "whole", 0, list[str]()
        started = time.perf_counter()
        until = self.order("whole", only=self.stages, settings=("checkpoint.every_minutes=null",))
        if self.warm.run(until) != 0:
            raise RuntimeError(f"the run that nobody kills failed: {self.whole}.log")
        self.seconds = time.perf_counter() - started
        points = (folder / "whole.points").read_text().split("\n")
        self.points = Counter(line.split()[0] for line in points if line)

    def order(self, name: str, **what: Any) -> Order:
        settings = (*self.settings, *what.pop("settings", ()))
        return Order(run_dir=str(self.folder / name), settings=settings, **what)

    def inputs(self, stage: str) -> dict[str, str]:
        before = [s for s in self.stages[: self.stages.index(stage)] if (self.whole / s / "manifest.json").is_file()]
        return {s: str(self.whole / s) for s in before if not (stage in ("ppo", "evaluate") and s == "rankings")}

    def judge(self, order: Order, names: Sequence[str], what: str) -> None:
        """Give the same command again; it must end, and in the same bytes."""
        again = Order(run_dir=order.run_dir, only=order.only, settings=order.settings, inputs=order.inputs)
        code = self.warm.run(again)
        wrong = [f"exit code {code}"] if code else differences(self.whole, Path(order.run_dir), names)
        if wrong:
            self.failures.append(f"{what}: {', '.join(wrong)} (log: {order.run_dir}.log)")
            print(f"DIFFERS {self.failures[-1]}", flush=True)
        else:
            for path in (Path(order.run_dir), *map(Path, (f"{order.run_dir}.{s}" for s in ("log", "points", "calls")))):
                _remove(path)

    def at_boundary(self, stage: str, number: int, every: str = EVERY[0], written: bool = True) -> None:
        self.number += 1
        order = self.order(
            f"boundary-{self.number}",
            only=(stage,),
            settings=("checkpoint.every_minutes=null", f"checkpoint.{every}"),
            inputs=self.inputs(stage),
            boundary=(stage, number),
            written=written,
        )
        what = f"{stage}, safe point {number}, {every}, {'written' if written else 'being written'}"
        if (code := self.warm.run(order)) != -signal.SIGKILL:
            self.failures.append(f"{what}: was to be killed, and ended with {code}")
            return
        self.judge(order, (stage,), what)

    def at_instants(self, count: int, rng: random.Random) -> Counter[str]:
        """Kill whole runs after a random time, some a second time as they go on; where they stood."""
        stood, limit = Counter[str](), self.seconds
        while stood.total() < count:
            self.number += 1
            every = rng.choice(EVERY)
            settings = ("checkpoint.every_minutes=null", f"checkpoint.{every}")
            order = self.order(f"instant-{self.number}", only=self.stages, settings=settings)
            times = [rng.uniform(0, limit) for _ in range(rng.choice((1, 1, 2)))]
            for seconds in times:
                started = time.perf_counter()
                if (code := self.warm.run(order, seconds)) == 0:  # was done before
                    limit = 0.9 * limit + 0.1 * (time.perf_counter() - started)
                    break
                if code != -signal.SIGKILL:
                    self.failures.append(f"after {seconds:.2f} s: exit code {code} (log: {order.run_dir}.log)")
                    break
                stood[_running(Path(order.run_dir))] += 1
            self.judge(order, self.stages, f"killed after {', '.join(f'{t:.2f}' for t in times)} s, {every}")
            print(f"{stood.total()} of {count} instants", flush=True)
        return stood

    def at_calls(self, stage: str, every: str) -> int:
        """Kill a stage before each of the calls that change its folder."""
        settings = ("checkpoint.every_minutes=null", f"checkpoint.{every}")

        def order(n: int | None) -> Order:
            name = f"call-{stage}-{n}"
            return self.order(name, only=(stage,), settings=settings, inputs=self.inputs(stage), call=n)

        self.warm.run(order(None))
        total = int(Path(order(None).run_dir + ".calls").read_text())
        for n in range(1, total + 1):
            code = self.warm.run(order(n))
            if code not in (0, -signal.SIGKILL):  # a thread's calls may come in another order, one fewer at the end
                self.failures.append(f"{stage}, call {n}: exit code {code}")
            self.judge(order(n), (stage,), f"{stage}, before call {n} of {total}")
        return total


def device() -> str:
    """The processor's name, where the system tells it, and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{next(iter(names), platform.machine())}, {os.cpu_count()} cores"


def _running(run: Path) -> str:
    found = {name for name, entry in read_run(run).get("stages", {}).items() if entry.get("status") == "running"}
    return next(iter(found), "between stages")


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--instants", type=int, default=100, help="random kills of whole runs")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--set", action="append", default=[], help="settings, such as runtime.device=cuda")
    parser.add_argument("--calls", nargs="*", default=["rankings", "ppo"], help="stages killed before each file call")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/kills.json")
    options = parser.parse_args()
    started = time.perf_counter()
    harness = Harness(Path(tempfile.mkdtemp(prefix="trivet-kills-")), options.set)
    print(f"a run takes {harness.seconds:.1f} s and has these safe points: {dict(harness.points)}", flush=True)
    boundaries = 0
    for stage, count in harness.points.items():
        for number in range(1, count + 1):
            for every in (EVERY[0], EVERY[1 + number % 2]):
                harness.at_boundary(stage, number, every, written=number % 2 == 0)
                boundaries += 1
        print(f"{stage}: killed at each of its {count} safe points", flush=True)
    stood = harness.at_instants(options.instants, random.Random(options.seed))
    calls = {stage: harness.at_calls(stage, "every_steps=2") for stage in options.calls}
    commands = CommandKills(Path(tempfile.mkdtemp(prefix="trivet-kills-")))
    of_commands = {name: commands.at_calls(name) for name in COMMANDS}
    harness.failures += commands.failures
    found = {
        "device": next((s for s in options.set if s.startswith("runtime.device")), "cpu"),
        "machine": device(),
        "safe_points": dict(harness.points),
        "kills": {
            "boundaries": boundaries,
            "instants": dict(stood),
            "before_file_calls": calls,
            "of_commands": of_commands,
        },
        "failures": harness.failures,
        "minutes": round((time.perf_counter() - started) / 60, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    raise SystemExit(1 if harness.failures else 0)


if __name__ == "__main__":
    main()
