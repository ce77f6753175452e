"""``--profile``: where the time and memory of a few steps of each stage went, as a trace and as a table.

A stage's first step warms up and is left out; the next ``STEPS`` are recorded. Knows nothing of what stages do: their
own ranges are named ``trivet/...`` where they happen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from models.backbone.processes import peak_memory
from stages.stage import Bar

STEPS = 2
RANGES = "trivet/"


class NamedBar(Bar, Protocol):
    """A progress bar that knows its stage's name."""

    name: str


class ProfiledBar:
    """A stage's progress bar whose steps are the profiler's as well."""

    def __init__(self, bar: NamedBar, profiler: Any) -> None:
        self._bar, self._profiler = bar, profiler
        self.seen, self.steps = 0, 0  # the newest step's number; how many there were, since a resumed stage starts late

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)

    def advance(self, step: int, metrics: Mapping[str, float] | None = None, tokens: int = 0) -> None:
        self._bar.advance(step, metrics, tokens)
        if step > self.seen:
            self.seen, self.steps = step, self.steps + 1
            self._profiler.step()


@contextlib.contextmanager
def profiled(bar: NamedBar, folder: Path, say: Callable[[str], None]) -> Iterator[Any]:
    """The bar to hand to a stage; ``folder/STAGE.json.gz`` and ``STAGE.txt`` are there when its steps are recorded.

    A stage of too few steps leaves nothing.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

    def done(profiler: Any) -> None:
        if watched.steps <= STEPS:
            return say(f"{bar.name}: no profile, which takes {STEPS + 1} steps")
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / f"{bar.name}.json.gz"))
        text = table(profiler.key_averages(), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        (folder / f"{bar.name}.txt").write_text(text, encoding="utf-8")
        say(f"{bar.name}: profile in {folder / bar.name}.txt (and .json.gz, for chrome://tracing or ui.perfetto.dev)")

    plan = schedule(wait=0, warmup=1, active=STEPS, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=done, profile_memory=True) as profiler:
        watched = ProfiledBar(bar, profiler)
        yield watched


def table(events: Any, device: Any) -> str:
    """Ranges of trivet's own, then operations, by time; memory is what an operation itself took less what it gave."""
    rows = sorted(events, key=lambda e: -(e.self_cpu_time_total + e.self_device_time_total))
    ours = sorted((e for e in rows if e.key.startswith(RANGES)), key=lambda e: -_whole(e))
    whole = sum(e.self_cpu_time_total + e.self_device_time_total for e in rows) or 1.0
    lines = [f"{STEPS} steps, {whole / 1e6:.2f} s in all; peak memory {peak_memory(device) / 1e6:,.0f} MB", ""]
    lines += [f"{'part (parts inside count in their parent too)':<48}{'seconds':>10}{'share':>8}{'calls':>9}"]
    lines += [f"{e.key:<48}{_whole(e) / 1e6:>10.3f}{_whole(e) / whole:>8.0%}{e.count:>9,}" for e in ours]
    lines += ["", f"{'operation':<48}{'seconds':>10}{'share':>8}{'calls':>9}{'memory MB':>12}"]
    for e in [e for e in rows if not e.key.startswith((RANGES, "ProfilerStep"))][:25]:
        own = e.self_cpu_time_total + e.self_device_time_total
        memory = (e.self_cpu_memory_usage + e.self_device_memory_usage) / 1e6
        lines.append(f"{e.key[:47]:<48}{own / 1e6:>10.3f}{own / whole:>8.0%}{e.count:>9,}{memory:>12,.0f}")
    return "\n".join(lines) + "\n"


def _whole(event: Any) -> float:
    return event.cpu_time_total if event.device_time_total == 0 else max(event.cpu_time_total, event.device_time_total)
