"""The reward that PPO maximises: a weighted sum of named parts, each normalised and clipped by itself if asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from data.common.errors import UserError
from data.common.user_functions import columns_of, load_function
from models.backbone.processes import Processes
from reward.model import RewardModel, Samples, TextsRead
from reward.settings import RewardPart
from reward.tables import RULES
from reward.terms.classifier import ClassifierReward
from reward.terms.judge import JudgeReward
from reward.terms.remote import RemoteReward

CPU = torch.device("cpu")
Reduce = Callable[[Tensor], Tensor]


class RewardSource(Protocol):
    """Anything that gives one number a response; inject your own."""

    def __call__(self, samples: Samples) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ModelReward:
    """The reward model's scores less their mean; ``standardise`` divides them by their std on SFT samples."""

    model: RewardModel
    standardise: bool = False

    def __call__(self, samples: Samples) -> Tensor:
        scores = self.model.score(samples)
        return scores / max(self.model.score_std, 1e-6) if self.standardise else scores


class FunctionReward:
    """A Python function of named columns (``prompts``, ``completions``, ...) from the user's file or a package."""

    def __init__(self, source: str, folder: Path) -> None:
        self.function = load_function(source, folder)

    def __call__(self, samples: Samples) -> Tensor:
        values = self.function.call(
            [p.text for p in samples.prompts],
            list(samples.texts),
            **columns_of(samples.prompts),
            finished=list(samples.finished),
            completion_ids=[list(ids) for ids in samples.responses],
        )
        return torch.tensor(values, dtype=torch.float32)


def shared_scores(source: RewardSource, samples: Samples, processes: Processes) -> Tensor:
    """A source's scores (B,) of this process's rows; see ``WeightedSum.scores``."""
    if isinstance(source, FunctionReward):
        rows = [len(samples.texts)]
        everyone = Samples(**{f.name: processes.gather(getattr(samples, f.name)) for f in fields(samples)})
        start = sum(processes.gather(rows)[: processes.rank])
        return processes.on_main(lambda: source(everyone))[start : start + rows[0]]
    return processes.together(lambda: source(samples) if samples.texts else torch.zeros(0))


class Running:
    """Mean and standard deviation of all scores of a part so far, over all processes (Chan et al. 1979: parallel
    variance).

    ``state`` (3,) float64 is count, mean and sum of squared differences; it belongs in a checkpoint.
    """

    def __init__(self, reduce: Reduce = lambda x: x) -> None:
        self.state = torch.zeros(3, dtype=torch.float64)
        self.reduce = reduce

    def __call__(self, scores: Tensor) -> Tensor:
        """Take the scores (B,) in, then return them less the mean, over the std (1 before there is one)."""
        x = scores.double().cpu()
        count, total = self.reduce(torch.tensor([float(len(x)), float(x.sum())], dtype=torch.float64)).tolist()
        if count:
            mean = total / count
            squares = float(self.reduce(((x - mean) ** 2).sum()))
            before, known, rest = self.state.tolist()
            n, gap = before + count, mean - known
            self.state = torch.tensor(
                [n, known + gap * count / n, rest + squares + gap**2 * before * count / n], dtype=torch.float64
            )
        n, mean, rest = self.state.tolist()
        score_std = (rest / n) ** 0.5 if n > 1 else 0.0
        return ((scores.double() - mean) / (score_std if score_std > 1e-8 else 1.0)).to(scores.dtype)


@dataclass(frozen=True, slots=True)
class RewardTransform:
    """What is done to a part's scores before they are weighed: normalised, then clipped."""

    running: Running | None = None
    clip: float | None = None

    def __call__(self, scores: Tensor) -> Tensor:
        scores = scores if self.running is None else self.running(scores)
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)


LARGEST = 1e15
"""Weighted scores beyond this are refused: the value loss squares them, and fp32 ends at 3e38."""


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Named parts with weights; ``transforms`` by name, for those that have any."""

    parts: Sequence[tuple[str, float, RewardSource]]
    transforms: Mapping[str, RewardTransform] = field(default_factory=dict)

    def __call__(self, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """``(total (B,), scores (B,) by name)``: each part's own, and as ``NAME/transformed`` what became of them."""
        return self.combine(self.scores(samples))

    def scores(self, samples: Samples, processes: Processes | None = None) -> dict[str, Tensor]:
        """Each part's own scores (B,) by name; running means do not take them in yet, since another part may fail.

        Several processes call it together, each with its share of the rows: a function of the user's is called once,
        by the main process, since what it says of a row may depend on the others. Where one fails, all stop.
        """
        if processes is None or processes.world_size == 1:
            return self._checked({name: source(samples) for name, _, source in self.parts}, samples)
        scores = {name: shared_scores(source, samples, processes) for name, _, source in self.parts}
        return processes.together(lambda: self._checked(scores, samples))

    def _checked(self, scores: dict[str, Tensor], samples: Samples) -> dict[str, Tensor]:
        """The scores themselves.

        Raises:
            UserError: they are not one number a response, or fp32 cannot compute with one.
        """
        for name, weight, _ in self.parts:
            values = scores[name]
            if values.shape != (len(samples.texts),):
                raise UserError(f"reward '{name}': {tuple(values.shape)} scores for {len(samples.texts)} responses")
            # a normalised or clipped term is small whatever its scores are, as long as these are numbers
            used = values if name in self.transforms else weight * values
            limit = torch.finfo(values.dtype).max if name in self.transforms else LARGEST
            if wrong := (~(used.abs() <= limit)).nonzero().flatten().tolist():
                raise UserError(
                    f"reward '{name}': the score of response {wrong[0]} is {values[wrong[0]].item():g}, with which "
                    f"fp32 cannot compute (beyond {LARGEST:g}, or no number). Scale it down, or set `clip` or "
                    "`normalise`"
                )
        return scores

    def combine(self, scores: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Shape, weigh and add; all processes call it, with what each has of a rollout."""
        transformed = {name: shape(scores[name]) for name, shape in self.transforms.items()}
        total = torch.stack([weight * transformed.get(name, scores[name]) for name, weight, _ in self.parts]).sum(0)
        return total, {**scores} | {f"{name}/transformed": values for name, values in transformed.items()}

    @property
    def texts(self) -> TextsRead | None:
        """What reward models on another base, and classifiers, have been given as text so far; None without such."""
        sources = [source for _, _, source in self.parts]
        found = [s.model.texts for s in sources if isinstance(s, ModelReward) and not s.model.takes_ids]
        found += [s.texts for s in sources if isinstance(s, ClassifierReward)]
        return TextsRead(*map(sum, zip(*map(astuple, found), strict=True))) if found else None

    def unread(self) -> list[str]:
        """Sentences about classifiers that could not read what they were given so far as it is."""
        named = [(name, source) for name, _, source in self.parts if isinstance(source, ClassifierReward)]
        return [f"{name}: {said}" for name, source in named if (said := source.texts.warning())]

    @property
    def state(self) -> dict[str, Tensor]:
        """Running means by part, for checkpoints."""
        return {n: s.running.state.clone() for n, s in self.transforms.items() if s.running is not None}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the running means that ``state`` has kept."""
        for name, shape in self.transforms.items():
            if shape.running is not None:
                shape.running.state = state[name].double().cpu().clone()


def compose(
    parts: Sequence[RewardPart],
    model: RewardModel | None,
    folder: Path,
    *,
    standardise: bool = False,
    reduce: Reduce = lambda x: x,
    where: str = "ppo.reward",
    device: torch.device = CPU,
) -> WeightedSum:
    """Build the sum from the recipe's parts.

    Args:
        parts: in the order in which they are asked.
        model: the reward model, where there is one.
        folder: what a function's relative path starts from.
        standardise: divide the model's scores by their standard deviation on SFT samples.
        reduce: sum over processes, for running means.
        where: the recipe's key that holds the parts, for messages.
        device: where classifiers compute.

    Raises:
        UserError: the reward model is asked for and there is none, a name occurs twice, or an address, a token or a
            function cannot be used.
    """
    named: list[tuple[str, float, RewardSource]] = []
    transforms: dict[str, RewardTransform] = {}
    for part in parts:
        if part.title in (name for name, _, _ in named):
            raise UserError(
                f"{where}: '{part.title}' is listed twice; add the weights up, or give each a `name` of its own"
            )
        named.append((part.title, part.weight, _source(part, model, folder, standardise, device)))
        if part.normalise or part.clip is not None:
            transforms[part.title] = RewardTransform(Running(reduce) if part.normalise else None, part.clip)
    return WeightedSum(named, transforms)


def _source(
    part: RewardPart, model: RewardModel | None, folder: Path, standardise: bool, device: torch.device
) -> RewardSource:
    if part.kind == "model":
        if model is None:
            raise UserError(
                "ppo.reward: 'model' needs a reward model: run the reward stage or give --input reward=PATH"
            )
        return ModelReward(model, standardise)
    if part.kind in RULES:
        return RULES[part.kind].make(part)
    if part.judge is not None:
        return JudgeReward(part.source, part.judge, part.remote)
    if part.kind == "classifier":
        return ClassifierReward(part.source, folder, device, part.label)
    return RemoteReward(part.source, part.remote) if part.kind == "remote" else FunctionReward(part.source, folder)
