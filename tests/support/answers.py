"""Answers of made-up policies, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.answers import SystemResponses


def responses_of(
    name: str, shift: float = 0.0, n: int = 60, decoding: Any = "sampled", **changes: Any
) -> SystemResponses:
    rng = np.random.default_rng(sum(map(ord, name)))
    words = rng.integers(0, 50, size=(n, 10))
    fields: dict[str, Any] = {
        "prompts": [f"tell {i}" for i in range(n)],
        "categories": ["story" if i % 3 else "letter" for i in range(n)],
        "responses": [" ".join(f"w{w}" for w in row) for row in words],
        "token_ids": [[int(w) for w in row] for row in words],
        "finished": [True] * n,
        "reward": list(rng.normal(size=n) + shift),
        "gold": list(rng.normal(size=n) + shift),
        "kl": list(rng.normal(2, 0.5, size=n)),
    }
    return SystemResponses(name=name, decoding=decoding, **(fields | changes))
