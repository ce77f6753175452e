"""The shape that every stage has: a context in, files and a dict of metrics out.

A stage writes into ``context.out`` and knows nothing of the runner, of keys or of what comes after it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from data.common.errors import located
from data.common.patience import each
from data.records import Prompt
from data.splits import Corpus
from data.storage.token_rows import row_store
from data.template import Renderer
from models.backbone.processes import Processes
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from models.sampling.generate import SamplingParams
from models.sampling.settings import RolloutServers
from stages.safe_points.checkpoints import Checkpoints


class Bar(Protocol):
    """Live progress of one stage."""

    def advance(self, step: int, metrics: Mapping[str, float] | None = None, tokens: int = 0) -> None:
        """Show that ``step`` is done, with some metrics and the tokens that it took."""

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """A part of ``total`` units that are no steps; call what is returned with how many more are done."""


class Tracker(Protocol):
    """Where metrics go besides ``metrics.jsonl``."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the metrics of a step."""

    def finish(self) -> None:
        """No more come."""


class MetricsLog:
    """``metrics.jsonl``: one JSON object a step; main process only. A ``tracker`` gets the same numbers.

    Args:
        start: the bytes of the file that a checkpoint knows; what was written after it is cut off.
    """

    def __init__(self, path: Path, active: bool = True, start: int = 0) -> None:
        self.path, self.active, self.started = path, active, time.perf_counter()
        self.last: dict[str, Any] = {}  # the newest row; the others are in the file alone
        self.tracker: Tracker | None = None
        self._first: dict[str, float] = {}
        self._bytes, self._digest = 0, hashlib.sha256()
        self.found = _last_step(path) if active and start else 0  # of a stopped process, before the cut
        if active and start:
            with path.open("r+b") as file:
                file.truncate(start)
                for line in file:
                    self._count(line)
            self.last = json.loads(line)
        elif active and path.is_file():  # a device such as /dev/null is nobody's to remove
            path.unlink()
        self.kept = int(self.last.get("step", 0))  # steps that the file had when this process began
        self.before = float(self.last.get("time/elapsed", 0.0))  # seconds of the processes before this one
        self.started -= self.before

    def note(self, counts: Mapping[str, float]) -> None:
        """Add numbers that hold for the whole stage, such as its rows; they stand in the file's first row alone."""
        if not self._bytes:
            self._first |= counts

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the row of a step, with what ``note`` was given and the seconds so far."""
        row = {
            "step": step,
            **{k: float(v) for k, v in values.items()},
            **self._first,
            "time/elapsed": time.perf_counter() - self.started,
        }
        self.last, self._first = row, {}
        if self.active:
            data = (json.dumps(row) + "\n").encode()
            with self.path.open("ab") as file:
                file.write(data)
            self._count(data)
        if self.tracker is not None:
            self.tracker.log({k: v for k, v in row.items() if k != "step"}, step)

    def close(self) -> None:
        """The stage is over, whatever the reason."""
        if self.tracker is not None:
            self.tracker.finish()
            self.tracker = None

    def tokens(self) -> int | None:
        """Tokens of all rows, earlier processes' included; None where rows do not say."""
        each, total = 0, 0
        for row in self.rows():
            each += int(row.get("tokens", row.get("tokens/response", 0)))
            total = int(row.get("num_tokens", 0))  # trl's, counted up
        return each or total or None

    def rows(self) -> Iterator[dict[str, Any]]:
        """What has been written, oldest first, read from the file line by line; nothing where not active."""
        if self._bytes:
            with self.path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def _count(self, data: bytes) -> None:
        self._bytes += len(data)
        self._digest.update(data)

    def position(self) -> dict[str, Any]:
        """How much has been written, and its hash."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def _last_step(path: Path) -> int:
    """The step of the last whole row of a metrics file."""
    for line in reversed(path.read_bytes().splitlines()):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # cut off when its process was killed
            continue
    return 0


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a stage may use.

    Args:
        out: the folder that it writes into.
        inputs: folders of the finished stages that it is given, by stage.
        open_base: gives the base that the stage stands on, and its rendering; called once, at first use.
        generations: the folder in which evaluation keeps responses.
    """

    out: Path
    seed: int
    corpus: Corpus
    adapter: AdapterConfig
    inputs: Mapping[str, Path]
    processes: Processes
    log: MetricsLog
    bar: Bar
    open_base: Callable[[], tuple[SharedBase, Renderer]]
    say: Callable[[str], None]
    warn: Callable[[str], None]
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    gradient_checkpointing: bool = False
    offload_activations: bool = False
    rollouts: RolloutServers = field(default_factory=RolloutServers)
    recipe_folder: Path = Path(".")
    generations: Path | None = None

    @cached_property
    def _opened(self) -> tuple[SharedBase, Renderer]:
        return self.open_base()

    def warn_alone(self, text: str) -> None:
        """A warning that concerns this process and perhaps no other: all but the main one put it on standard error."""
        if self.processes.is_main:
            self.warn(text)
        else:
            print(f"trivet: process {self.processes.rank}: {text}", file=sys.stderr, flush=True)

    @property
    def base(self) -> SharedBase:
        """The frozen base under the stage's roles."""
        return self._opened[0]

    @property
    def renderer(self) -> Renderer:
        """How conversations become ids of that base."""
        return self._opened[1]

    @property
    def pad_id(self) -> int:
        """The tokenizer's padding id, or 0 where that is outside the embeddings; masks never depend on ids."""
        pad = self.renderer.pad_id
        return pad if pad < self.base.lm.get_input_embeddings().weight.shape[0] else 0

    def sampling(self, max_new_tokens: int, temperature: float) -> SamplingParams:
        """How a role on that base responds, until what ends a response in its rendering."""
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop_ids=self.renderer.stop_ids,
            stop_strings=self.renderer.stop_strings,
            pad_id=self.pad_id,
        )


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What the runner writes into the manifest."""

    metrics: Mapping[str, Any]


def settings_of_copy(context: StageContext, role: str, of: str | None) -> AdapterConfig | None:
    """The recipe's adapter settings for a role that starts as another one.

    None where that one, which the run was given, has others: a copy keeps them, and the user is told.
    """
    if of is None or not (differ := context.base.unlike(context.adapter, of)):
        return context.adapter
    name = {"reference": "sft"}.get(of, of)  # a reference is the sft stage's result, and called so before the stage
    context.warn(copy_sentence(role, name, differ.replace(f"'{of}'", f"'{name}'")))
    return None


def copy_sentence(role: str, of: str, differ: str) -> str:
    """That a role starts as a copy of one whose settings differ so."""
    return f"adapter: {role} starts as a copy of '{of}' and keeps its settings, not the recipe's ({differ})"


def prompt_rows(renderer: Renderer, prompts: Sequence[Prompt]) -> Sequence[list[int]]:
    """Ids of each prompt.

    Raises:
        UserError: the template refuses one; names its file and row.
    """
    rows = row_store()
    for prompt in each(prompts, "rendering prompts"):
        with located(prompt.source):
            rows.append(renderer.prompt_ids(prompt.messages))
    return rows


def schedule_factor(kind: str, done: float, final: float = 0.0) -> float:
    """Learning-rate factor after a share ``done`` in [0, 1] of training: 1 at first, ``final`` at the end."""
    import math

    if kind == "constant":
        return 1.0
    left = 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return final + (1.0 - final) * left
