"""Passes, batches and the longest response by the data, where the recipe gives none: the laws. Pure numbers.

- *Passes*: as many as make ``STEPS`` optimizer steps, at most ``PASSES``: up to four passes over the same data are
  nearly as good as new data, and more are worth little (Muennighoff et al. 2023, "Scaling Data-Constrained Language
  Models"). So large sets are seen once, as InstructGPT, Llama 2 and TRL see rankings.
- *Batch*: the largest of ``BATCHES`` with which these passes make that many steps. None is larger, for adapters lose
  by large batches (Schulman et al. 2025, "LoRA Without Regret").
- *Longest response*: within which ``WHOLE`` of the demonstrations' responses are whole, in steps of ``GRAIN`` tokens.
  A response that is cut can neither show what it is ranked for nor where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

STEPS, PASSES, BATCHES = 250, 4, (16, 8)
WHOLE, GRAIN, LONGEST = 0.95, 16, 512
BYTES = 4
"""UTF-8 bytes a token, where the tokenizer may not be on this machine: large vocabularies have about that."""


def batch_for(rows: int, passes: float | None = None) -> int:
    """Rows an optimizer step; ``passes`` where the recipe gives them."""
    limit = PASSES if passes is None else passes
    return next((batch for batch in BATCHES if steps_of(rows, batch) * limit >= STEPS), BATCHES[-1])


def passes_for(rows: int, batch: int) -> int:
    """Passes over the rows, 1 to ``PASSES``."""
    return min(PASSES, max(1, math.ceil(STEPS / steps_of(rows, batch))))


def steps_of(rows: int, batch: int) -> int:
    """Optimizer steps of one pass."""
    return max(1, math.ceil(rows / batch))


def longest_response(lengths: Sequence[int], room: int | None = None) -> int:
    """Tokens within which ``WHOLE`` of the responses are whole, ``GRAIN`` at least and ``LONGEST`` at most.

    Args:
        lengths: of the responses, stop tokens included; at least one.
        room: what the base's positions leave for a response; None: not known.
    """
    found = math.ceil(quantile(lengths) / GRAIN) * GRAIN
    return max(GRAIN, min(found, LONGEST, LONGEST if room is None else room))


def room_for_response(positions: int, prompts: Sequence[int]) -> int:
    """Tokens that a base's positions leave for a response: beside ``WHOLE`` of the prompts, and half of them at least.

    PPO leaves out the prompts that are too long then: better than responses of a few tokens to all of them.

    Args:
        positions: of the base.
        prompts: their lengths in tokens, perhaps none.
    """
    return max(positions - (quantile(prompts) if prompts else 0), positions // 2)


def quantile(lengths: Sequence[int]) -> int:
    """The smallest length that ``WHOLE`` of them do not exceed."""
    return sorted(lengths)[max(0, math.ceil(len(lengths) * WHOLE) - 1)]


def tokens_of(text: str) -> int:
    """About how many tokens a text has, its stop token included."""
    return math.ceil(len(text.encode("utf-8")) / BYTES) + 1
