"""How long the stages of a plan will take, where they are not finished: their efforts times this machine's rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from data.common.number_format import duration
from models.backbone.four_bits import can_quantize
from pipelines.run.fit import CHECKPOINTING, halves, with_settings
from pipelines.run.plan_details import PlanDetails
from pipelines.run.probing import Crowd, Probe
from pipelines.run.speed import can_probe, rates_of
from pipelines.stages.duration import IMPORTS, Effort, How, Passes, Rates, seconds
from pipelines.stages.estimates import Estimator
from pipelines.stages.table import STAGES

ROUNDED = 16  # lengths and rows of what is measured, so that small changes find the cache
LONG, SHORT = 3 * 3600.0, 3600.0
"""Seconds of PPO from which on a shorter first run is named, and about how long that one is to take."""


@dataclass(frozen=True)
class PlanTime:
    """Seconds of stages that are to be run.

    Args:
        details: of the recipe's plan.
        stages: those that are not finished.
    """

    details: PlanDetails
    stages: Sequence[str]

    @cached_property
    def seconds(self) -> dict[str, float]:
        """By stage; a stage whose work or base is not known is left out."""
        shape = self.details.shape
        if shape is None or not can_probe(shape) or not self.efforts:
            return {}
        rates, _ = self.rates
        numbers = self.details.estimator.numbers
        found = {}
        for name, effort in self.efforts.items():
            on = bool(self.details.fit.settled(name).get(CHECKPOINTING, numbers.checkpointing))
            fast = (numbers.fast and not effort.full) or bool(effort.pretraining[0])
            found[name] = seconds(effort, shape, rates, How(fast=fast, checkpointing=on))
        first = next((name for name, effort in self.efforts.items() if effort.trainer), None)
        return found if first is None else found | {first: found[first] + IMPORTS}

    @cached_property
    def efforts(self) -> dict[str, Effort]:
        """What each stage computes, with the settings that it would run with."""
        return {name: made(self._settled(name)) for name in self.stages if (made := STAGES[name].effort) is not None}

    def _settled(self, name: str) -> Estimator:
        estimator, settings = self.details.estimator, self.details.fit.settled(name)
        return estimator.changed(with_settings(self.details.recipe, settings), estimator.numbers)

    @cached_property
    def rates(self) -> tuple[Rates, Crowd]:
        """Measured for the lengths and the rows of these stages; and what stood in the way of measuring."""
        shape = self.details.shape
        assert shape is not None
        recipe, numbers = self.details.recipe, self.details.estimator.numbers
        efforts = list(self.efforts.values())
        sampled = [one for effort in efforts for one in effort.sampled]
        lengths, tokens = sizes([one for effort in efforts for one in effort.passes])
        if sampled and "read" not in lengths:
            lengths["read"] = rounded(max(one.prompt for one in sampled))
            tokens["read"] = rounded(max(one.prompts for one in sampled))
        scratch = None
        if "pretrain" in self.efforts and not isinstance(recipe.base, str):
            scratch = recipe.base.pretrain
            lengths["pretraining"] = rounded(self.efforts["pretrain"].pretraining[1] / scratch.batch)
        return rates_of(
            Probe(
                shape=shape,
                numbers=replace(numbers, nf4=numbers.nf4 and can_quantize()),
                device=self.details.device,
                rank=recipe.adapter.rank,
                lengths=lengths,
                tokens=tokens,
                rows=rounded(max(one.rows for one in sampled)) if sampled else 0,
                behind=rounded(max(one.prompt + one.mean / 2 for one in sampled)) if sampled else 0,
                pretraining=scratch,
            )
        )

    def assumptions(self) -> str:
        """One sentence of what the seconds stand on; empty where there are none."""
        if not self.seconds:
            return ""
        numbers, device = self.details.estimator.numbers, self.details.device
        kind = {2: "bf16", 4: "fp32"}.get(numbers.product, "") + (" from four bits" if numbers.nf4 else "")
        said = [one for effort in self.efforts.values() for one in effort.sampled]
        _, others = self.rates
        kept = f"beside other work ({others.cores:.1f} cores): shorter on a quiet machine" if others.matters else ""
        parts = [
            f"by a short probe of one layer here ({device.type}, products in {kind}), {kept or 'kept for the day'}"
        ]
        if said:
            longest = max(said, key=lambda one: one.calls * one.rows)
            parts.append(f"responses of {longest.mean:.0f} tokens, as long as the demonstrations' where there are any")
        if not numbers.fast or self.details.recipe.adapter.tuning.copies:
            parts.append("Transformers' modules counted as 1.4 times the fast path")
        return f"time: about {duration(sum(self.seconds.values()))} in all; " + "; ".join(parts)

    def shorter_run(self) -> str:
        """Where PPO takes hours: how much of it shows within about one whether a run goes as meant; else empty."""
        whole, ppo = self.seconds.get("ppo", 0.0), self.details.recipe.ppo
        if whole < LONG:
            return ""
        share = SHORT / whole * ppo.updates * ppo.rollouts
        smaller = list(_smaller(ppo.updates, ppo.rollouts, ppo.minibatches))
        updates, rollouts = next((pair for pair in smaller if math.prod(pair) <= share), smaller[-1])
        settings = {"ppo.updates": updates, "ppo.rollouts": rollouts}
        shorter = PlanTime(replace(self.details, recipe=with_settings(self.details.recipe, settings)), ["ppo"])
        return (
            f"ppo takes about {duration(whole)} here; for a first look, --set "
            + " ".join(f"{name}={value}" for name, value in settings.items())
            + f" takes about {duration(shorter.seconds['ppo'])}; a ppo.max_new_tokens below {ppo.max_new_tokens:,} "
            "shortens both"
        )


def _smaller(updates: int, rollouts: int, minibatches: int) -> Iterator[tuple[int, int]]:
    """Fewer updates and responses an update, the largest amount of work first."""
    counts = [n for n in halves(rollouts, 16) if n % minibatches == 0]
    pairs = {(min(updates, n), m) for n in (50, 20, 10) for m in (counts or [rollouts])}
    yield from sorted(pairs, key=lambda pair: (-math.prod(pair), -pair[1]))


def rounded(n: float) -> int:
    """Up to the next multiple of ``ROUNDED``."""
    return max(ROUNDED, -(-int(n) // ROUNDED) * ROUNDED)


def sizes(passes: Sequence[Passes]) -> tuple[dict[str, int], dict[str, int]]:
    """Mean length of rows and tokens of the largest pass, by kind."""
    lengths, tokens = {}, {}
    for kind in {one.kind for one in passes}:
        mine = [one for one in passes if one.kind == kind]
        rows = sum(one.count * one.rows for one in mine)
        lengths[str(kind)] = rounded(sum(one.count * one.tokens for one in mine) / rows)
        tokens[str(kind)] = rounded(max(one.tokens for one in mine))
    return lengths, tokens
