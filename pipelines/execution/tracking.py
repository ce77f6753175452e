"""Where a stage's metrics go besides ``metrics.jsonl``: TensorBoard, W&B, MLflow or Trackio, by accelerate's trackers.

Each service is set up as its own documentation says (``wandb login``, ``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``,
``TRACKIO_DIR``); this module knows no accounts. A tracker that fails costs a warning, never the training.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.redaction import printable, redacted
from stages.stage import MetricsLog

# Tracker -> the modules it needs, and what installs them.
NEEDS = {
    "tensorboard": (("tensorboard",), "pip install tensorboard"),
    "wandb": (("wandb",), "pip install 'trivet[wandb]', or pip install wandb"),
    "mlflow": (("mlflow",), "pip install 'trivet[mlflow]', or pip install mlflow"),
    "trackio": (("trackio",), "pip install 'trivet[trackio]', or pip install trackio"),
}
MEMORY = "trackers.json"  # next to the checkpoints: it lives as long as there is something to resume from


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing, before any work is done.

    Raises:
        UserError: with what to install.
    """
    for name in names:
        modules, fix = NEEDS[name]
        if any(importlib.util.find_spec(module) is None for module in modules):
            raise UserError(f"tracking: {name} is not installed; {fix}; or leave it out of `tracking`")


class Trackers:
    """The trackers of one stage, each in its own tracker run; a resumed stage continues in the same ones.

    Args:
        names: of ``NEEDS``.
        project: W&B's and Trackio's project, MLflow's experiment.
        run: the run folder; TensorBoard's and W&B's files go into it.
        stage: its name; the tracker run is ``RUN/STAGE``.
        settings: shown by the trackers as the run's configuration.
        memory: the file that remembers the tracker runs, and the last step they have.
        log: the stage's rows so far. Steps that a stopped process has sent already are not sent again.
        warn: reports each tracker that fails, once; training continues without it.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        project: str,
        run: Path,
        stage: str,
        settings: Mapping[str, Any],
        memory: Path,
        log: MetricsLog,
        warn: Callable[[str], None],
    ) -> None:
        self.names, self.memory, self.settings, self.warn = tuple(dict.fromkeys(names)), memory, settings, warn
        self.project, self.run, self.stage = project, run, stage
        self.kept, self.sent = log.kept, 0
        self.ids: dict[str, str] = _read(memory) if log.kept else {}
        if self.ids:  # now, since the rows that were cut off are not there to be counted next time
            self.sent = max(int(self.ids.pop("sent", 0)), log.found)
            self._remember()
        self.live: dict[str, Any] | None = None  # started with the first row: some stages have none

    def _remember(self) -> None:
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        self.memory.write_text(json.dumps(self.ids | {"sent": self.sent}), encoding="utf-8")

    def _start(self) -> dict[str, Any]:
        resumed, self.live = bool(self.ids), {}
        self.ids.setdefault("run", uuid.uuid4().hex[:12])
        for name in self.names:
            with self._guarded(name):
                self.live[name] = self._started(name, resumed)
        self._remember()
        return self.live

    def _started(self, name: str, resumed: bool) -> Any:
        from accelerate import tracking

        title = f"{self.run.name}/{self.stage}"
        if name == "tensorboard":  # what was written after the checkpoint is hidden, so every row is sent again
            tracker: Any = tracking.TensorBoardTracker(
                self.stage, logging_dir=self.run / "tensorboard", purge_step=self.kept + 1
            )
            tracker.start()
            return tracker
        if name == "wandb":
            tracker = tracking.WandBTracker(
                self.project, name=title, group=self.run.name, id=self.ids["run"], resume="allow", dir=str(self.run)
            )
        elif name == "mlflow":
            tracker = tracking.MLflowTracker(self.project, run_name=title, run_id=self.ids.get("mlflow"))
        else:
            title, resume = f"{title}-{self.ids['run'][:6]}", "allow" if resumed else "never"
            tracker = tracking.TrackioTracker(self.project, name=title, resume=resume)
        tracker.start()
        if name == "mlflow":
            self.ids["mlflow"] = tracker.tracker.info.run_id
        tracker.store_init_configuration(redacted(flat(self.settings)))
        return tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One row to every tracker that still works."""
        live = self._start() if self.live is None else self.live
        for name, tracker in list(live.items()):
            if name == "tensorboard" or step > self.sent:
                with self._guarded(name):
                    tracker.log(dict(values), step=step)

    def finish(self) -> None:
        """The stage is over, whatever the reason."""
        for name, tracker in list((self.live or {}).items()):
            with self._guarded(name):
                tracker.finish()
        self.live = {}

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            (self.live or {}).pop(name, None)
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.warn(f"tracking: {name} failed ({printable(said)[:240]}); the {self.stage} stage continues without it")


def tracked_log(names: Sequence[str], active: bool, out: Path, start: int, **trackers: Any) -> MetricsLog:
    """A stage's ``metrics.jsonl`` with its trackers; the main process has them.

    Args:
        names: of ``NEEDS``.
        active: whether this is the main process.
        out: the stage's hidden folder.
        start: as ``MetricsLog`` has it.
        trackers: as ``Trackers`` has it: project, run, stage, settings, warn.
    """
    log = MetricsLog(out / "metrics.jsonl", active, start)
    if active and names:
        log.tracker = Trackers(names, memory=out / "checkpoints" / MEMORY, log=log, **trackers)
    return log


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and plain values: trackers show no nested mappings."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return out


def _read(memory: Path) -> dict[str, Any]:
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
