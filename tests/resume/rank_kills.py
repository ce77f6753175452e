"""Takes one of two processes out of a tiny run at random instants: all must end within a minute, and resume.

``python -m tests.resume.rank_kills`` kills, stops, or raises an error in a random rank, at a random instant of each
stage in turn and one in ten as the processes start, and asks each time that every process ends in time, that a message
says which rank and that the same command resumes, and that this command ends in the bytes of a run that nobody
disturbed. What it did goes into ``benchmarks/results/rank_kills.json``; with ``--add`` behind what is there, so that it
may be done in sittings.

A disturbed run begins as a copy of one that has finished the stages before. Processes are torchrun's: its own agent
starts and watches them, as forks of a process that has imported everything; ``--torchrun`` starts each by the command.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
import yaml
from safetensors.numpy import load_file

from pipelines.stages.table import STAGES
from tests.resume.kills import device, differences
from tests.support.recipes import RECIPE, ROOT

RANKS = 2
LIMIT = 60.0  # seconds in which all processes must have ended
RUN = 900.0  # seconds that no whole run takes
ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": signal.SIGUSR1, "memory": signal.SIGUSR2}
SETTINGS = ("ppo.updates=3", "checkpoint.every_minutes=0")
NAMED = re.compile(
    r"trivet: (?:the \w+ stage failed: )?process \d+ \(pid \d+ on [^)]+\) (died|was stopped|failed|cannot be reached)"
)
AGAIN = "the same command resumes"
HALVED = re.compile(r"out of memory with .+: continuing with")  # by itself: nothing is lost
BEGUN = re.compile(r"^(\w+): not run yet", re.MULTILINE)


# -- one of the processes ---------------------------------------------------------------------------------------------


def entry(log: str, *arguments: str) -> None:
    """``trivet`` in a process in which two signals stand for an error of a stage, and for want of memory."""

    def broken(number: int, frame: FrameType | None) -> None:
        raise MemoryError("planted") if number == signal.SIGUSR2 else ValueError("planted")

    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, broken)
    Path(f"{log}.rank{os.environ['RANK']}").write_text(str(os.getpid()))
    from pipelines.cli import main

    if code := main.main(list(arguments)):
        sys.exit(code)


def show_ranks(log: str) -> None:
    """The system shows of a fork the environment of what it was forked from; processes seek their siblings by it."""
    real = psutil.Process.environ

    def environ(self: psutil.Process) -> dict[str, str]:
        ids = {Path(f"{log}.rank{rank}"): str(rank) for rank in range(RANKS)}
        own = [rank for file, rank in ids.items() if file.exists() and file.read_text() == str(self.pid)]
        return real(self) | ({"RANK": own[0]} if own else {})

    psutil.Process.environ = environ  # type: ignore[method-assign]


def agent(log: str, arguments: Sequence[str]) -> None:
    """In a fork: what ``torchrun --standalone`` does, whose processes are forks as well."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(Path(log).parent)
    show_ranks(log)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=RANKS,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, entry)(log, *arguments)


# -- the run ----------------------------------------------------------------------------------------------------------


class Launched:
    """A run of several processes, in a session of its own."""

    def __init__(self, log: Path) -> None:
        self.log = log
        for rank in range(RANKS):
            self.file_of(rank).unlink(missing_ok=True)

    def file_of(self, rank: int) -> Path:
        """In which a process writes its id as it starts."""
        return Path(f"{self.log}.rank{rank}")

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes by rank, as far as they are started and not over."""
        found = {}
        for rank in range(RANKS):
            with contextlib.suppress(FileNotFoundError, ValueError, psutil.Error):
                process = psutil.Process(int(self.file_of(rank).read_text()))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[rank] = process
        return found

    @property
    def is_over(self) -> bool:
        """Whether all stages are done and the report is written."""
        return self.log.exists() and "report: " in self.log.read_text(errors="replace")

    def comes_to(self, stage: str) -> bool:
        """Wait until a stage begins; False where all are over before that."""
        while stage not in BEGUN.findall(self.log.read_text(errors="replace") if self.log.exists() else ""):
            if self.ended(0.05):
                return False
        return True

    def rank(self, number: int) -> psutil.Process | None:
        """The process of a rank, as soon as it has started; None where all are over."""
        while number not in (found := self.ranks()):
            if self.ended(0.05):
                return None
        return found[number]

    def ended(self, seconds: float) -> bool:
        raise NotImplementedError

    @property
    def code(self) -> int | None:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        raise NotImplementedError

    def clear(self) -> None:
        """End whatever is left."""
        for group in {self.pid, *(p.pid for p in self.ranks().values())}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        for process in self.ranks().values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.ended(LIMIT)


class ByTorchrun(Launched):
    """Started as a user does."""

    def __init__(self, log: Path, arguments: Sequence[str]) -> None:
        super().__init__(log)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
        command += [str(Path(__file__).resolve()), "--entry", str(log), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, env=environment, cwd=log.parent, start_new_session=True
            )

    def ended(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is not None

    @property
    def code(self) -> int | None:
        return self.process.poll()

    @property
    def pid(self) -> int:
        return self.process.pid


class Forked(Launched):
    """Started by torchrun's agent in a fork of a process that has imported everything."""

    def __init__(self, log: Path, arguments: Sequence[str]) -> None:
        super().__init__(log)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads is not forked
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.resume.kills", "torch.distributed.launcher.api", "pipelines.cli.main"])
        self.process = context.Process(target=agent, args=(str(log), list(arguments)))
        self.process.start()

    def ended(self, seconds: float) -> bool:
        self.process.join(seconds)
        return not self.process.is_alive()

    @property
    def code(self) -> int | None:
        return self.process.exitcode

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid


class RankKills:
    """The run that nobody disturbs, and those that lose a rank.

    Args:
        folder: where they lie.
        stages: of the run.
        settings: of its recipe.
        torchrun: start processes by the command, and not as forks.
    """

    def __init__(
        self, folder: Path, stages: Sequence[str], settings: Sequence[str] = SETTINGS, torchrun: bool = False
    ) -> None:
        self.folder, self.stages = folder, tuple(stages)
        self.start: type[ByTorchrun] | type[Forked] = ByTorchrun if torchrun else Forked
        self.recipe = folder / "recipe.yaml"
        left_out = {STAGES[name].group for name in STAGES if name not in stages}
        recipe = {key: value for key, value in RECIPE.items() if key not in left_out}
        self.settings = tuple(text for text in settings if text.partition(".")[0] not in left_out)
        self.recipe.write_text(yaml.safe_dump(recipe | {"stages": list(stages)}))
        self.whole, steps = folder / "whole", folder / "steps"
        self.undisturbed(self.whole)
        self.seconds: dict[str, float] = {}
        for stage in self.stages:
            if steps.exists():
                shutil.copytree(steps, self.before(stage), symlinks=True)
            self.seconds[stage] = self.undisturbed(steps, "--until", stage)
            for report in steps.glob("*report.html*"):  # a run that is lost in a later stage has none yet
                report.unlink()
        if differ := differences(self.whole, steps, self.stages):
            raise RuntimeError(f"the run that was made stage by stage differs: {differ}")
        self.rows: list[dict[str, Any]] = []

    def before(self, stage: str) -> Path:
        """A run that has finished the stages before this one."""
        return self.folder / f"before-{stage}"

    @contextlib.contextmanager
    def launched(self, run: Path, *more: str) -> Iterator[Launched]:
        """The command of a run, ended at the end of the block."""
        words = ["run", str(self.recipe), "--run-dir", str(run), *more]
        words += [word for text in self.settings for word in ("--set", text)]
        made = self.start(run.with_name(run.name + ".log"), words)
        try:
            yield made
        finally:
            made.clear()

    def undisturbed(self, run: Path, *more: str) -> float:
        """Run to the end; seconds from the beginning of the last stage of ``more``."""
        with self.launched(run, *more) as made:
            made.comes_to(more[-1] if more else self.stages[0])
            began = time.monotonic()
            if not made.ended(RUN) or made.code:
                raise RuntimeError(f"the run that nobody disturbed failed: {made.log}")
        return time.monotonic() - began

    def disturb(
        self, number: int, action: str, rank: int, stage: str, after: float, from_start: bool = False
    ) -> list[str]:
        """Send one rank a signal in the run that has finished the stages before one; what is wrong with what follows.

        Args:
            number: of the run.
            action: what is done.
            rank: to whom.
            stage: which the run has come to.
            after: seconds after the beginning of that stage.
            from_start: after the start of the processes instead.
        """
        run, wrong = self.folder / f"run-{number}", list[str]()
        if self.before(stage).exists():
            shutil.copytree(self.before(stage), run, symlinks=True)
        with self.launched(run) as made:
            there = from_start or made.comes_to(stage)
            there_at = time.monotonic()
            hit = made.rank(rank) if there and not made.ended(after) else None
            if hit is not None:
                with contextlib.suppress(psutil.Error):
                    hit.send_signal(ACTIONS[action])
                began = time.monotonic()
                if not made.ended(LIMIT):
                    if made.is_over and rank == 0:  # it sees the others end, and nobody is left to watch it
                        hit.resume()
                        hit, self.seconds[stage] = None, min(self.seconds[stage], after)  # earlier from here on
                        if not made.ended(LIMIT):
                            wrong.append("hangs, continued")
                    elif not HALVED.search(made.log.read_text(errors="replace")):
                        wrong.append(f"runs on {LIMIT:.0f} s later")
                    elif not made.ended(RUN):
                        wrong.append("hangs in smaller micro-batches")
            else:
                began = time.monotonic()
                if not made.ended(RUN):
                    wrong.append("hangs, undisturbed")
                if not from_start:  # it was over before: earlier instants from here on
                    self.seconds[stage] = min(self.seconds[stage], began - there_at)
            took, code, left = time.monotonic() - began, made.code, [p.pid for p in made.ranks().values()]
            if code is not None and left:
                wrong.append(f"processes {left} are left")
        text = made.log.read_text(errors="replace")
        stood = BEGUN.findall(text)
        runs = bool(stood) and not made.is_over  # it had begun
        said = NAMED.search(text)
        overcome = code == 0 and HALVED.search(text) is not None
        if hit is not None and code != 0 and runs and not (said and AGAIN in text):
            wrong.append("no message names the rank and the way on")
        with self.launched(run) as again:
            if not again.ended(RUN) or again.code:
                wrong.append("does not resume to the end")
            elif overcome:  # equal but for rounding where it was, and in what was sampled afterwards
                wrong += far_from(self.whole / STAGES[stage].folder, run / STAGES[stage].folder)
            else:
                wrong += [f"{name} differs" for name in differences(self.whole, run, self.stages)]
        self.rows.append(
            {
                "action": action,
                "rank": rank,
                "stage": stood[-1] if stood else "before the first",
                "after": round(after, 1),
                "ended": round(took, 1),
                "code": code,
                "hit": hit is not None and not overcome,
                "said": "smaller micro-batches" if overcome else said[1] if said else "",
                "wrong": wrong,
            }
        )
        print(self.rows[-1], flush=True)
        if not wrong:
            shutil.rmtree(run)
        return wrong


def far_from(whole: Path, found: Path) -> list[str]:
    """What is wrong with weights that may differ by rounding."""
    pairs = {f.name: (load_file(f), load_file(found / f.relative_to(whole))) for f in whole.rglob("*.safetensors")}
    return [
        f"{name} is far away"
        for name, (a, b) in pairs.items()
        if a.keys() != b.keys() or not all(np.allclose(a[key], b[key], atol=1e-4) for key in a)
    ]


def record(file: Path, kills: RankKills, rows: list[dict[str, Any]]) -> None:
    """Write what was done, a run a line."""
    seconds = {stage: round(s, 1) for stage, s in kills.seconds.items()}
    lines = ",\n  ".join(map(json.dumps, rows))
    text = json.dumps({"machine": device(), "seconds_of_stages": seconds, "runs": []}, indent=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace('"runs": []', f'"runs": [\n  {lines}\n ]') + "\n", encoding="utf-8")


def main() -> int:
    if sys.argv[1:2] == ["--entry"]:
        entry(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60, help="runs that lose a rank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--actions", nargs="+", choices=ACTIONS, default=list(ACTIONS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--set", action="append", default=[], help="settings, such as runtime.sharding=fsdp2")
    parser.add_argument("--torchrun", action="store_true", help="start each process anew; takes hours")
    parser.add_argument("--folder", type=Path, help="where the runs lie; kept")
    parser.add_argument("--write", type=Path, default=ROOT / "benchmarks/results/rank_kills.json")
    parser.add_argument("--add", action="store_true", help="to the runs that are in that file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends as well
    chosen, began = random.Random(options.seed), time.monotonic()
    adding = options.add and options.write.exists()
    earlier = json.loads(options.write.read_text(encoding="utf-8"))["runs"] if adding else []
    with tempfile.TemporaryDirectory() as made:
        folder = (options.folder or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        stages = [s for s in STAGES if s in options.stages]
        kills = RankKills(folder, stages, (*SETTINGS, *options.set), torchrun=options.torchrun)
        print(f"undisturbed, by stage: {kills.seconds}", flush=True)
        for number in range(2 * options.number):
            hits = sum(row["hit"] for row in kills.rows)
            if hits == options.number:
                break
            stage = stages[hits % len(stages)]
            action = options.actions[(hits + hits // len(stages)) % len(options.actions)]
            after = chosen.uniform(0.0, kills.seconds[stage])
            kills.disturb(number, action, chosen.randrange(RANKS), stage, after, from_start=hits % 10 == 9)
            rows = [*earlier, *({"seed": options.seed} | row for row in kills.rows)]
            record(options.write, kills, rows)
        wrong = [row for row in rows if row["wrong"]]
    lost = sum(row["hit"] for row in rows)
    print(f"{lost} runs lost a rank, {len(wrong)} wrong, {(time.monotonic() - began) / 60:.0f} minutes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
