"""The held-out curve of a training: loss before its first step and every so many steps, the best weights, and when to
stop.

An evaluation samples nothing and leaves no trace in the training: weights, optimizer and generators are as they were.
What it knows is part of a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.common.errors import UserError
from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import isolated_rng
from models.backbone.trained_shards import own_tensor, whole_tensor
from stages.held_out_cost import evaluated, every_steps
from stages.safe_points.checkpoints import State
from stages.settings import RewardConfig, SFTConfig
from stages.stage import StageContext
from stages.training.learnt import Change, Values, accuracy_of, change, loss_of, sentence

NAME = "held_out/"  # of metrics, and of tensors in a checkpoint
BEST = f"{NAME}best/"
BATCH = 32  # rows of a pass, at most


class HeldOutCurve:
    """Evaluations of one training on the same held-out rows.

    Args:
        context: of the stage.
        config: the stage's settings.
        key: what messages call those settings.
        name: what messages call the training.
        rows: encoded held-out rows, as the trainer's ``held_out_values`` takes them.
        of: how many there are, of which ``rows`` are evenly spaced ones.
        prompts: of each row.
        parameters: what is trained, by name.
    """

    def __init__(
        self,
        context: StageContext,
        config: SFTConfig | RewardConfig,
        key: str,
        name: str,
        rows: Sequence[Any],
        of: int,
        prompts: Sequence[Hashable],
        parameters: Mapping[str, Tensor],
    ) -> None:
        self.context, self.config, self.key, self.name = context, config, key, name
        self.rows, self.of, self.prompts, self.parameters = rows, of, prompts, parameters
        self.memory = OOMRetry(f"{key}.micro_batch", context.warn_alone)
        self.before: Values | None = None
        self.last = self.best = np.zeros((0, 4))
        self.points: list[tuple[int, float, float | None]] = []  # step, loss, accuracy
        self.best_step = self.without_better = 0
        self.best_weights: dict[str, Tensor] = {}
        self.stopped = False
        self._first: dict[str, float] = {}  # what the next row of metrics says of the time before training

    # -- evaluations ---------------------------------------------------------------------------------------------

    def begin(self, trainer: Any) -> None:
        """Evaluate before the first step: the value of the base, or of scores that are not trained yet."""
        self.before = self._values(trainer)
        found = {"loss": loss_of(self.before), "accuracy": accuracy_of(self.before)}
        self._first = {f"{NAME}{k}_before": v for k, v in found.items() if v is not None}
        some = f"{len(self.rows):,} of {self.of:,} held-out rows, evenly spaced" if len(self.rows) < self.of else ""
        some = some or f"{self.of:,} held-out rows"
        self.context.say(f"{self.name}: held-out loss {found['loss']:.4g} before training, of {some}")

    def after_step(self, trainer: Any, step: int, total: int) -> dict[str, float]:
        """Evaluate where it is due; what goes into the metrics of this step."""
        found, self._first = self._first, {}
        if step % every_steps(self.config, total) and step != total:
            return found
        values = self._values(trainer)
        loss, accuracy = loss_of(values), accuracy_of(values)
        self.points.append((step, loss, accuracy))
        self.last = values
        self._judge(step, loss, values)
        return found | {f"{NAME}loss": loss} | ({} if accuracy is None else {f"{NAME}accuracy": accuracy})

    def _judge(self, step: int, loss: float, values: Values) -> None:
        """Keep what is best so far; stop where nothing has been better for long enough."""
        if not self.best_step or loss < loss_of(self.best) or not math.isfinite(loss_of(self.best)):
            self.best, self.best_step, self.without_better = values, step, 0
            if self.config.keep == "best":
                self.best_weights = {n: p.detach().to("cpu", copy=True) for n, p in self.parameters.items()}
        else:
            self.without_better += 1
        self.stopped = self.config.patience is not None and self.without_better >= self.config.patience

    def _values(self, trainer: Any) -> Values:
        """(rows, 4) of all processes' rows; each batch is whichever process computes it the same."""
        processes = self.context.processes
        out = torch.zeros(len(self.rows), 4, dtype=torch.float64)
        done = self.context.bar.phase("held-out rows", len(self.rows))
        size = min(BATCH, self.config.micro_batch)
        batches = [range(i, min(i + size, len(self.rows))) for i in range(0, len(self.rows), size)]

        def work() -> None:
            with torch.no_grad(), isolated_rng(0), evaluating(trainer.model):
                for first in range(0, len(batches), processes.world_size):
                    at = first + processes.rank
                    mine = batches[min(at, len(batches) - 1)]  # as many passes in each process

                    def values(index: Sequence[int], counts: bool = at < len(batches)) -> None:
                        found = trainer.held_out_values([self.rows[i] for i in index])
                        if counts:
                            out[list(index)] = found

                    self.memory.each(mine, size, values)
                    done(sum(map(len, batches[first : first + processes.world_size])))

        processes.together(work)
        return processes.sum(out).numpy()

    # -- the end -------------------------------------------------------------------------------------------------

    @property
    def kept_step(self) -> int:
        """The step whose weights the training leaves."""
        return self.best_step if self.config.keep == "best" or not self.points else self.points[-1][0]

    @torch.no_grad()
    def finish(self) -> None:
        """Put the best weights back where they are to be kept, and say what was learnt."""
        if not self.points or self.before is None:
            return
        if self.config.keep == "best":
            for name, p in self.parameters.items():
                p.copy_(self.best_weights[name])
        if self.stopped:
            self.context.say(
                f"{self.name}: stopped after step {self.points[-1][0]}: {self.without_better} evaluations in a row "
                f"without a lower held-out loss ({self.key}.patience)"
            )
        (self.context.warn if self._change.learnt is False else self.context.say)(f"{self.name}: {self._sentence()}")

    @property
    def _kept(self) -> Values:
        return self.best if self.config.keep == "best" else self.last

    @cached_property
    def _change(self) -> Change:
        """What the whole training changed; asked for at its end."""
        assert self.before is not None
        return change(self.before, self._kept, self.prompts)

    def _sentence(self) -> str:
        assert self.before is not None
        return sentence(
            self._change,
            self.before,
            self._kept,
            step=self.kept_step,
            steps=self.points[-1][0],
            lowest=(self.best_step, loss_of(self.best)),
            key=self.key,
            rate=self.config.learning_rate,
        )

    def warning(self) -> str:
        """The sentence where nothing was learnt; empty otherwise."""
        if not self.points or self.before is None or self._change.learnt is not False:
            return ""
        return f"{self.name}: {self._sentence()}"

    def summary(self) -> dict[str, Any] | None:
        """For the stage's manifest; None where nothing was evaluated."""
        if not self.points or self.before is None:
            return None
        found = self._change
        return {
            "rows": len(self.rows),
            "of": self.of,
            "before": _point(0, loss_of(self.before), accuracy_of(self.before)),
            "evaluations": [_point(*point) for point in self.points],
            "kept_step": self.kept_step,
            "best_step": self.best_step,
            "stopped_early": self.stopped,
            "change": _plain(found.loss),
            "change_ci95": None if found.ci95 is None else list(found.ci95),
            "learnt": found.learnt,
            "within_chance": found.within_chance,
            "text": self._sentence(),
        }

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def add_to(self, state: State) -> State:
        """The state with what the evaluations found."""
        if self.before is None:
            return state
        kept = {"before": self.before, "last": self.last, "kept": self.best}
        state.tensors |= {NAME + name: torch.from_numpy(values.copy()) for name, values in kept.items()}
        state.tensors |= {
            BEST + name: whole_tensor(self.parameters[name], tensor) for name, tensor in self.best_weights.items()
        }
        state.numbers["held_out"] = {
            "points": [list(point) for point in self.points],
            "best_step": self.best_step,
            "without_better": self.without_better,
            "stopped": self.stopped,
        }
        return state

    def restore(self, state: State) -> bool:
        """Resume from a saved state; False where it knows nothing of these rows, so that there is no curve."""
        known = state.numbers.get("held_out")
        if known is None or len(state.tensors[f"{NAME}before"]) != len(self.rows):
            return False
        found = {name: state.tensors[NAME + name].numpy().copy() for name in ("before", "last", "kept")}
        self.before, self.last, self.best = found["before"], found["last"], found["kept"]
        best = {k.removeprefix(BEST): v for k, v in state.tensors.items() if k.startswith(BEST)}
        self.best_weights = {name: own_tensor(self.parameters[name], v) for name, v in best.items()}
        self.points = [(int(step), loss, accuracy) for step, loss, accuracy in known["points"]]
        self.best_step, self.without_better, self.stopped = (
            known["best_step"],
            known["without_better"],
            known["stopped"],
        )
        return True


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, whichever mode each module is in afterwards again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def require_held_out(config: SFTConfig | RewardConfig, key: str, what: str, count: int) -> None:
    """Whatever is decided by held-out rows needs some.

    Raises:
        UserError: weights are chosen, or training stops, by rows that are not there.
    """
    for setting, asked in (("keep", config.keep == "best"), ("patience", config.patience is not None)):
        if asked and not count:
            raise UserError(
                f"{key}.{setting}: goes by the loss of held-out {what}, and there are none: set data.held_out, for "
                f"example 0.1, or leave {setting} out"
            )


def chosen(rows: Sequence[Any], config: SFTConfig | RewardConfig, trained: int) -> list[Any]:
    """The held-out rows that are evaluated: evenly spaced ones."""
    count = evaluated(config, len(rows), trained)
    return [rows[i * len(rows) // count] for i in range(count)]


def _point(step: int, loss: float, accuracy: float | None) -> dict[str, Any]:
    found = {"step": step, "loss": _plain(loss)}
    return found if accuracy is None else found | {"accuracy": accuracy}


def _plain(value: float) -> float | None:
    """A number that JSON knows."""
    return value if math.isfinite(value) else None
