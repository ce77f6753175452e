"""When do the score that PPO optimises and a held-out one diverge? Pure functions of evaluations of the policy.

Over-optimisation as Gao et al. 2022 (arXiv 2210.10760) describe it: the proxy keeps rising while the score that
nobody optimises falls. Knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SURE = 2.0  # standard errors by which the held-out score must have fallen
IN_A_ROW = 2  # evaluations that must show it


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldoutEvaluation:
    """Scores of the policy's responses to the same prompts, with the same noise, after some updates.

    Both in units of their standard deviation on SFT samples; ``proxy`` is empty where no reward model is optimised.
    """

    update: int
    proxy: list[float]
    held_out: list[float]
    kl: float  # nats a response


@dataclass(frozen=True, slots=True, kw_only=True)
class Onset:
    """The two scores went together up to ``after``; ``seen`` is when it was certain."""

    after: int
    seen: int


def best_of(evaluations: Sequence[HoldoutEvaluation]) -> int:
    """Number of the evaluation with the highest mean held-out score; the earliest of equals."""
    return int(np.argmax([np.mean(evaluation.held_out) for evaluation in evaluations]))


def find_onset(evaluations: Sequence[HoldoutEvaluation]) -> Onset | None:
    """Where the held-out score has fallen below its best, beyond doubt and for good, while the proxy has not.

    An evaluation shows it when its held-out scores lie below those of the best one before it by more than ``SURE``
    standard errors of the paired differences, and its proxy's mean is above that one's; ``IN_A_ROW`` must do so.
    """
    in_a_row = 0
    for number, evaluation in enumerate(evaluations):
        best = evaluations[best_of(evaluations[: number + 1])]
        in_a_row = in_a_row + 1 if _fell(best, evaluation) and np.mean(evaluation.proxy) > np.mean(best.proxy) else 0
        if in_a_row == IN_A_ROW:
            return Onset(after=best.update, seen=evaluation.update)
    return None


def _fell(best: HoldoutEvaluation, now: HoldoutEvaluation) -> bool:
    loss = np.subtract(best.held_out, now.held_out)
    if len(loss) < 2 or not now.proxy:
        return False
    return bool(loss.mean() > max(SURE * loss.std(ddof=1) / len(loss) ** 0.5, 1e-9))
