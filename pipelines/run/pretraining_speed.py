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
    from transformers import LlamaForCausalLM

    from stages.pretrain import model_settings, optimizers_of
    from stages.training.next_token import backward

    shape = config.model.model_copy(update={"layers": layers})
    settings = model_settings(shape, min(WORDS, config.vocabulary))
    lm: Any = LlamaForCausalLM(settings)
    lm.to(probe.device)
    optimizers = optimizers_of(lm, config)
    batch = [[i % settings.vocab_size for i in range(length)]] * rows

    def step() -> None:
        backward(lm, batch, rows * length, rows)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return seconds_of(step, probe.device)
