"""What a probe of this machine measures, and how a time is taken."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

import psutil
import torch

from pipelines.stages.memory import Numbers
from pipelines.stages.shapes import Shape
from stages.settings import PretrainConfig

VERSION = 2  # of what is measured
WORDS = 2048  # of the vocabulary; the output layer's time grows with it evenly
GUESS = {"cpu": 5e10}  # operations a second, to choose sizes by; of other devices 5e13
TARGET, SPENT = 0.03, 0.06  # seconds that one pass should take, and that its repetitions may
REPEATS = 7
CROWDED = 0.25  # cores in the way of a probe's threads, from which on its times say little of this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What is measured: a shape, how it is kept and computed with, and where.

    ``lengths`` are those of rows, and ``tokens`` those of the largest pass, by kind of pass; ``rows`` are sampled at
    once behind ``behind`` tokens each. A kind that is not named is not measured.
    """

    shape: Shape
    numbers: Numbers
    device: torch.device
    rank: int
    lengths: Mapping[str, int]
    tokens: Mapping[str, int]
    rows: int = 0
    behind: int = 0
    pretraining: PretrainConfig | None = None

    def described(self) -> dict[str, Any]:
        """What the numbers depend on."""
        shape = asdict(replace(self.shape, parameters=0, adapter=0, trained_layers=0))
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        machine = (platform.node(), platform.processor(), torch.backends.cpu.get_cpu_capability(), gpu)
        return {
            "version": VERSION,
            "day": date.today().isoformat(),
            "machine": machine,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "shape": shape,
            "numbers": asdict(replace(self.numbers, checkpointing=False, parts=1)),
            "rank": self.rank,
            "lengths": dict(self.lengths),
            "tokens": dict(self.tokens),
            "rows": self.rows,
            "behind": self.behind,
            "pretraining": None if self.pretraining is None else self.pretraining.model_dump(mode="json"),
        }


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """The median time of a few repetitions, after one that prepares kernels; of one thread on a CPU its own, whatever
    else the processor does."""
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def once() -> float:
        began = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    once()
    found = [once(), once()]
    while len(found) < REPEATS and sum(found) < SPENT:
        found.append(once())
    return statistics.median(found)


@dataclass
class Crowd:
    """Cores that other processes kept busy in the way of a probe's threads; 0 before the probe has ended."""

    cores: float = 0.0

    @property
    def matters(self) -> bool:
        """Whether the times are those of a busy machine."""
        return self.cores >= CROWDED


def in_the_way(others: float, cores: int, threads: int) -> float:
    """Of ``others`` busy cores those that ``threads`` threads on ``cores`` cores had to share with them. One thread
    counts its own time alone."""
    return 0.0 if threads == 1 else max(0.0, others - max(0, cores - threads))


@contextmanager
def crowd() -> Iterator[Crowd]:
    """What other processes do on this process's cores while the block runs, where the system tells."""
    found, before, began, own = Crowd(), _busy(), time.perf_counter(), time.process_time()
    yield found
    after, seconds = _busy(), time.perf_counter() - began
    if before is None or after is None or seconds <= 0:
        return
    others = (sum(after) - sum(before) - (time.process_time() - own)) / seconds
    found.cores = in_the_way(others, len(after), torch.get_num_threads())


def _busy() -> list[float] | None:
    """Seconds that each of this process's cores has been busy for; None where that is not told."""
    try:
        mine = os.sched_getaffinity(0)
        return [t.user + t.nice + t.system for n, t in enumerate(psutil.cpu_times(percpu=True)) if n in mine]
    except (AttributeError, OSError, psutil.Error):
        return None
