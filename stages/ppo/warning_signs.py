"""Well-known bad signs of a PPO run, in plain language, each reported once with what to do about it.

Pure: numbers of each update go in, new warnings come out. It knows nothing of models, files or terminals.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scipy import stats

PATIENCE = 3  # updates in a row before a sign is believed
LONG = 20  # the same for the critic, which needs time to learn
NEGATIVE_KL = -0.1  # nats a response; a mean of samples may dip a little below 0 by chance
RUNAWAY_KL = 25.0  # nats a response: far outside what a reward model was trained on
COLLAPSED_ENTROPY = 0.2  # share of the first update's
FLAT_SCORES = 0.02  # share of the first update's standard deviation
TRUNCATED = 0.9  # share of responses
UNREAD = 0.05  # share of responses, or of tokens, that a reward model on another base does not read as they are
LONGER = 1.5  # times the first updates' length
STILL = 10  # updates of the policy after the first, whose steps Adam makes large
SMALL_STEPS = 0.01  # share of tokens whose ratio is clipped; policies that learn have some percent


@dataclass(frozen=True, slots=True)
class Warned:
    """One warning and the update that it came after."""

    step: int
    text: str


@dataclass(slots=True)
class History:
    """The updates so far, as much of them as signs need."""

    rows: list[Mapping[str, float]] = field(default_factory=list)  # the newest
    first: dict[str, float] = field(default_factory=dict)  # each metric's first value
    first_lengths: list[float] = field(default_factory=list)
    updates: int = 0
    critic_warmup: int = 0  # first updates that leave the policy as it is

    def add(self, metrics: Mapping[str, float]) -> None:
        """Note the metrics of an update."""
        self.updates += 1
        self.rows = [*self.rows, metrics][-max(LONG, PATIENCE) :]
        self.first = {**metrics, **self.first}
        if self.updates <= PATIENCE and "rollout/length" in metrics:
            self.first_lengths.append(metrics["rollout/length"])

    def last(self, name: str, count: int = PATIENCE) -> list[float]:
        """The last ``count`` values, or nothing while there are fewer."""
        values = [row[name] for row in self.rows[-count:] if name in row]
        return values if len(values) == count else []

    def lasts(self, name: str, bad: Callable[[float], bool], count: int = PATIENCE) -> bool:
        """Whether the last ``count`` values are there and all bad."""
        values = self.last(name, count)
        return bool(values) and all(map(bad, values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A bad sign: whether the updates so far show it, and what to do about it."""

    name: str
    shows: Callable[[History], bool]
    advice: str


def negative_kl(history: History) -> bool:
    """Below 0 by more than the updates' own scatter: the upper end of a 95 % t interval over those kept."""
    kept = [row["objective/kl"] for row in history.rows if "objective/kl" in row]
    if not history.lasts("objective/kl", lambda x: x < NEGATIVE_KL):
        return False
    reach = float(stats.t.ppf(0.975, len(kept) - 1)) * statistics.stdev(kept) / len(kept) ** 0.5
    return statistics.fmean(kept) + reach < 0


def runaway_kl(history: History) -> bool:
    """The KL to the reference is large and still grows."""
    values = history.last("objective/kl")
    return bool(values) and min(values) > RUNAWAY_KL and values[-1] > values[0]


def entropy_collapse(history: History) -> bool:
    """The entropy has fallen far below that of the first update."""
    start = history.first.get("objective/entropy", 0.0)
    return history.lasts("objective/entropy", lambda x: x < COLLAPSED_ENTROPY * start)


def useless_critic(history: History) -> bool:
    """The value role explains less than a constant would."""
    return history.lasts("ppo/value/explained_variance", lambda x: x < 0.0, LONG)


def flat_scores(history: History) -> bool:
    """The scores of a rollout hardly differ, compared with the first one, and are not better than those."""
    return _alike(history) and not _met(history)


def reward_met(history: History) -> bool:
    """The scores of a rollout hardly differ, for all are better by more than the first one's standard deviation."""
    return _alike(history) and _met(history)


def _alike(history: History) -> bool:
    start = history.first.get("objective/scores_std", 0.0)
    return history.lasts("objective/scores_std", lambda x: x < max(FLAT_SCORES * start, 1e-6))


def _met(history: History) -> bool:
    start, std = (history.first.get(f"objective/{name}", 0.0) for name in ("scores", "scores_std"))
    return std > 0 and history.lasts("objective/scores", lambda x: x > start + std)


def truncation(history: History) -> bool:
    """Most responses are cut at the limit."""
    return history.lasts("rollout/truncated_fraction", lambda x: x > TRUNCATED)


def scored_in_part(history: History) -> bool:
    """A reward model that reads text is given more than its limit takes."""
    return history.lasts("rollout/scored_cut_fraction", lambda x: x > UNREAD)


def scored_unread(history: History) -> bool:
    """A reward model that reads text has no tokens for what it scores."""
    return history.lasts("rollout/scored_unknown_fraction", lambda x: x > UNREAD)


def growing_length(history: History) -> bool:
    """Responses are much longer than in the first updates."""
    lengths, firsts = history.last("rollout/length"), history.first_lengths
    if history.updates < 4 * PATIENCE or not lengths or len(firsts) < PATIENCE:
        return False
    start = sum(firsts) / PATIENCE
    return min(lengths) > LONGER * start


def small_steps(history: History) -> bool:
    """The first updates hardly change the policy, and scores do not rise with a slope that is shown (one-sided 95 %).

    Later updates are no sign: rates that fall make small steps, and a policy that has learnt has no more to gain.
    """
    clipped, scores = history.last("ppo/policy/clipfrac", STILL), history.last("objective/scores", STILL)
    if history.updates != history.critic_warmup + 1 + STILL or not clipped or not scores:
        return False
    if max(clipped) >= SMALL_STEPS:
        return False
    return len(set(scores)) == 1 or stats.linregress(range(STILL), scores, alternative="greater").pvalue > 0.05


def skipped_steps(history: History) -> bool:
    """A step was skipped, since loss or gradient was not finite."""
    return history.rows[-1].get("ppo/skipped_steps", 0.0) > 0


SIGNS = (
    Sign(
        name="negative KL",
        shows=negative_kl,
        advice="the KL to the reference is negative: responses are not sampled from the distribution whose "
        "log-probabilities are used. With an engine of your own, check its temperature, top-k and top-p.",
    ),
    Sign(
        name="runaway KL",
        shows=runaway_kl,
        advice=f"the KL to the reference is above {RUNAWAY_KL:g} nats a response and growing: the policy leaves the "
        "region that the reward model knows. Raise ppo.kl_coef (or set ppo.kl: adaptive) or lower ppo.learning_rate.",
    ),
    Sign(
        name="entropy collapse",
        shows=entropy_collapse,
        advice=f"the policy's entropy is below {COLLAPSED_ENTROPY:.0%} of where it started: responses become alike. "
        "Raise ppo.kl_coef or ppo.entropy_coef, or lower ppo.learning_rate; read the samples.",
    ),
    Sign(
        name="critic",
        shows=useless_critic,
        advice=f"the critic has explained nothing for {LONG} updates (explained variance below 0): advantages are "
        "noise. Raise ppo.value_learning_rate, widen ppo.value_clip (or null), or set ppo.critic_warmup.",
    ),
    Sign(
        name="flat scores",
        shows=flat_scores,
        advice="scores of different responses hardly differ, so there is nothing to learn from. Check the reward "
        "(a constant function? a score_clip that is too narrow?) and that responses differ.",
    ),
    Sign(
        name="reward met",
        shows=reward_met,
        advice="all responses have nearly the same score, far above the first ones': the reward is met, and further "
        "updates learn nothing from it. Read the samples; stop here, or ask for more (harder prompts, a finer reward).",
    ),
    Sign(
        name="truncation",
        shows=truncation,
        advice="nearly all responses reach ppo.max_new_tokens without a stop token. Raise it, check `stop`, or check "
        "that the demonstrations end their responses.",
    ),
    Sign(
        name="scored in part",
        shows=scored_in_part,
        advice=f"more than {UNREAD:.0%} of prompts and responses are longer than reward.max_tokens in the tokens of "
        "the reward model's own base (of an exported one, than its run had it): their scores are those of the part "
        "that is left. Raise reward.max_tokens or lower ppo.max_new_tokens.",
    ),
    Sign(
        name="unread tokens",
        shows=scored_unread,
        advice=f"more than {UNREAD:.0%} of the tokens that the reward model reads stand for text that its tokenizer "
        "does not know: it scores what it cannot see. Take a reward.base (or a classifier) whose tokenizer spells all "
        "text.",
    ),
    Sign(
        name="length",
        shows=growing_length,
        advice=f"responses are {LONGER:g} times as long as at first: length itself may be rewarded. Compare scores at "
        "equal length in the report, and see whether the longer response wins in your rankings.",
    ),
    Sign(
        name="small steps",
        shows=small_steps,
        advice=f"the policy hardly moves: in each of {STILL} updates the clip touched less than {SMALL_STEPS:.0%} of "
        "the tokens, and scores did not rise. Raise ppo.learning_rate, three to ten times.",
    ),
    Sign(
        name="skipped steps",
        shows=skipped_steps,
        advice="an optimizer step was skipped because a gradient was not finite. Check for infinite or huge rewards, "
        "or lower ppo.learning_rate.",
    ),
)


class Watch:
    """Compares every update's metrics with the signs; ``record`` returns what is new."""

    def __init__(self, signs: Sequence[Sign] = SIGNS, critic_warmup: int = 0) -> None:
        self.signs, self.history = signs, History(critic_warmup=critic_warmup)
        self.given: list[Warned] = []
        self._given: set[str] = set()

    def record(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Take one update's metrics; return the warnings that are new."""
        self.history.add(metrics)
        new = []
        for sign in self.signs:
            if sign.name not in self._given and sign.shows(self.history):
                self._given.add(sign.name)
                self.given.append(Warned(step, sign.advice))
                new.append(sign.advice)
        return new
