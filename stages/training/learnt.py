"""Whether a training learnt something: held-out rows before and after it, compared in pairs, and said in a sentence.

Pure numpy: it knows no model, trainer or file. Rows of one prompt go together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.common.intervals import MINIMUM, by_cluster, checked, ratio_interval

Values = NDArray[np.float64]
"""(rows, 4) of held-out rows: loss, its weight (tokens, or 1 a ranking), right ones, and of how many."""
LOSS, WEIGHT, RIGHT, OF = range(4)


def loss_of(values: Values) -> float:
    """Loss over all rows: the mean over tokens or rankings, not a mean of means."""
    return float(values[:, LOSS].sum() / max(values[:, WEIGHT].sum(), 1.0))


def accuracy_of(values: Values) -> float | None:
    """Share of the pairs that are right; None where nothing is counted."""
    return float(values[:, RIGHT].sum() / values[:, OF].sum()) if values[:, OF].sum() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What training changed on the same held-out rows.

    Attributes:
        loss: after minus before.
        ci95: of that difference; None where fewer than 20 prompts are too few for an interval, or a loss is not finite.
        accuracy_ci95: of the accuracy after training; None likewise, and where nothing is counted.
        prompts: that differ.
    """

    loss: float
    ci95: tuple[float, float] | None
    accuracy_ci95: tuple[float, float] | None
    prompts: int

    @property
    def learnt(self) -> bool | None:
        """True: the loss fell or, where pairs are counted, more than half are right, beyond doubt; None: too few rows.

        The loss of pairs shows nothing by itself: it falls as well where scores merely shrink.
        """
        if self.ci95 is None:
            return None if math.isfinite(self.loss) else False
        if self.accuracy_ci95 is None:
            return self.ci95[1] < 0
        return self.accuracy_ci95[0] > 0.5

    @property
    def within_chance(self) -> bool:
        """Whether nothing is shown, though the loss fell and not most pairs are wrong: more rows might show it."""
        few = self.accuracy_ci95 is not None and sum(self.accuracy_ci95) <= 1
        return self.learnt is False and self.ci95 is not None and self.loss < 0 and not few

    @property
    def rose(self) -> bool:
        """Whether the loss is higher beyond doubt, or no number any more."""
        return not math.isfinite(self.loss) or (self.ci95 is not None and self.ci95[0] > 0)


def change(before: Values, after: Values, prompts: Sequence[Hashable]) -> Change:
    """Compare the same rows before and after a training.

    Args:
        before, after: (rows, 4) each, in the same order.
        prompts: of each row; rows of one prompt are one observation.
    """
    difference = loss_of(after) - loss_of(before)
    count = len(set(prompts))
    if count < MINIMUM or not np.isfinite([*before[:, LOSS], *after[:, LOSS]]).all():
        return Change(loss=difference, ci95=None, accuracy_ci95=None, prompts=count)
    accuracy = _interval(after[:, RIGHT], after[:, OF], prompts) if after[:, OF].sum() else None
    return Change(
        loss=difference,
        ci95=_interval(after[:, LOSS] - before[:, LOSS], after[:, WEIGHT], prompts),
        accuracy_ci95=accuracy,
        prompts=count,
    )


def _interval(top: Values, bottom: Values, prompts: Sequence[Hashable]) -> tuple[float, float]:
    """Of sum(top) / sum(bottom), whole prompts being resampled."""
    top, labels = checked(top, prompts)
    low, high, _ = ratio_interval(by_cluster(top, labels)[0], by_cluster(bottom, labels)[0])
    return low, high


def sentence(
    found: Change,
    before: Values,
    after: Values,
    *,
    step: int,
    steps: int,
    lowest: tuple[int, float],
    key: str,
    rate: float,
    unit: str = "",
    rows: str = "prompts",
    amount: str = "epochs",
) -> str:
    """What is said at the end of a training, with advice where nothing was learnt.

    Args:
        found: the comparison of ``before`` and ``after``.
        step: that of the weights that were kept, of ``steps``.
        lowest: step and loss of the best evaluation.
        key: of the settings, ``sft`` or ``reward``.
        rate: the learning rate.
        unit: of the loss, where it is to be said.
        rows: what the comparison counts.
        amount: the setting that trains more.
    """
    kept = f"after {steps} step{'s' if steps != 1 else ''}" if step == steps else f"at step {step} of {steps}"
    words = f"held-out loss {loss_of(before):.4g}{unit} before, {loss_of(after):.4g} {kept}"
    if (right := accuracy_of(after)) is not None:
        words += f", {right:.1%} of the pairs right"
    if found.learnt is None:
        return f"{words}: {found.prompts} held-out {rows} are too few to tell; it takes {MINIMUM} (data.held_out)"
    if found.learnt:
        low, high = found.ci95 or (0.0, 0.0)
        return f"{words} (a difference of {found.loss:+.2g}, 95 % [{low:+.2g}, {high:+.2g}])"
    higher = found.rose or loss_of(after) > loss_of(before)
    if higher and lowest[1] < loss_of(before) and lowest[0] != step:
        what = "trained for too long" if found.rose else "nothing was learnt that is left at the end"
        return (
            f"{words}: {what}; it was {lowest[1]:.4g} at step {lowest[0]}: try {key}.keep=best, or a "
            f"{key}.learning_rate below {rate:.1e}"
        )
    if found.within_chance:
        low, high = found.ci95 or (0.0, 0.0)
        if high < 0 and found.accuracy_ci95 is not None:
            of_pairs = "[{:.1%}, {:.1%}]".format(*found.accuracy_ci95)
            return (
                f"{words} (95 % {of_pairs}): within chance for {found.prompts} {rows}, since a coin has half of them "
                f"right; more held-out rows would tell, or try {_advice(found, key, rate, amount)}"
            )
        return (
            f"{words}: within chance for {found.prompts} {rows} (a difference of {found.loss:+.2g}, 95 % [{low:+.2g}, "
            f"{high:+.2g}]); more held-out rows would tell, or try {_advice(found, key, rate, amount)}"
        )
    return f"{words}: nothing was learnt; try {_advice(found, key, rate, amount)}"


def _advice(found: Change, key: str, rate: float, amount: str) -> str:
    if found.rose:
        return f"{key}.learning_rate={rate / 5:.1e} (a loss that rises is mostly that of steps that are too large)"
    if rate == 0:
        return f"{key}.learning_rate above 0"
    return f"{key}.learning_rate={rate * 5:.1e}, or more {key}.{amount}"
