"""What a policy responded to the held-out prompts: texts, ids and scores, row by row. Plain values, no models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Decoding = Literal["sampled", "greedy"]

SCORES = ("reward", "held_out_reward", "gold", "kl", "kl_exact")
COLUMNS = ("categories", "responses", "token_ids", "finished", *SCORES, "groups", "raw", "extracted")


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemResponses:
    """One system's n responses, row by row.

    ``reward`` is the score of the reward model that PPO optimises, ``held_out_reward`` that of the one it does not.
    ``token_ids`` are the response ids as generated (the stop token included where the response finished); ``kl`` is the
    sum over a response's tokens of the log-ratio to the reference, in nats, ``kl_exact`` that of the exact KL at every
    step; ``groups`` names each row's prompt where its text does not (conversations that end alike). Rows of one prompt
    are taken as one unit by the statistics. ``raw`` is the whole text where only a part of it is the response,
    ``extracted`` whether that part was found; ``generation`` is the key of the kept responses.

    Raises:
        ValueError: no rows, or columns of different lengths.
    """

    name: str
    decoding: Decoding
    prompts: Sequence[str]
    categories: Sequence[str]
    responses: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    finished: Sequence[bool]
    reward: Sequence[float] | None = None
    held_out_reward: Sequence[float] | None = None
    gold: Sequence[float] | None = None
    kl: Sequence[float] | None = None
    groups: Sequence[str] | None = None
    kl_exact: Sequence[float] | None = None
    raw: Sequence[str] | None = None
    extracted: Sequence[bool] | None = None
    generation: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)  # of whole sets, by name
    response_scores: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # one a row, by metric

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise ValueError(f"{self.name}: no responses")
        for column in COLUMNS:
            values = getattr(self, column)
            if values is not None and len(values) != len(self.prompts):
                raise ValueError(f"{self.name}: {len(values)} {column} for {len(self.prompts)} prompts")

    @property
    def units(self) -> Sequence[str]:
        """What identifies the prompt of each row."""
        return self.prompts if self.groups is None else self.groups
