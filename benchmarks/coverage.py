"""Coverage of every interval, and how often a system is called better than itself, by simulation.

python benchmarks/coverage.py [--write docs/statistics_coverage.md] [--simulations 4000]; a few minutes. The same
functions with fewer simulations run in tests/evaluation/test_coverage.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.intervals import MINIMUM, Interval, mean_interval, proportion_interval  # noqa: E402
from data.statistics import holm, paired_comparison, paired_difference, verdict  # noqa: E402
from evaluation.length_control import LENGTH_MINIMUM, length_controlled_win_rate  # noqa: E402

RESAMPLES = 2_000
Rng = np.random.Generator
World = Callable[[int, Rng], tuple[Interval, float]]


def _mean(draw: Callable[[int, Rng], np.ndarray], truth: float) -> World:
    return lambda n, rng: (mean_interval(draw(n, rng), resamples=RESAMPLES), truth)


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


def _wins_clustered(n: int, rng: Rng) -> tuple[Interval, float]:
    q = rng.beta(3, 2, size=n)
    x = (rng.random((n, 4)) < q[:, None]) * 1.0
    return proportion_interval(x.ravel(), np.repeat(np.arange(n), 4)), 0.6


def _by_length(truth: float, effect: float, longer: float) -> World:
    """Logit of a win at equal length, what length adds to it, and how much longer the system is."""

    def world(n: int, rng: Rng) -> tuple[Interval, float]:
        difference = rng.normal(longer, 1, size=n)
        slope = np.tanh(difference / np.sqrt(1 + longer**2))
        y = rng.random(n) < 1 / (1 + np.exp(-(truth + effect * slope)))
        return length_controlled_win_rate(y * 1.0, difference), float(1 / (1 + np.exp(-truth)))

    return world


WORLDS: dict[str, World] = {
    "mean, normal": _mean(lambda n, r: r.normal(size=n), 0.0),
    "mean, skewed (gamma 2)": _mean(lambda n, r: r.gamma(2, size=n), 2.0),
    "mean, very skewed (exponential)": _mean(lambda n, r: r.exponential(size=n), 1.0),
    "mean, heavy tails (t, 3 degrees)": _mean(lambda n, r: r.standard_t(3, size=n), 0.0),
    "mean, points 0 1 2": _mean(lambda n, r: r.choice([0.0, 1, 2], size=n, p=[0.2, 0.3, 0.5]), 1.3),
    "mean, 4 samples a prompt": _clustered,
    "mean, 1 to 6 samples a prompt": _unequal,
    "paired difference": _paired,
    "ratio": _ratio,
    "win rate 0.5, no ties": _wins(0.5, 0.0),
    "win rate 0.5, 40 % ties": _wins(0.3, 0.4),
    "win rate 0.75, 30 % ties": _wins(0.6, 0.3),
    "win rate 0.8, no ties": _wins(0.8, 0.0),
    "win rate 0.6, 4 samples a prompt": _wins_clustered,
    "length-controlled win rate": _by_length(0.4, 0.8, 0.4),
    "length-controlled, length means nothing": _by_length(0.0, 0.0, 0.0),
    "length-controlled, length means much": _by_length(1.0, 1.5, 0.7),
}
SMALLEST = {name: LENGTH_MINIMUM if name.startswith("length-controlled") else MINIMUM for name in WORLDS}


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


def false_calls(n: int, simulations: int, per_prompt: int = 1, ties: bool = False, systems: int = 1) -> float:
    """How often a system is called better or worse than itself (any of ``systems`` copies, corrected by Holm)."""
    rng, calls = np.random.default_rng(1), 0
    labels = np.repeat(np.arange(n), per_prompt)
    for _ in range(simulations):
        hard = rng.normal(size=n)[labels]
        made = [hard + rng.normal(size=len(labels)) for _ in range(systems + 1)]
        made = [np.round(m) for m in made] if ties else made
        found = [paired_comparison(m, made[0], clusters=labels, resamples=1_000) for m in made[1:]]
        adjusted = holm([c.p_value for c in found])
        calls += any(verdict(c, p_value=p).word != "not shown" for c, p in zip(found, adjusted, strict=True))
    return calls / simulations


SELVES = {
    "one sample a prompt": {},
    "with ties": {"ties": True},
    "4 samples a prompt": {"per_prompt": 4},
    "4 samples a prompt, with ties": {"per_prompt": 4, "ties": True},
    "best of 5 copies": {"systems": 5},
}


def tables(simulations: int) -> str:
    sizes = (20, 50, 200, 1000)
    rows = [f"| coverage of 95 % intervals | {' | '.join(f'n = {n}' for n in sizes)} |", "|---" * 5 + "|"]
    for name, world in WORLDS.items():
        cells = ("too few" if n < SMALLEST[name] else f"{coverage(world, n, simulations):.3f}" for n in sizes)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows += ["", f"| called better or worse than itself | {' | '.join(f'n = {n}' for n in sizes)} |", "|---" * 5 + "|"]
    for name, how in SELVES.items():
        cells = (f"{false_calls(n, min(simulations, 1000), **how):.3f}" for n in sizes)  # type: ignore[arg-type]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--write", type=Path, help="a file in which the tables replace what is behind the mark")
    given = parser.parse_args()
    text = tables(given.simulations)
    print(text)
    if given.write:
        mark = "<!-- tables: python benchmarks/coverage.py --write docs/statistics.md -->\n"
        head = given.write.read_text(encoding="utf-8").partition(mark)[0]
        said = f"\n{given.simulations:,} simulations a cell.\n\n"
        given.write.write_text(head + mark + said + text, encoding="utf-8")
