"""Well-known bad signs of a PPO run, in plain language, each told once with what to do about it.

Pure: numbers of each update go in, new warnings come out. It knows nothing of models, files or terminals.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scipy import stats

PATIENCE = 3  # updates in a row before a sign is believed
LONG = 20  # the same for the critic, which needs time to learn
NEGATIVE_KL = -0.1  # nats an answer; a mean of samples may dip a little below 0 by chance
RUNAWAY_KL = 25.0  # nats an answer: far outside what a reward model was trained on
COLLAPSED_ENTROPY = 0.2  # share of the first update's
FLAT_SCORES = 0.02  # share of the first update's standard deviation
TRUNCATED = 0.9  # share of answers
LONGER = 1.5  # times the first updates' length


@dataclass(frozen=True, slots=True)
class Warned:
    """One warning and the update that it came after."""

    step: int
    text: str


class Watch:
    """Looks at every update's metrics; ``record`` returns what is new."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, float]] = []  # the newest, as many as a sign may need
        self.first: dict[str, float] = {}  # each metric's first value
        self.first_lengths: list[float] = []
        self.seen = 0
        self.given: list[Warned] = []
        self._given: set[str] = set()
        self._signs: tuple[tuple[str, Callable[[], bool], str], ...] = (
            (
                "negative KL",
                self._negative_kl,
                "the KL to the reference is negative: answers are not drawn from the distribution whose "
                "log-probabilities are used. With an engine of your own, check its temperature, top-k and top-p.",
            ),
            (
                "runaway KL",
                self._runaway,
                f"the KL to the reference is above {RUNAWAY_KL:g} nats an answer and growing: the policy leaves the "
                "region that the reward model knows. Raise ppo.kl_coef (or set ppo.kl: adaptive) or lower "
                "ppo.learning_rate.",
            ),
            (
                "entropy collapse",
                lambda: self._lasts(
                    "objective/entropy", lambda x: x < COLLAPSED_ENTROPY * self.first.get("objective/entropy", 0.0)
                ),
                f"the policy's entropy is below {COLLAPSED_ENTROPY:.0%} of where it started: answers become all alike. "
                "Raise ppo.kl_coef or ppo.entropy_coef, or lower ppo.learning_rate; read the samples.",
            ),
            (
                "critic",
                lambda: self._lasts("ppo/value/explained_variance", lambda x: x < 0.0, LONG),
                f"the critic has explained nothing for {LONG} updates (explained variance below 0): advantages are "
                "noise. Raise ppo.value_learning_rate, widen ppo.value_clip (or null), or set ppo.critic_warmup.",
            ),
            (
                "flat scores",
                self._flat,
                "scores of different answers hardly differ, so there is nothing to learn from. Check the reward "
                "(a constant function? a score_clip that is too narrow?) and that answers differ.",
            ),
            (
                "truncation",
                lambda: self._lasts("rollout/truncated_fraction", lambda x: x > TRUNCATED),
                "nearly all answers reach ppo.max_new_tokens without a stop token. Raise it, check `stop`, or check "
                "that the demonstrations end their answers.",
            ),
            (
                "length",
                self._creeping,
                f"answers are {LONGER:g} times as long as at first: rewards may be paid for length. Compare scores at "
                "equal length in the report, and see whether the longer answer wins in your rankings.",
            ),
            (
                "skipped steps",
                lambda: self.rows[-1].get("ppo/skipped_steps", 0.0) > 0,
                "an optimizer step was skipped because a gradient was not finite. Look for infinite or huge rewards, "
                "or lower ppo.learning_rate.",
            ),
        )

    def record(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Take one update's metrics; return the warnings that are new."""
        self.seen += 1
        self.rows = [*self.rows, metrics][-max(LONG, PATIENCE) :]
        self.first = {**metrics, **self.first}
        if self.seen <= PATIENCE and "rollout/length" in metrics:
            self.first_lengths.append(metrics["rollout/length"])
        new = []
        for name, shows, text in self._signs:
            if name not in self._given and shows():
                self._given.add(name)
                self.given.append(Warned(step, text))
                new.append(text)
        return new

    def _last(self, name: str, count: int) -> list[float]:
        """The last ``count`` values, or nothing while there are fewer."""
        values = [row[name] for row in self.rows[-count:] if name in row]
        return values if len(values) == count else []

    def _lasts(self, name: str, bad: Callable[[float], bool], count: int = PATIENCE) -> bool:
        values = self._last(name, count)
        return bool(values) and all(map(bad, values))

    def _negative_kl(self) -> bool:
        """Below 0 by more than the updates' own scatter: the upper end of a 95 % t interval over those kept."""
        kept = [row["objective/kl"] for row in self.rows if "objective/kl" in row]
        if not self._lasts("objective/kl", lambda x: x < NEGATIVE_KL):
            return False
        reach = float(stats.t.ppf(0.975, len(kept) - 1)) * statistics.stdev(kept) / len(kept) ** 0.5
        return statistics.fmean(kept) + reach < 0

    def _runaway(self) -> bool:
        values = self._last("objective/kl", PATIENCE)
        return bool(values) and min(values) > RUNAWAY_KL and values[-1] > values[0]

    def _flat(self) -> bool:
        start = self.first.get("objective/scores_std", 0.0)
        return self._lasts("objective/scores_std", lambda x: x < max(FLAT_SCORES * start, 1e-6))

    def _creeping(self) -> bool:
        lengths, firsts = self._last("rollout/length", PATIENCE), self.first_lengths
        if self.seen < 4 * PATIENCE or not lengths or len(firsts) < PATIENCE:
            return False
        start = sum(firsts) / PATIENCE
        return min(lengths) > LONGER * start
