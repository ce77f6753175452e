"""The base class of every configuration: frozen, typed, and closed to unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

COOLEST = 1e-4
"""The least temperature: logits that are divided by less leave what fp32 holds. 0 is greedy, where that is offered."""


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown keys; fields carry their one-line documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def greedy_or_warm(temperature: float) -> float:
    """A temperature where 0 is greedy decoding.

    Raises:
        ValueError: it is neither 0 nor at least ``COOLEST``.
    """
    if temperature != 0 and not temperature >= COOLEST:
        raise ValueError(f"give 0, which is greedy decoding, or at least {COOLEST:g}")
    return temperature
