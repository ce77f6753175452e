"""The coefficient of the KL penalty: fixed, or Ziegler's controller. Both have the same two members and a state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class KLController(Protocol):
    """A coefficient, and what is said to it after each rollout."""

    coef: float

    def update(self, kl: float, samples: int) -> None:
        """Hear of the KL in nats, summed over each of ``samples`` responses and averaged over them."""


@dataclass(slots=True)
class FixedKL:
    """The coefficient never changes."""

    coef: float

    def update(self, kl: float, samples: int) -> None:
        """Nothing to adapt."""
        del kl, samples


@dataclass(slots=True)
class AdaptiveKL:
    """Ziegler et al. 2019, section 2.2: coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * samples / horizon.

    ``kl`` is summed over each response and averaged over the responses of the rollout just used; the new coefficient
    holds from the next rollout on.
    """

    coef: float
    target: float
    horizon: float

    def update(self, kl: float, samples: int) -> None:
        """Raise the coefficient where ``kl`` is above the target, and lower it where it is below."""
        error = max(-0.2, min(0.2, kl / self.target - 1.0))
        self.coef *= 1.0 + error * samples / self.horizon


def make_controller(kind: str, coef: float, target: float, horizon: float) -> KLController:
    """The controller of ``ppo.kl``: ``fixed`` or ``adaptive``."""
    return AdaptiveKL(coef, target, horizon) if kind == "adaptive" else FixedKL(coef)
