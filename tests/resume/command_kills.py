"""Kills commands on a finished run before each call that changes a file; given again, they must end as if nobody had.

Export, gc, report and a run with ``--store``: what stands in the folder afterwards is compared, byte by byte, with what
the command leaves that nobody kills. ``python -m tests.resume.kills`` does all of them, the suite a few.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.recipes import RECIPE

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
SHORT = RECIPE | {
    "stages": ["pretrain", "sft"],
    "rankings": None,
    "checkpoint": {"every_minutes": None, "every_steps": 2},
}
COMMANDS = {
    "export": ("export", "{run}", "--stage", "sft", "--to", "{folder}/out"),
    "export --merge": ("export", "{run}", "--stage", "sft", "--to", "{folder}/out", "--merge"),
    "report": ("report", "{run}"),
    "gc": ("gc", "{folder}", "--unfinished", "--yes"),
    "run --store": ("run", "{folder}/recipe.json", "--run-dir", "{folder}/stored", "--store", "{folder}/store"),
}
CHANGING = {"manifest.json", "metrics.jsonl"}  # hold times, and hashes of what holds times
NAMED = {"tensorboard", "used", ".partial"}  # files called by times and by folders; what gc removes from a store


@dataclass(frozen=True, kw_only=True)
class Order:
    """A command in a process of its own, killed before its n-th ``call`` that changes a file below ``folder``."""

    words: tuple[str, ...]
    folder: str
    call: int | None = None


def obey(order: Order) -> None:
    """In the child: give the command, and die where the order says."""
    from pipelines.cli.main import main

    gc.freeze()
    log = os.open(order.folder + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["TRIVET_CACHE"] = order.folder + ".cache"
    seen = count_calls(order.folder, order.call)
    code = main(list(order.words))
    Path(order.folder + ".calls").write_text(str(seen[0]))
    sys.exit(code)


def count_calls(folder: str, call: int | None) -> list[int]:
    """Count what changes files below a folder; before the ordered call, end this process."""
    seen, inside = [0], folder + os.sep

    def hook(event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        path = args[0] if (opened or event in CHANGES) and isinstance(args[0], str | os.PathLike) else ""
        if os.fspath(path).startswith(inside):
            seen[0] += 1
            if seen[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


class CommandKills:
    """A finished run, and copies of it on which commands are killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.failures = folder, list[str]()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.resume.kills"])
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.start = folder / "start"
        self.start.mkdir(parents=True)
        (self.start / "recipe.json").write_text(json.dumps(SHORT))
        run = self.words(("run", "{folder}/recipe.json", "--run-dir", "{folder}/run"), self.start)
        if self.give(Order(words=run, folder=str(self.start))) != 0:
            raise RuntimeError(f"the run that commands are given on failed: {self.start}.log")

    def words(self, command: Sequence[str], folder: Path) -> tuple[str, ...]:
        return tuple(w.format(folder=folder, run=folder / "run") for w in command)

    def give(self, order: Order) -> int | None:
        process = self.context.Process(target=obey, args=(order,))
        process.start()
        process.join()
        return process.exitcode

    def fresh(self, name: str) -> Path:
        folder = self.folder / name
        for path in (folder, folder.with_name(name + ".cache")):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.start, folder, symlinks=True)
        if name.startswith("gc"):  # something to remove: what a killed process left
            for number in range(3):
                leftover = folder / "run" / ".sft.partial" / "checkpoints" / f"step-{number}"
                leftover.mkdir(parents=True)
                (leftover / "weights").write_bytes(b"0" * 5000)
            (folder / "run" / ".report.html.partial").write_text("cut")
        return folder

    def at_calls(self, name: str, some: Sequence[int] | None = None) -> int:
        """Kill a command before each (or ``some``) of its calls; how many kills there were."""
        plain = name.replace(" ", "").replace("--", "-")
        whole = self.fresh(f"{plain}-whole")
        if (code := self.give(Order(words=self.words(COMMANDS[name], whole), folder=str(whole)))) != 0:
            self.failures.append(f"{name}, nobody killed it: exit code {code} (log: {whole}.log)")
            return 0
        total = int(Path(f"{whole}.calls").read_text())
        expected = content(whole)
        kills = 0
        for n in range(1, total + 1) if some is None else [n if n > 0 else total + 1 + n for n in some]:
            folder = self.fresh(f"{plain}-{n}")
            words = self.words(COMMANDS[name], folder)
            code = self.give(Order(words=words, folder=str(folder), call=n))
            if code != -signal.SIGKILL:
                self.failures.append(f"{name}, before call {n} of {total}: was to be killed, and ended with {code}")
                continue
            kills += 1
            code = self.give(Order(words=words, folder=str(folder)))
            found = content(folder)
            whole_already = code == 2 and "export" in name  # killed when all was done: its folder is not written over
            wrong = [f for f in sorted(set(found) | set(expected)) if found.get(f) != expected.get(f)]
            if (code != 0 and not whole_already) or wrong:
                self.failures.append(
                    f"{name}, before call {n} of {total}: exit code {code}, {wrong[:5]} ({folder}.log)"
                )
                continue
            shutil.rmtree(folder)
        return kills


def content(folder: Path) -> dict[str, Any]:
    """Files below a folder with their bytes; of those that hold times, what does not change with these."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock" and not NAMED & set(p.parts)):
        name = str(path.relative_to(folder))
        data = path.read_bytes().replace(str(folder).encode(), b"")
        if path.name in CHANGING:
            found[name] = re.sub(rb"[0-9a-f.+-]+", b"", data)
        elif path.name == "run.json":  # of the data a second command may say more, since it has a tokenizer
            found[name] = {stage: entry["status"] for stage, entry in json.loads(data)["stages"].items()}
        elif path.name == "report.html":
            found[name] = data.rstrip().endswith(b"</html>")
        else:
            found[name] = data
    return found
