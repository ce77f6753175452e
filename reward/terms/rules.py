"""Rewards by rule: a regular expression in the response, a length between two bounds. Pure functions of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.common.regex_timeout import occurrences
from reward.model import Samples
from reward.settings import RewardPart


def regex(part: RewardPart) -> RegexReward:
    """The rule ``regex`` by its settings."""
    return RegexReward(part.pattern or "", part.count)


def length(part: RewardPart) -> LengthReward:
    """The rule ``length`` by its settings."""
    return LengthReward(part.min_length, part.max_length, part.unit)


@dataclass(frozen=True, slots=True)
class RegexReward:
    """1 where the pattern occurs in the response, else 0; with ``count``, how often it does (without overlaps).

    A search that takes too long is a ``StageError`` (``data.common.regex_timeout``).
    """

    pattern: str
    count: bool = False

    def __call__(self, samples: Samples) -> Tensor:
        found = [occurrences(self.pattern, t, "ppo.reward, source regex") for t in samples.texts]
        counts = [sum(1 for _ in some) if self.count else any(True for _ in some) for some in found]
        return torch.tensor([float(n) for n in counts], dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class LengthReward:
    """Minus the number of words, characters or tokens by which a response is too short or too long; 0 in between.

    Words are separated by white space; tokens are those that were sampled, the one that ended the response not counted
    (of a stop string, those that began it are).
    """

    min_length: int | None = None
    max_length: int | None = None
    unit: str = "words"

    def __call__(self, samples: Samples) -> Tensor:
        short, long = self.min_length or 0, float("inf") if self.max_length is None else self.max_length
        return torch.tensor([-float(max(0, short - n, n - long)) for n in self._lengths(samples)], dtype=torch.float32)

    def _lengths(self, samples: Samples) -> Sequence[int]:
        if self.unit == "tokens":
            ended = zip(samples.responses, samples.finished, strict=True)
            return [len(ids) - bool(done and ids) for ids, done in ended]
        return [len(t.split()) if self.unit == "words" else len(t) for t in samples.texts]
