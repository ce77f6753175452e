"""How often held-out rows are evaluated in SFT and reward training, and how many of them. Light: planning reads it."""

from __future__ import annotations

import math

from stages.settings import RewardConfig, SFTConfig

POINTS = 10  # evaluations of a training, where the recipe does not say how many steps lie between them
MIN_ROWS, MAX_ROWS = 32, 512  # rows of an evaluation, where the recipe does not say
SHARE = 0.1  # of the time of training, about
STEP = 3.0  # times the work of an evaluated row in a row that is trained on: forward, and backward through two products


def every_steps(config: SFTConfig | RewardConfig, steps: int) -> int:
    """Steps between evaluations of a training of so many."""
    return config.held_out_every or max(1, math.ceil(steps / POINTS))


def evaluated(config: SFTConfig | RewardConfig, held_out: int, trained: int) -> int:
    """Rows of an evaluation: the recipe's, or as many as take about a tenth of the time of training.

    Args:
        config: of the stage.
        held_out: rows that there are.
        trained: rows that one model is trained on in an epoch.
    """
    if config.held_out_every == 0:
        return 0
    if config.held_out_rows is not None:
        return min(held_out, config.held_out_rows)
    in_proportion = SHARE * STEP * trained * config.epochs / (POINTS + 1)
    return min(held_out, max(MIN_ROWS, min(MAX_ROWS, round(in_proportion))))


def evaluations(config: SFTConfig | RewardConfig, steps: int) -> int:
    """Evaluations of a training of so many steps, the one before it and the one at its end included."""
    return 1 + math.ceil(steps / every_steps(config, steps)) if config.held_out_every != 0 else 0
