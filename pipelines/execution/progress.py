"""Live progress: a bar on a terminal, a readable line now and then when written to a file.

Knows nothing of stages but their name, step, tokens and a few numbers. Processes other than the first are silent.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from data.common.number_format import duration
from data.common.redaction import printable
from models.backbone.whereabouts import WHEREABOUTS

EVERY_SECONDS, EVERY_SHARE, MIN_SECONDS = 10.0, 0.1, 2.0
SHOWN = 5  # metrics in a line
LAST_SECONDS = 20.0  # of a part, by which its time left is counted


class Bar:
    """One stage's progress."""

    def __init__(self, progress: Progress, name: str, total: int | None) -> None:
        self.name, self.total = name, total
        self.step, self.tokens, self.metrics = 0, 0, dict[str, float]()
        self.started = self._reported_at = time.monotonic()
        self._reported_step = 0
        # rates are counted from the first mark on (seconds, step, tokens): of a stage that is its first step, for what
        # comes before is loading, or the steps of a run that was stopped; of a part what was some seconds ago
        self._marks, self._window = deque[tuple[float, int, int]](), math.inf
        self._progress = progress
        self.live: Live | None = None

    def advance(self, step: int, metrics: Mapping[str, float] | None = None, tokens: int = 0) -> None:
        """Say how far the stage is.

        Args:
            step: steps done, counted from the stage's beginning.
            metrics: the few numbers to show; those of the step before stay where there are none.
            tokens: tokens handled since the last call.
        """
        self.step, self.tokens = step, self.tokens + tokens
        WHEREABOUTS.advance(step if self.name == self._progress.current else None)
        if self.total and step > self.total:  # planned before rows were cut or shared: no share of it is true
            self.total = None
        self.metrics.update(metrics or {})
        self._mark()
        if self.live is not None:
            self.live.update(self._row())
        elif self._due():
            self._reported_at, self._reported_step = time.monotonic(), step
            self._progress.say(self.line())

    def _mark(self) -> None:
        now = time.monotonic()
        if not self._marks or math.isfinite(self._window):
            self._marks.append((now, self.step, self.tokens))
        while len(self._marks) > 2 and self._marks[1][0] <= now - self._window:
            self._marks.popleft()

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """Show one more part of the stage, with its own total and time left.

        Args:
            name: what it does.
            total: how many units it has, such as rows.

        Returns:
            A function that is told of so many more units that are done.
        """
        part = Bar(self._progress, f"{self.name}, {name}", total)
        part.live, part._window = self.live, LAST_SECONDS  # rows come by length: the last ones say more than the mean
        part._marks.append((part.started, 0, 0))

        def done(count: int) -> None:
            part.advance(part.step + count)

        return done

    def _due(self) -> bool:
        waited = time.monotonic() - self._reported_at
        share = (self.step - self._reported_step) / self.total if self.total else 0.0
        return waited >= EVERY_SECONDS or (share >= EVERY_SHARE and waited >= MIN_SECONDS)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def _parts(self) -> list[str]:
        parts = []
        began, step, tokens = self._marks[0] if self._marks else (self.started, self.step, self.tokens)
        seconds = time.monotonic() - began
        if self.tokens > tokens and seconds > 0:
            parts.append(f"{(self.tokens - tokens) / seconds:,.0f} tokens/s")
        if self.total and step < self.step < self.total:
            parts.append(f"{duration(seconds / (self.step - step) * (self.total - self.step))} left")
        return parts + [f"{name} {number(value)}" for name, value in list(self.metrics.items())[:SHOWN]]

    def _count(self) -> str:
        return f"{self.step}/{self.total}" if self.total else f"{self.step}"

    def line(self) -> str:
        """One plain line, without control characters."""
        share = f" ({self.step / self.total:.0%})" if self.total else ""
        return "  ".join([f"{self.name} {self._count()}{share}", *self._parts()])

    def summary(self) -> str:
        """What stays in view when the stage is over."""
        numbers = [f"{name} {number(value)}" for name, value in list(self.metrics.items())[:SHOWN]]
        return "  ".join([f"{self.name}: done in {duration(self.seconds)}", *numbers])

    def _row(self) -> Table:
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self.total or None, completed=self.step, width=24, pulse=not self.total)
        row.add_row(self.name, bar, self._count(), printable("  ".join(self._parts())))
        return row


class Progress:
    """Where a run reports how it goes.

    Args:
        active: False in every process but the first.
        console: where to; standard output by default.
        profile: a folder for a profile of each stage.
    """

    def __init__(self, active: bool = True, console: Console | None = None, profile: Path | None = None) -> None:
        self.active, self.profile = active, profile
        # tables in a log file need more than the 80 columns that a pipe is taken for
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        self.current = ""  # the stage that runs, for messages when it fails
        self._bar: Bar | None = None
        self._warned: set[str] = set()  # warnings that came before the first stage

    @contextlib.contextmanager
    def stage(self, name: str, total_steps: int | None = None) -> Iterator[Bar]:
        """Show a stage while it runs, and profile it if asked; its last numbers stay when it ends without an error."""
        with self._shown(name, total_steps) as bar:
            if self.profile is None or not self.active:
                yield bar
                return
            from pipelines.execution.profiling import profiled

            with profiled(bar, self.profile, self.say) as watched:
                yield watched

    @contextlib.contextmanager
    def _shown(self, name: str, total_steps: int | None) -> Iterator[Bar]:
        bar, self.current = Bar(self, name, total_steps), name
        WHEREABOUTS.enter(name)
        if self.active and self.console.is_terminal and not self.console.is_dumb_terminal:
            with Live(bar._row(), console=self.console, transient=True, refresh_per_second=4) as bar.live:
                yield bar
        else:
            yield bar
        bar.live, self.current = None, ""
        WHEREABOUTS.enter("")
        self.say(bar.summary())

    def say(self, text: str) -> None:
        """One line for the user, without secrets or control codes."""
        if self.active:
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
            self.console.file.flush()  # a run that is followed with tail -f

    def warn(self, text: str) -> None:
        """Something that the user should see, also among many lines; a stage does not repeat what came before it."""
        if self.current and text in self._warned:
            return
        if not self.current:
            self._warned.add(text)
        if self.active:
            text = printable(f"warning: {text}")
            self.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
            self.console.file.flush()


def number(value: float) -> str:
    """Four significant digits without an exponent where that is readable."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.4g}"
