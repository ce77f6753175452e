"""What a step of a base from scratch takes on this machine, by the stage's own passes and optimizers."""

from __future__ import annotations

import math
from typing import Any

from pipelines.run.probing import GUESS, TARGET, WORDS, Probe, seconds_of
from pipelines.stages.duration import Line, line_through
from stages.settings import PretrainConfig


def pretraining_line(config: PretrainConfig, probe: Probe) -> Line:
    """A whole step of a base from scratch, of few and of more tokens; layers beyond the second as the second."""
    m, length = config.model, max(2, min(config.model.context, probe.lengths["pretraining"]))
    limit = TARGET * GUESS.get(probe.device.type, 5e13) / (12 * (4 * m.width**2 + 3 * m.width * m.feed_forward))
    rows = max(4, min(config.batch, math.ceil(2 * limit / length)))
    counts = (max(1, rows // 4), rows)
    one, two = ([_step_seconds(config, probe, layers, n, length) for n in counts] for layers in (1, 2))
    whole = [a + (m.layers - 1) * max(0.0, b - a) for a, b in zip(one, two, strict=True)]
    return line_through(*((n * length, seconds) for n, seconds in zip(counts, whole, strict=True)))


def _step_seconds(config: PretrainConfig, probe: Probe, layers: int, rows: int, length: int) -> float:
    """Of one step by the stage's own passes and optimizers."""
    from stages.pretrain import optimizers_of, untrained
    from stages.training.masked import MaskedTokens
    from stages.training.next_token import NEXT_TOKENS, Objective, backward

    shape, vocabulary = config.model.model_copy(update={"layers": layers}), min(WORDS, config.vocabulary)
    lm: Any = untrained(config.model_copy(update={"model": shape}), vocabulary)
    lm.to(probe.device)
    optimizers = optimizers_of(lm, config)
    objective: Objective = NEXT_TOKENS
    if config.objective == "masked":
        objective = MaskedTokens(seed=0, special=frozenset(), mask_id=0, ordinary=range(vocabulary))
    batch = objective.examples([[i % vocabulary for i in range(length)]] * rows, 0)

    def step() -> None:
        backward(lm, batch, rows * length, rows, objective)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return seconds_of(step, probe.device)
