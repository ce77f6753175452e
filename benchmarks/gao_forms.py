"""Gain against d = sqrt(KL) as Gao et al. 2023 (arXiv 2210.10760) put it, and what is read off the curves. No models.

Best of n: d (a - b d). Reinforcement learning: d (a - b log d). Both are linear in a and b, and 0 at d = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import linalg, special, stats

FORMS = {"best of n": lambda d: -(d**2), "PPO": lambda d: -d * np.log(d)}  # what b is multiplied by


def fit(d: Any, gain: Any, form: str) -> tuple[float, float, float]:
    """``(a, b, R^2)`` by least squares over points with d > 0; R^2 is against the mean of the gains.

    Not numbers where there are fewer than three points.
    """
    d, gain = np.asarray(d, dtype=float), np.asarray(gain, dtype=float)
    d, gain = d[d > 0], gain[d > 0]
    if len(d) < 3:
        return float("nan"), float("nan"), float("nan")
    table = np.stack([d, FORMS[form](d)], axis=1)
    (a, b), *_ = linalg.lstsq(table, gain)
    rest = gain - table @ [a, b]
    return float(a), float(b), float(1 - (rest**2).sum() / np.clip(((gain - gain.mean()) ** 2).sum(), 1e-12, None))


def curve(d: Any, a: float, b: float, form: str) -> np.ndarray:
    """The fitted gain at d > 0."""
    d = np.asarray(d, dtype=float)
    return a * d + b * FORMS[form](d)


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1)/n nats (Stiennon et al. 2020): exact where no two answers have the same score."""
    return float(np.log(n) - (n - 1) / n)


def best_of_n(proxy: Any, value: Any, n: int) -> float:
    """Mean ``value`` (P, N) of the answer with the highest ``proxy`` (P, N) among n of the N: over all choices of n.

    Unbiased (Nakano et al. 2021, appendix I): the i-th of N by proxy is the best of C(i - 1, n - 1) choices of C(N, n).
    """
    proxy, value = np.asarray(proxy, dtype=float), np.asarray(value, dtype=float)
    total = proxy.shape[1]
    ordered = np.take_along_axis(value, np.argsort(proxy, axis=1, kind="stable"), axis=1)
    weights = special.comb(np.arange(total), n - 1) / special.comb(total, n)
    return float((ordered @ weights).mean())


def interval(values: Any) -> tuple[float, float]:
    """Mean, and half of Student's 95 % interval (nan for one value)."""
    x = np.asarray(values, dtype=float)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else float("nan")
    return float(x.mean()), float(half)


def interval_text(values: Any, sign: bool = False, digits: int = 2) -> str:
    mean, half = interval(values)
    return f"{mean:{'+' if sign else ''}.{digits}f} ± {half:.{digits}f}"


# -- rows of the study -------------------------------------------------------------------------------------------------

NAMES = {"single": "one reward model", "ensemble": "ensemble of three", "kl": "KL control"}


def gains(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Of one run, by look: ``d`` = sqrt(KL), and the gains over the first look."""
    evaluations = row["looks"]
    out = {"d": np.sqrt([max(0.0, evaluation["kl"]) for evaluation in evaluations])}
    for name in ("gold", "proxy", "watcher"):
        values = np.array([evaluation[name] for evaluation in evaluations])
        out[name] = values - values[0]
    return out


def golds(row: Mapping[str, Any]) -> dict[str, float]:
    """Gold at the first and the last look, at the one that the watcher chose, and the highest there was."""
    by_update = {evaluation["update"]: evaluation["gold"] for evaluation in row["looks"]}
    values = list(by_update.values())
    return {"start": values[0], "end": values[-1], "chosen": by_update[row["chosen"]], "best": max(values)}


def by_arm(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of each arm in the order of their seeds, of those seeds that have all arms."""
    arms = ("best_of_n", *NAMES)
    known = {(r["arm"], r["seed"]): r for r in rows}
    whole = [s for s in sorted({s for _, s in known}) if all((a, s) in known for a in arms)]
    return {a: [known[a, s] for s in whole] for a in arms}


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each arm reached, what each remedy saved (paired over seeds), and the fitted forms; Markdown."""
    arms = by_arm(rows)
    found = {a: [golds(r) for r in arms[a]] for a in NAMES}

    def of(arm: str, name: str) -> np.ndarray:
        return np.array([g[name] for g in found[arm]])

    seeds = [r["seed"] for r in arms["single"]]
    out = [f"Means over seeds {', '.join(map(str, seeds))} with Student's 95 % intervals.", ""]
    out += [
        "| PPO paid by | KL at the end | proxy gained | gold: SFT | best on the way | **the end** | watcher's choice |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, name in NAMES.items():
        kl = interval_text([r["looks"][-1]["kl"] for r in arms[arm]], digits=1)
        proxy = interval_text([gains(r)["proxy"][-1] for r in arms[arm]], sign=True)
        cells = " | ".join(interval_text(of(arm, n)) for n in ("start", "best"))
        updates = ", ".join(str(r["chosen"]) for r in arms[arm])
        chosen = f"{interval_text(of(arm, 'chosen'))} (updates {updates})"
        out.append(f"| {name} | {kl} | {proxy} | {cells} | **{interval_text(of(arm, 'end'))}** | {chosen} |")
    lost = of("single", "end")
    out += ["", "Gold saved, against one reward model to the end (paired differences; the last column by seed):", ""]
    out += ["| remedy | gold saved | seeds |", "|---|---|---|"]
    remedies = {
        "ensemble": of("ensemble", "end"),
        "KL control": of("kl", "end"),
        "checkpoint choice by the watcher": of("single", "chosen"),
        "ensemble and checkpoint choice": of("ensemble", "chosen"),
        "KL control and checkpoint choice": of("kl", "chosen"),
        "(the best there was, which nobody knows)": of("single", "best"),
    }
    for name, gold in remedies.items():
        each = ", ".join(f"{x:+.2f}" for x in gold - lost)
        out.append(f"| {name} | {interval_text(gold - lost, sign=True)} | {each} |")
    out += ["", "Fitted forms, gain in gold against d = sqrt(KL); one fit a seed:", ""]
    out += ["| | form | a | b | R² (least) |", "|---|---|---|---|---|"]
    for name, form, text, points in fits(arms):
        a, b, r2 = (np.array(x) for x in zip(*(fit(*p, form) for p in points), strict=True))
        out.append(f"| {name} | {text} | {interval_text(a)} | {interval_text(b)} | {r2.mean():.2f} ({r2.min():.2f}) |")
    return "\n".join(out) + "\n"


def fits(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, str, str, list[tuple[Any, Any]]]]:
    """Name, form, its formula, and (d, gain in gold) by seed, of everything that a form is fitted to."""
    of_n = [(gains(r)["d"], gains(r)["gold"]) for r in arms["best_of_n"]]
    out: list[tuple[str, str, str, list[tuple[Any, Any]]]] = [("best of n", "best of n", "d (a - b d)", of_n)]
    for arm, name in NAMES.items():
        points = [(gains(r)["d"], gains(r)["gold"]) for r in arms[arm]]
        out.append((f"PPO, {name}", "PPO", "d (a - b log d)", points))
    return out
