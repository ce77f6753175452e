"""Checkpoints of a stage that is under way: when they are written, and which of them is resumed from.

A stage says at each safe point how its state would be copied; whether it is saved is decided here, by steps, by
minutes (of a clock that does not jump) or because a signal asks for a stop. A snapshot copies the tensors, a thread
writes them, so training waits for the copy alone. What a state means is the stage's business.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from data.common.errors import CheckpointError, UserError
from models.backbone.artifacts import MANIFEST, problems, read_artifact
from models.backbone.processes import Processes
from stages.safe_points.checkpoint_files import TENSORS, digest, own_hash, read_numbers, write_checkpoint
from stages.safe_points.interrupts import INTERRUPTS
from stages.safe_points.stopped import CHECKPOINTS, NAME
from stages.settings import KEPT, CheckpointConfig

__all__ = ["CHECKPOINTS", "Checkpoints", "State", "newest_state"]


@dataclass(kw_only=True)
class State:
    """What a stage needs to resume: tensors by name and plain JSON values.

    ``tensors`` and ``numbers`` are the same in every process; ``own`` and ``own_numbers`` are this process's. A state
    that was saved has ``parts``, those of all processes of then, in order of their ranks. Where fewer processes saved
    it than resume, a process without a part of its own has the last one's.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    own_numbers: dict[str, Any] = field(default_factory=dict)
    parts: list[tuple[dict[str, Tensor], dict[str, Any]]] = field(default_factory=list)


def number_of(processes: int) -> str:
    """A number of processes in words."""
    return f"{processes} process" + ("" if processes == 1 else "es")


def newest_state(folder: Path, key: str) -> tuple[int, dict[str, Any]] | None:
    """The number of the newest checkpoint of this key and its state's plain values, none where they cannot be read;
    None where no checkpoint of it is there.
    """
    found = [int(m[1]) for p in folder.glob("step_*") if (m := NAME.fullmatch(p.name)) and _belongs(p, key)]
    if not found:
        return None
    try:
        return max(found), dict(read_numbers(folder / f"step_{max(found)}")["state"])
    except UserError:
        return max(found), {}


def _belongs(path: Path, key: str) -> bool:
    found = read_artifact(path)
    return found is not None and found.key == key


class Checkpoints:
    """The checkpoints of one stage; without a folder nothing is saved and nothing is found.

    Args:
        folder: where ``step_N`` folders go.
        key: the stage's key; a checkpoint with another one belongs to another computation and is ignored.
        settings: how often, and how many are kept.
        warn, say: for the user.
    """

    def __init__(
        self,
        folder: Path | None = None,
        key: str = "",
        settings: CheckpointConfig | None = None,
        processes: Processes | None = None,
        warn: Callable[[str], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder, self.key, self.settings = folder, key, settings or CheckpointConfig()
        self.processes, self.warn, self.say = processes, warn, say
        self.metrics: Any = None  # the stage's MetricsLog: what it holds is part of the state
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._last = time.monotonic()

    @property
    def _main(self) -> bool:
        return self.processes is None or self.processes.is_main

    # -- finding -------------------------------------------------------------------------------------------------

    def prepare(self, out: Path, fresh: bool = False) -> int:
        """Leave nothing in a stage's hidden folder but usable checkpoints; the bytes of metrics that the newest knows.

        Main process only, before the stage starts.
        """
        metrics = out / "metrics.jsonl"
        known = None if fresh else self.tidy(metrics)
        for path in out.iterdir() if out.is_dir() else ():
            kept = (self.folder,) if known is None and not fresh else (metrics, self.folder, out / KEPT)
            if fresh or path not in kept:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        out.mkdir(parents=True, exist_ok=True)
        return known or 0

    def tidy(self, metrics: Path) -> int | None:
        """Set aside what cannot be used; the bytes of ``metrics`` that the newest usable one knows.

        A checkpoint that is refused becomes ``refused_step_N``, and stays until the stage is finished. Main process
        only, before the stage starts.
        """
        assert self.folder is not None
        for path in self.folder.glob(".step_*") if self.folder.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)
        for step in self.steps():
            path = self.folder / f"step_{step}"
            wrong = self._refused(path, metrics)
            if wrong is None:
                found = read_artifact(path)
                assert found is not None
                return int(found.manifest["metrics"]["bytes"])
            aside = self.folder / f"refused_step_{step}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            self.warn(
                f"checkpoint step_{step} is refused ({wrong}) and set aside as {aside.name}; the one before is used, "
                "if there is one"
            )
        return None

    def _refused(self, path: Path, metrics: Path) -> str | None:
        """Why a checkpoint cannot be used; None where it can."""
        found = read_artifact(path)
        if found is None:
            return f"{path / MANIFEST}: missing or unreadable"
        if found.manifest.get("own") != own_hash(found.manifest):
            return f"{path / MANIFEST}: altered since it was written"
        if found.key != self.key:
            return f"{path / MANIFEST}: of a stage with other settings ({found.key[:12]})"
        if wrong := problems(found):
            return wrong[0].replace("since the stage finished", "since it was written")
        try:
            read_numbers(path)
        except UserError as error:
            return str(error)
        known = found.manifest.get("metrics", {})
        rows, there = known.get("bytes"), metrics.stat().st_size if metrics.is_file() else 0
        prefix = b""
        if isinstance(rows, int) and 0 < rows <= there:
            with metrics.open("rb") as file:
                prefix = file.read(rows)
        return None if digest(prefix) == known.get("sha256") else f"{metrics}: not the rows that it was saved with"

    def steps(self) -> list[int]:
        """Numbers of the checkpoints that are there, newest first."""
        if self.folder is None or not self.folder.is_dir():
            return []
        return sorted((int(m[1]) for p in self.folder.iterdir() if (m := NAME.fullmatch(p.name))), reverse=True)

    def resume(self) -> State | None:
        """The newest checkpoint's state, or None to begin at the beginning. Safe points follow from here on."""
        if self.folder is None:
            return None
        INTERRUPTS.listen()
        self._last = time.monotonic()
        steps = self.steps()
        if not steps:
            return None
        path = self.folder / f"step_{steps[0]}"
        numbers = read_numbers(path)
        tensors = load_file(path / TENSORS)
        rank, count = (self.processes.rank, self.processes.world_size) if self.processes else (0, 1)
        saved_by = numbers["processes"]
        if len(saved_by) != count:
            here = "is 1" if count == 1 else f"are {count}"
            self.say(f"checkpoint step_{steps[0]} was saved by {number_of(len(saved_by))}; here there {here}")
        parts = []
        for number, own_numbers in enumerate(saved_by):
            prefix = f"process/{number}/"
            own = {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}
            parts.append((own, own_numbers))
        own, own_numbers = parts[min(rank, len(parts) - 1)]
        return State(
            tensors={k: v.clone() for k, v in tensors.items() if not k.startswith("process/")},
            numbers=numbers["state"],
            own=own,
            own_numbers=own_numbers,
            parts=parts,
        )

    # -- saving --------------------------------------------------------------------------------------------------

    def safe_point(
        self, number: int, snapshot: Callable[[], State], step: int | None = None, good: bool = True
    ) -> None:
        """The state could be saved here.

        Args:
            number: of this safe point; later ones have higher numbers.
            snapshot: makes the state; called only where it is saved.
            step: the stage's step that has just ended, for ``every_steps``; None in the midst of one.
            good: whether the state may push earlier ones out; where not, it is saved for a signal alone.

        Raises:
            KeyboardInterrupt: a signal asked for a stop; the state is saved.
            CheckpointError: an earlier checkpoint could not be written.
        """
        if self.folder is None:
            return
        self._raise_error()
        due, stop = self._agreed(good and self._due(step), INTERRUPTS.asked)
        if due or stop:
            self.save(number, snapshot())
        if stop:
            self.wait()
            raise KeyboardInterrupt

    def _due(self, step: int | None) -> bool:
        every = self.settings
        waited = time.monotonic() - self._last
        return (every.every_minutes is not None and waited >= 60 * every.every_minutes) or (
            every.every_steps is not None and step is not None and step > 0 and step % every.every_steps == 0
        )

    def _agreed(self, due: bool, stop: bool) -> tuple[bool, bool]:
        """All processes save and stop at the same safe point; the clock is the main one's."""
        if self.processes is None or self.processes.world_size == 1:
            return due, stop
        flags = torch.tensor([float(due and self._main), float(stop)])
        found = self.processes.sum(flags)
        return bool(found[0] > 0), bool(found[1] > 0)

    def save(self, number: int, state: State) -> None:
        """Copy the state, then write it in a thread; all processes call it, the main one writes."""
        if self.folder is None:
            return
        self.wait()
        own = [({k: v.detach().cpu() for k, v in state.own.items()}, state.own_numbers)]
        parts = own if self.processes is None else self.processes.gather(own)
        if self._main:
            tensors = {k: _copied(v) for k, v in state.tensors.items()}
            for rank, (mine, _) in enumerate(parts):
                tensors |= {f"process/{rank}/{k}": _copied(v) for k, v in mine.items()}
            numbers = {"state": state.numbers, "processes": [n for _, n in parts]}
            known = self.metrics.position() if self.metrics is not None else {"bytes": 0, "sha256": digest(b"")}
            self._thread = threading.Thread(target=self._write, args=(number, tensors, numbers, known))
            self._thread.start()
        self._last = time.monotonic()

    def save_now(self, number: int, state: State) -> bool:
        """Save what is finished before an error ends the stage, and wait for it; whether there is a folder for it."""
        self.save(number, state)
        self.wait()
        return self.folder is not None

    def _write(self, number: int, tensors: dict[str, Tensor], numbers: Any, known: dict[str, Any]) -> None:
        assert self.folder is not None
        aside = self.folder / f".step_{number}.partial"
        try:
            write_checkpoint(
                aside, self.folder / f"step_{number}", tensors, numbers, {"key": self.key, "metrics": known}
            )
            for old in self.steps()[self.settings.keep :]:
                hidden = self.folder / f".step_{old}.old"
                os.replace(self.folder / f"step_{old}", hidden)
                shutil.rmtree(hidden)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            self._error = error

    def wait(self) -> None:
        """Until what is being written is on disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            kept = f"step_{self.steps()[0]} is intact" if self.steps() else "there is none before it"
            raise CheckpointError(
                f"a checkpoint could not be written to {self.folder}: {error}; {kept}. Make room (or fix the folder), "
                "then the same command resumes from there"
            ) from error

    def close(self) -> None:
        """The stage is over, whatever the reason."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        INTERRUPTS.listening = False


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
