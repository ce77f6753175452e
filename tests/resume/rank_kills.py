"""Takes one of two processes out of a tiny run at random instants: all must end within a minute, and resume.

``python -m tests.resume.rank_kills`` kills, stops, or raises an error in a random rank, and asks each time that every
process ends in time, that a message says which rank and that the same command resumes, and that this command ends in
the bytes of a run that nobody disturbed. What it did goes into ``benchmarks/results/rank_kills.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import yaml

from pipelines.stages.table import STAGES
from tests.resume.kills import differences
from tests.support.recipes import RECIPE, ROOT

RANKS = 2
LIMIT = 60.0  # seconds in which all processes must have ended
RUN = 900.0  # seconds that no whole run takes
ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": signal.SIGUSR1, "memory": signal.SIGUSR2}
SETTINGS = ("ppo.updates=3", "checkpoint.every_minutes=0")
NAMED = re.compile(r"trivet: process \d+ \(pid \d+ on [^)]+\) (died|was stopped|failed|cannot be reached)")
AGAIN = "the same command resumes"


# -- one of the processes ---------------------------------------------------------------------------------------------


def entry(arguments: Sequence[str]) -> int:
    """``trivet`` in a process in which two signals stand for an error of a stage, and for want of memory."""

    def broken(number: int, frame: FrameType | None) -> None:
        raise MemoryError("planted") if number == signal.SIGUSR2 else ValueError("planted")

    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, broken)
    from pipelines.cli import main

    return main.main(list(arguments))


# -- the run ----------------------------------------------------------------------------------------------------------


class Launched:
    """A run of several processes under torchrun, in a session of its own."""

    def __init__(self, recipe: Path, run: Path, settings: Sequence[str]) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
        command += [str(Path(__file__).resolve()), "--entry", "run", str(recipe), "--run-dir", str(run)]
        command += [word for text in settings for word in ("--set", text)]
        path = os.pathsep.join([str(ROOT), *sys.path])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self.log = run.with_name(run.name + ".log")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=run.parent, start_new_session=True
            )

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes by rank, as far as they are started."""
        found = {}
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    found[int(child.environ()["RANK"])] = child
        return found

    def ended(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is not None

    def clear(self) -> None:
        """End whatever is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def launched(recipe: Path, run: Path, settings: Sequence[str]) -> Iterator[Launched]:
    made = Launched(recipe, run, settings)
    try:
        yield made
    finally:
        made.clear()


class RankKills:
    """The run that nobody disturbs, and those that lose a rank."""

    def __init__(self, folder: Path, stages: Sequence[str], settings: Sequence[str] = SETTINGS) -> None:
        self.folder, self.settings, self.stages = folder, tuple(settings), tuple(stages)
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(RECIPE | {"stages": list(stages)}))
        self.whole = folder / "whole"
        began = time.monotonic()
        with launched(self.recipe, self.whole, self.settings) as run:
            if not run.ended(RUN) or run.process.returncode:
                raise RuntimeError(f"the run that nobody disturbs failed: {run.log}")
        self.seconds = time.monotonic() - began
        self.rows: list[dict[str, Any]] = []

    def disturb(self, number: int, action: str, rank: int, after: float) -> list[str]:
        """Send one rank a signal ``after`` so many seconds; returns what is wrong with what follows."""
        run, wrong = self.folder / f"run-{number}", list[str]()
        began = time.monotonic()
        with launched(self.recipe, run, self.settings) as made:
            hit = None
            if not made.ended(after):
                hit = made.ranks().get(rank)
            if hit is not None:
                with contextlib.suppress(psutil.Error):
                    hit.send_signal(ACTIONS[action])
                began = time.monotonic()
                if not made.ended(LIMIT):
                    wrong.append(f"runs on {LIMIT:.0f} s later")
            elif not made.ended(RUN):
                wrong.append("hangs, undisturbed")
            code = made.process.poll()
            left = [p.pid for p in made.ranks().values()]
            if code is not None and left:
                wrong.append(f"processes {left} are left")
        took = time.monotonic() - began
        text = made.log.read_text(errors="replace")
        runs = (run / "run.json").exists() and "report: " not in text  # it had begun, and was not over
        if hit is not None and code != 0 and runs and not (NAMED.search(text) and AGAIN in text):
            wrong.append("no message names the rank and the way on")
        with launched(self.recipe, run, self.settings) as again:
            if not again.ended(RUN) or again.process.returncode:
                wrong.append("does not resume to the end")
            else:
                wrong += [f"{name} differs" for name in differences(self.whole, run, self.stages)]
        said = NAMED.search(text)
        row = {"action": action, "rank": rank, "after": round(after, 1), "ended": round(took, 1), "code": code}
        self.rows.append(row | {"hit": hit is not None, "said": said[1] if said else "", "wrong": wrong})
        if hit is None:  # it was over already: other instants from here on
            self.seconds = min(self.seconds, took)
        print(self.rows[-1], flush=True)
        return wrong


def main() -> int:
    if sys.argv[1:2] == ["--entry"]:
        return entry(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60, help="runs that lose a rank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--actions", nargs="+", choices=ACTIONS, default=list(ACTIONS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--folder", type=Path, help="where the runs lie; kept")
    parser.add_argument("--write", type=Path, default=ROOT / "benchmarks/results/rank_kills.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends as well
    chosen = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as made:
        folder = (options.folder or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        kills = RankKills(folder, [s for s in STAGES if s in options.stages])
        print(f"undisturbed: {kills.seconds:.0f} s", flush=True)
        for number in range(2 * options.number):
            hits = sum(row["hit"] for row in kills.rows)
            if hits == options.number:
                break
            action = options.actions[hits % len(options.actions)]
            kills.disturb(number, action, chosen.randrange(RANKS), chosen.uniform(0.0, kills.seconds))
        wrong = [row for row in kills.rows if row["wrong"]]
        found = {"seed": options.seed, "undisturbed_s": round(kills.seconds, 1), "runs": kills.rows}
        options.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(row['hit'] for row in kills.rows)} runs lost a rank, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
