"""Coverage of every interval, and how often a system is called better than itself, by simulation.

python benchmarks/coverage.py [--write docs/measurements/statistics.md]; about a quarter of an hour. The same functions
with fewer simulations run in tests/evaluation/test_coverage.py. Every cell's seed is the hash of its name:
none was chosen.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.integrate import simpson

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.common.intervals import MINIMUM, Bounds, Interval, mean_interval, proportion_interval  # noqa: E402
from data.common.paired_tests import (  # noqa: E402
    holm,
    mean_comparison,
    mean_verdict,
    paired_comparison,
    paired_difference,
    verdict,
)
from evaluation.metrics.length_control import LENGTH_MINIMUM, length_controlled_win_rate  # noqa: E402

RESAMPLES = 1_000
SIZES = {20: 2_000, 50: 1_000, 200: 500, 1000: 300}  # prompts -> simulations of a coverage
SELF = 1_000  # simulations of a system against itself
Rng = np.random.Generator
World = Callable[[int, Rng], tuple[Interval, float]]


def _mean(sampler: Callable[[int, Rng], np.ndarray], truth: float) -> World:
    return lambda n, rng: (mean_interval(sampler(n, rng), resamples=RESAMPLES), truth)


def _bounded(sampler: Callable[[int, Rng], np.ndarray], truth: float, bounds: Bounds = (0.0, 1.0)) -> World:
    return lambda n, rng: (mean_interval(sampler(n, rng), resamples=RESAMPLES, bounds=bounds), truth)


def _rare(share: float) -> Callable[[int, Rng], np.ndarray]:
    """Values that are 0 save for a share of them, as ROUGE-2 of a weak system is."""
    return lambda n, rng: (rng.random(n) < share) * rng.uniform(0.2, 0.6, size=n)


def _rare_difference(n: int, rng: Rng) -> tuple[Interval, float]:
    """Two systems that give the same answer to nine of ten prompts."""
    b = rng.beta(2, 5, size=n)
    a = np.where(rng.random(n) < 0.1, rng.beta(5, 2, size=n), b)
    return paired_difference(a, b, resamples=RESAMPLES, bounds=(0.0, 1.0)), 0.1 * (5 / 7 - 2 / 7)


def _clustered(n: int, rng: Rng) -> tuple[Interval, float]:
    x = rng.gamma(2, size=n)[:, None] + rng.normal(size=(n, 4))
    return mean_interval(x.ravel(), np.repeat(np.arange(n), 4), resamples=RESAMPLES), 2.0


def _unequal(n: int, rng: Rng) -> tuple[Interval, float]:
    labels = np.repeat(np.arange(n), rng.integers(1, 7, size=n))
    x = rng.normal(size=n)[labels] + rng.normal(size=len(labels))
    return mean_interval(x, labels, resamples=RESAMPLES), 0.0


def _paired(n: int, rng: Rng) -> tuple[Interval, float]:
    prompt = rng.gamma(2, size=n)
    return paired_difference(prompt + rng.exponential(size=n), prompt + rng.normal(size=n), resamples=RESAMPLES), 1.0


def _ratio(n: int, rng: Rng) -> tuple[Interval, float]:
    b = rng.uniform(10, 20, size=n)
    return paired_difference(b * rng.gamma(9, 1 / 6, size=n), b, kind="ratio", resamples=RESAMPLES), 1.5


def _wins(win: float, tie: float) -> World:
    p = [win, tie, 1 - win - tie]
    return lambda n, rng: (proportion_interval(rng.choice([1, 0.5, 0], size=n, p=p)), win + tie / 2)


def _wins_clustered(a: float, b: float, samples: int) -> World:
    """Each prompt has a win rate of its own, Beta(a, b)."""

    def world(n: int, rng: Rng) -> tuple[Interval, float]:
        q = rng.beta(a, b, size=n)
        x = (rng.random((n, samples)) < q[:, None]) * 1.0
        return proportion_interval(x.ravel(), np.repeat(np.arange(n), samples)), a / (a + b)

    return world


def _ties_clustered(n: int, rng: Rng) -> tuple[Interval, float]:
    """Four samples of a prompt, each with probability 1/2 the prompt's own outcome."""
    win, p = [1, 0.5, 0], [0.6, 0.3, 0.1]
    own, others = rng.choice(win, size=(n, 1), p=p), rng.choice(win, size=(n, 4), p=p)
    x = np.where(rng.random((n, 4)) < 0.5, own, others)
    return proportion_interval(x.ravel(), np.repeat(np.arange(n), 4)), 0.75


def _outcomes(n: int, rng: Rng) -> tuple[Interval, float]:
    """Exact match of two systems on the same prompts."""
    hard = rng.random(n)
    a, b = (hard + rng.normal(0, 0.2, size=n) > limit for limit in (0.4, 0.6))
    truth = OUTCOMES[0.4] - OUTCOMES[0.6]
    return paired_difference(a * 1.0, b * 1.0), truth


def _above(limit: float) -> float:
    """P(U + N > limit) of a uniform U and a normal N of spread 0.2, by Simpson's rule."""
    u = np.linspace(0, 1, 2001)
    return float(simpson(stats.norm.sf((limit - u) / 0.2), x=u))


OUTCOMES = {limit: _above(limit) for limit in (0.4, 0.6)}


def _by_length(truth: float, effect: float, longer: float) -> World:
    """Logit of a win at equal length, what length adds to it, and how much longer the system is."""

    def world(n: int, rng: Rng) -> tuple[Interval, float]:
        difference = rng.normal(longer, 1, size=n)
        effect_of_length = np.tanh(difference / np.sqrt(1 + longer**2))
        y = rng.random(n) < 1 / (1 + np.exp(-(truth + effect * effect_of_length)))
        return length_controlled_win_rate(y * 1.0, difference), float(1 / (1 + np.exp(-truth)))

    return world


WORLDS: dict[str, World] = {
    "mean, normal": _mean(lambda n, r: r.normal(size=n), 0.0),
    "mean, skewed (gamma 2)": _mean(lambda n, r: r.gamma(2, size=n), 2.0),
    "mean, very skewed (exponential)": _mean(lambda n, r: r.exponential(size=n), 1.0),
    "mean, heavy tails (t, 3 degrees)": _mean(lambda n, r: r.standard_t(3, size=n), 0.0),
    "mean, log-normal (sigma 1)": _mean(lambda n, r: r.lognormal(size=n), float(np.exp(0.5))),
    "mean, very heavy tail (Pareto 3)": _mean(lambda n, r: r.pareto(3, size=n), 0.5),
    "mean in [0, 1], beta(2, 5)": _bounded(lambda n, r: r.beta(2, 5, size=n), 2 / 7),
    "mean in [0, 1], mostly near 0, beta(0.2, 2)": _bounded(lambda n, r: r.beta(0.2, 2, size=n), 1 / 11),
    "mean in [0, 1], all but 2 % are 0": _bounded(_rare(0.02), 0.008),
    "mean in [0, 1], all but 5 % are 0": _bounded(_rare(0.05), 0.02),
    "mean in [0, 1], all but 20 % are 0": _bounded(_rare(0.2), 0.08),
    "mean in [0, 1], constant": _bounded(lambda n, r: np.full(n, 0.3), 0.3),
    "mean of no known range, all but 5 % are 0": _mean(_rare(0.05), 0.02),
    "mean of no known range, all but 20 % are 0": _mean(_rare(0.2), 0.08),
    "paired difference in [-1, 1], nine of ten are 0": _rare_difference,
    "mean, points 0 1 2": _mean(lambda n, r: r.choice([0.0, 1, 2], size=n, p=[0.2, 0.3, 0.5]), 1.3),
    "mean, 4 samples a prompt": _clustered,
    "mean, 1 to 6 samples a prompt": _unequal,
    "paired difference": _paired,
    "ratio": _ratio,
    "win rate 0.5, no ties": _wins(0.5, 0.0),
    "win rate 0.5, 40 % ties": _wins(0.3, 0.4),
    "win rate 0.75, 30 % ties": _wins(0.6, 0.3),
    "win rate 0.8, no ties": _wins(0.8, 0.0),
    "win rate 0.6, 4 samples a prompt": _wins_clustered(3, 2, 4),
    "win rate 0.6, 8 samples a prompt": _wins_clustered(30, 20, 8),
    "win rate 0.9, 4 samples a prompt": _wins_clustered(9, 1, 4),
    "win rate 0.75, 30 % ties, 4 samples a prompt": _ties_clustered,
    "paired difference of outcomes": _outcomes,
    "length-controlled win rate": _by_length(0.4, 0.8, 0.4),
    "length-controlled, length means nothing": _by_length(0.0, 0.0, 0.0),
    "length-controlled, length means much": _by_length(1.0, 1.5, 0.7),
}
SMALLEST = {name: LENGTH_MINIMUM if name.startswith("length-controlled") else MINIMUM for name in WORLDS}


def seed_of(*cell: object) -> int:
    return zlib.crc32("/".join(map(str, cell)).encode())


def coverage(world: World, n: int, simulations: int, seed: int = 0) -> float:
    """Share of simulated data sets whose 95 % interval holds the truth, of those for which one is given at all."""
    rng, hits, given = np.random.default_rng(seed), 0, 0
    for _ in range(simulations):
        found, truth = world(n, rng)
        if found.low is not None and found.high is not None:
            given += 1
            hits += found.low <= truth <= found.high
    assert given > 0.99 * simulations
    return hits / given


def false_calls(
    n: int, simulations: int, seed: int = 1, per_prompt: int = 1, ties: bool = False, systems: int = 1
) -> tuple[int, int]:
    """How often a system is called better than itself, and how often worse.

    With several ``systems`` it is whether any of so many copies is called so, corrected by Holm.
    """
    rng, better, worse = np.random.default_rng(seed), 0, 0
    labels = np.repeat(np.arange(n), per_prompt)
    for _ in range(simulations):
        hard = rng.normal(size=n)[labels]
        made = [hard + rng.normal(size=len(labels)) for _ in range(systems + 1)]
        made = [np.round(m) for m in made] if ties else made
        found = [paired_comparison(m, made[0], clusters=labels, resamples=1_000) for m in made[1:]]
        adjusted = holm([c.p_value for c in found])
        words = [verdict(c, p_value=p).word for c, p in zip(found, adjusted, strict=True)]
        better, worse = better + ("better" in words), worse + ("worse" in words)
    return better, worse


def false_metric_calls(n: int, simulations: int, seed: int = 1, per_prompt: int = 1) -> tuple[int, int]:
    """The same for a metric's mean: "higher" and "lower"."""
    rng, higher, lower = np.random.default_rng(seed), 0, 0
    labels = np.repeat(np.arange(n), per_prompt)
    for _ in range(simulations):
        hard = rng.gamma(2, size=n)[labels]
        a, b = (hard + rng.exponential(size=len(labels)) for _ in range(2))
        word = mean_verdict(mean_comparison(a, b, clusters=labels, resamples=1_000)).word
        higher, lower = higher + (word == "higher"), lower + (word == "lower")
    return higher, lower


def exact_rate(n: int) -> float:
    """Probability that a system is called better than itself: one sample a prompt, no ties, every number of wins."""
    chances = stats.binom.pmf(np.arange(n + 1), n, 0.5)
    wins = np.arange(n)[None] < np.arange(n + 1)[:, None]
    found = [verdict(paired_comparison(w * 1.0, 1.0 - w)).word == "better" for w in wins]
    return float(chances[found].sum())


def allowed(simulations: int = SELF, level: float = 0.025) -> int:
    """What a count of a rate at the level exceeds once in a thousand times."""
    return int(stats.binom.isf(0.001, simulations, level))


SELVES: dict[str, Callable[..., tuple[int, int]]] = {
    "one sample a prompt": false_calls,
    "with ties": partial(false_calls, ties=True),
    "4 samples a prompt": partial(false_calls, per_prompt=4),
    "4 samples a prompt, with ties": partial(false_calls, per_prompt=4, ties=True),
    "any of 5 copies": partial(false_calls, systems=5),
    "mean of a metric": false_metric_calls,
    "mean of a metric, 4 samples a prompt": partial(false_metric_calls, per_prompt=4),
}


def tables() -> str:
    head = f"{' | '.join(f'n = {n}' for n in SIZES)} |"
    rows = [f"| coverage of 95 % intervals | {head}", "|---" * 5 + "|"]
    for name, world in WORLDS.items():
        cells = (
            "too few" if n < SMALLEST[name] else f"{coverage(world, n, times, seed_of(name, n)):.3f}"
            for n, times in SIZES.items()
        )
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    rows += ["", f"| called better / worse than itself, of {SELF:,} | {head}", "|---" * 5 + "|"]
    for name, count in SELVES.items():
        cells = (" / ".join(map(str, count(n, SELF, seed_of(name, n)))) for n in SIZES)
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    exact = " | ".join(f"{1000 * exact_rate(n):.1f}" for n in SIZES)
    rows.append(f"| one sample a prompt, better, by enumeration | {exact} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="a file in which the tables replace what is behind the mark")
    given = parser.parse_args()
    text = tables()
    if given.write:
        mark = "<!-- tables: python benchmarks/coverage.py --write docs/measurements/statistics.md -->\n"
        head = given.write.read_text(encoding="utf-8").partition(mark)[0]
        said = ", ".join(f"{times:,} at n = {n}" for n, times in SIZES.items())
        given.write.write_text(f"{head}{mark}\nSimulations: {said}.\n\n{text}", encoding="utf-8")
