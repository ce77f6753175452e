"""From the responses of several systems to ``results.json`` and ``samples.jsonl``.

This module knows nothing of models or files: responses and their scores arrive as ``SystemResponses``, plain JSON
values leave. Every comparison is between responses of the same decoding to the same prompts in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from data.common.intervals import UNBOUNDED, Bounds, Interval
from data.common.paired_tests import Comparison, holm, mean_interval, paired_comparison, paired_difference, verdict
from evaluation.adversaries import adversaries, named
from evaluation.answers import SCORES, SystemResponses
from evaluation.metrics.base import Distinct, Truncation
from evaluation.metrics.length_control import length_controlled_win_rate

Judge = Literal["gold", "held_out_reward", "reward"]
MODELS: tuple[Judge, ...] = ("held_out_reward", "reward")  # judges that are reward models of the run
Scorer = Callable[[list[str]], Sequence[float]]

MANY_TRUNCATED = 0.2
COLLAPSED = 0.6  # distinct-2 below this share of the reference system's
MUCH_LONGER = 1.5
ROUNDING = 1e-5  # of a reward model's fp32 scores, by their size
COIN = 0.5  # of pairs in the right order
NEGATIVE_KL = -0.01  # nats a response: what rounding does is no sign of anything


def assemble(
    systems: Sequence[SystemResponses],
    *,
    judge: Judge | None,
    against: str = "sft",
    score: Scorer | None = None,
    others: Mapping[str, Scorer] | None = None,
    accuracy: Mapping[str, Mapping[str, Any]] | None = None,
    optimised: bool = True,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of ``results.json``.

    ``systems`` and ``greedy`` map names to their numbers under either decoding. ``comparisons`` holds every system
    against the one named ``against``, by the judge first and then by the run's reward models, as far as they scored.
    Without a judge nothing is compared.
    ``score`` is the judge itself, from one response a row to one number a row: with it trivial responses are judged
    too; ``others`` are further judges that are tested so (the run's other reward models). ``accuracy`` is what is known
    of a judge's order of held-out pairs: ``share`` right, its ``ci95`` and ``n`` pairs, by the judge's name; a judge
    that learnt and was tested on no pair has no share there.
    ``optimised`` says whether a system was trained on the judge ``reward``.

    Raises:
        ValueError: no systems, one given twice, or systems that did not respond to the same prompts in the same order.
    """
    _check(systems)
    by = {s: {x.name: x for x in systems if x.decoding == s} for s in ("sampled", "greedy")}
    described = {s: {n: _describe(x, resamples, seed) for n, x in by[s].items()} for s in by}
    main = by["sampled"] or by["greedy"]
    comparisons = [
        compared
        for group in by.values()
        if (reference := group.get(against)) is not None
        for column in dict.fromkeys((judge, *MODELS) if judge else ())
        for compared in _against(group, reference, column, resamples, seed)
    ]
    warnings = _incomparable(by, against)
    for decoding in by:
        warnings += _warnings(by[decoding], described[decoding], against, "" if by[decoding] is main else " (greedy)")
    warnings += _about_judging(judge, optimised)
    results: dict[str, Any] = {
        "prompts": len(set(systems[0].units)),
        "judge": judge,
        "against": against,
        "systems": described["sampled"],
        "greedy": described["greedy"],
        "comparisons": comparisons,
    }
    if score is not None and judge is not None:
        results["judges"] = {}
        for name, scorer in {judge: score, **(others or {})}.items():
            scores, extra = _trivial(main, scorer, name, against, resamples, seed)
            if name == judge:
                results |= {"baselines": scores, "baseline_comparisons": extra}
            known = (accuracy or {}).get(name)
            results["judges"][name] = about_judge(extra, known)
            warnings += distrust(name, extra, known, main=name == judge)
    return results | {"warnings": list(dict.fromkeys(warnings))}


def _against(
    group: Mapping[str, SystemResponses], reference: SystemResponses, column: Judge, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Every system that the judge has judged against the reference, its p-values adjusted for their number."""
    family = [s for s in group.values() if s.name != reference.name and _judged(s, reference, column)]
    return adjusted([_compare(s, reference, column, resamples, seed) for s in family])


def _incomparable(by: Mapping[str, Mapping[str, SystemResponses]], against: str) -> list[str]:
    return [
        f"There is no {decoding} system '{against}' to compare with."
        for decoding, group in by.items()
        if group and against not in group
    ]


def _about_judging(judge: Judge | None, optimised: bool) -> list[str]:
    if judge is None:
        return ["There is neither gold nor a reward model: systems are described, not compared."]
    if judge == "reward" and optimised:
        return ["The judge is the reward that PPO was trained on: wins by it may be over-optimisation."]
    return []


def samples_rows(systems: Sequence[SystemResponses]) -> list[dict[str, Any]]:
    """Rows of ``samples.jsonl``: the sampled responses first, then the greedy ones, all systems of a row side by side.

    ``{"prompt", "category", "decoding", "systems": {name: {"response", "reward", "held_out_reward", "gold", "kl",
    "kl_exact", "raw", "metrics", "finished"}}}``; what a system does not have is left out.

    Raises:
        ValueError: as ``assemble``.
    """
    _check(systems)
    rows = []
    for decoding in ("sampled", "greedy"):
        group = [s for s in systems if s.decoding == decoding]
        for i in range(len(group[0].prompts) if group else 0):
            cells = {
                s.name: {"response": s.responses[i], "finished": bool(s.finished[i])}
                | {k: float(getattr(s, k)[i]) for k in SCORES if getattr(s, k) is not None}
                | ({"raw": s.raw[i]} if s.raw is not None else {})
                | ({"metrics": {k: v[i] for k, v in s.response_scores.items()}} if s.response_scores else {})
                for s in group
            }
            row = {"prompt": group[0].prompts[i], "category": group[0].categories[i], "decoding": decoding}
            rows.append(row | {"systems": cells})
    return rows


def _check(systems: Sequence[SystemResponses]) -> None:
    if not systems:
        raise ValueError("no systems to evaluate")
    if len({(s.name, s.decoding) for s in systems}) != len(systems):
        raise ValueError("a system was given twice with the same decoding")
    for system in systems[1:]:
        if list(system.units) != list(systems[0].units) or list(system.prompts) != list(systems[0].prompts):
            raise ValueError(f"{system.name} and {systems[0].name} do not have the same prompts in the same order")


def _describe(system: SystemResponses, resamples: int, seed: int) -> dict[str, Any]:
    """The numbers of one system: each score as mean, interval and, where there is no interval, the reason."""

    def mean(values: Sequence[float], bounds: Bounds = UNBOUNDED) -> dict[str, Any]:
        found = mean_interval(values, system.units, resamples=resamples, seed=seed, bounds=bounds)
        return {"mean": found.estimate, "ci95": found.ci} | ({"note": found.note} if found.ci is None else {})

    lengths = [len(ids) for ids in system.token_ids]
    described: dict[str, Any] = {"n": len(system.prompts)}
    for column in SCORES:
        values = getattr(system, column)
        if values is not None:
            described[column] = mean(values, (0.0, math.inf) if column == "kl_exact" else UNBOUNDED)
            if column.startswith("kl"):  # total over total, never a mean of means
                described[f"{column}_per_token"] = float(np.sum(values)) / max(1, sum(lengths))
    distinct = Distinct().compute(predictions=[list(ids) for ids in system.token_ids])
    described["length"] = mean(lengths, (0.0, math.inf))
    described |= {k: distinct[k] for k in ("distinct_1", "distinct_2")}
    if system.extracted is not None:
        described["extracted"] = float(np.mean(system.extracted))
    if system.generation:
        described["generation"] = system.generation
    if system.metrics:
        described["metrics"] = dict(system.metrics)
    return described | Truncation().compute(predictions=list(system.finished))


def _compare(a: SystemResponses, b: SystemResponses, column: str, resamples: int, seed: int) -> dict[str, Any]:
    x, y = getattr(a, column), getattr(b, column)
    y = without_rounding(x, y) if column in MODELS else y
    found = paired_comparison(x, y, clusters=a.units, resamples=resamples, seed=seed)
    gain = paired_difference(x, y, clusters=a.units, resamples=resamples, seed=seed)
    said = verdict(found)
    lengths = [len(p) - len(q) for p, q in zip(a.token_ids, b.token_ids, strict=True)]
    fair = length_controlled_win_rate((np.sign(np.subtract(x, y)) + 1) / 2, lengths, a.units)
    head = {"a": a.name, "b": b.name, "by": column, "decoding": a.decoding}
    difference = {"mean": gain.estimate, "ci95": gain.ci}
    controlled = {"win_rate": fair.estimate, "ci95": fair.ci} | ({"note": fair.note} if fair.note else {})
    said_words = {"verdict": said.word, "verdict_text": said.text}
    return head | found.as_dict() | {"difference": difference, "length_controlled": controlled} | said_words


def without_rounding(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Scores ``y``, those that differ from ``x`` by rounding alone made equal to it: one response scored twice, among
    other rows, neither wins nor loses against itself."""
    return [p if abs(p - q) <= ROUNDING * max(1.0, abs(p), abs(q)) else q for p, q in zip(x, y, strict=True)]


def _judged(a: SystemResponses, b: SystemResponses, column: str) -> bool:
    return getattr(a, column) is not None and getattr(b, column) is not None


def adjusted(family: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Comparisons of one judge and decoding, their verdicts by Holm's p-values: many comparisons make no discovery."""
    fields = Comparison.__dataclass_fields__
    for c, p in zip(family, holm([c["p_value"] for c in family]), strict=True):
        said = verdict(Comparison(**{k: v for k, v in c.items() if k in fields}), p_value=p)
        c |= {"p_value_holm": p, "verdict": said.word, "verdict_text": said.text}
    return family


def _trivial(
    group: dict[str, SystemResponses], score: Scorer, judge: str, against: str, resamples: int, seed: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Mean judgement of trivial responses, and their comparisons with the reference system where it was judged.

    The longest response is the reference system's (else the first system's): the longest of all systems would often be
    a better system's response.
    """
    reference = group.get(against)
    source = reference or next(iter(group.values()))
    means, comparisons = {}, []
    for name, answers in adversaries(source.prompts, source.responses).items():
        scores = [float(s) for s in score(answers)]
        means[name] = float(np.mean(scores))
        if reference is not None and getattr(reference, judge) is not None:
            judged: dict[str, Any] = dict.fromkeys(("gold", *MODELS, "kl")) | {judge: scores}
            comparisons.append(_compare(replace(reference, name=name, **judged), reference, judge, resamples, seed))
    return means, comparisons


def about_judge(comparisons: Sequence[Mapping[str, Any]], accuracy: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How adversaries did before a judge, how it orders held-out pairs, and whether it may be relied on.

    ``reliable`` is False where an adversary is shown better than the reference system, or where the interval of
    ``accuracy`` (``share``, ``ci95``, ``n``; a judge that learnt has one) does not lie above a coin's half; None where
    one of the two is not known.
    """
    kept = ("win_rate", "ci95", "n", "verdict")
    fooled = any(c["verdict"] == "better" for c in comparisons)
    unknown = not comparisons or without_interval(accuracy)
    return {
        "reliable": False if fooled or as_a_coin(accuracy) else None if unknown else True,
        **({"accuracy": dict(accuracy)} if accuracy is not None else {}),
        "adversaries": {c["a"]: {k: c[k] for k in kept} for c in comparisons},
    }


def as_a_coin(accuracy: Mapping[str, Any] | None) -> bool:
    """Whether a share of pairs in the right order has an interval that is not above one half."""
    ci = (accuracy or {}).get("ci95")
    return ci is not None and ci[0] <= COIN


def without_interval(accuracy: Mapping[str, Any] | None) -> bool:
    """Whether a judge that learnt was tested on too few held-out pairs for an interval, or on none."""
    return accuracy is not None and not accuracy.get("ci95")


def distrust(
    judge: str,
    comparisons: Sequence[Mapping[str, Any]],
    accuracy: Mapping[str, Any] | None = None,
    main: bool = True,
) -> list[str]:
    """A sentence for every adversary that a judge prefers to the reference system, and one where it orders held-out
    pairs as a coin does; of a judge that learnt and gives no such reason, one where too few pairs have tested it."""
    models = {"reward": "As a judge the reward model", "held_out_reward": "As a judge the held-out reward model"}
    who = "The judge" if main else models.get(judge, f"The judge '{judge}'")
    said = [
        f"{who} is unreliable: it prefers the {named(c['a'])}, whatever the prompt, to {c['b']}'s."
        for c in comparisons
        if c["verdict"] == "better"
    ]
    if accuracy is not None and as_a_coin(accuracy):
        share, (low, high) = accuracy["share"], accuracy["ci95"]
        said.append(
            f"{who} is unreliable: it orders {100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of "
            f"{accuracy['n']:,} held-out pairs right, which a coin may do as well."
        )
    if accuracy is not None and without_interval(accuracy) and not said:
        pairs = accuracy.get("n") or 0
        few = f"{pairs:,} held-out pairs are too few for an interval" if pairs else "no held-out pairs tested it"
        said.append(f"{who} is untested: {few}, so that nothing shows it to be better than a coin.")
    return said


def compare_outcomes(
    a: SystemResponses, b: SystemResponses, outcomes: Sequence[float], by: str, resamples: int, seed: int
) -> dict[str, Any]:
    """A comparison from a judge of pairs: 1, 1/2 or 0 for each of the first rows."""
    n = len(outcomes)
    units = a.units[:n]
    found = paired_comparison(outcomes, np.subtract(1, outcomes), clusters=units, resamples=resamples, seed=seed)
    said = verdict(found)
    lengths = [len(p) - len(q) for p, q in zip(a.token_ids[:n], b.token_ids[:n], strict=True)]
    fair = length_controlled_win_rate(outcomes, lengths, units)
    controlled = {"win_rate": fair.estimate, "ci95": fair.ci} | ({"note": fair.note} if fair.note else {})
    head = {"a": a.name, "b": b.name, "by": by, "decoding": a.decoding}
    words = {"verdict": said.word, "verdict_text": said.text}
    return head | found.as_dict() | {"length_controlled": controlled} | words


def _warnings(
    group: dict[str, SystemResponses], described: dict[str, dict[str, Any]], against: str, where: str
) -> Iterable[str]:
    """Plain sentences about what a reader should not overlook."""
    reference, base = group.get(against), described.get(against)
    for name, system in group.items():
        d = described[name]
        if d["truncated"] > MANY_TRUNCATED:
            yield f"{name}{where}: {d['truncated']:.0%} of the responses were cut off at the length limit."
        if "kl" in d and d["kl"]["ci95"] and d["kl"]["ci95"][1] < 0 and d["kl"]["mean"] < NEGATIVE_KL:
            yield (
                f"{name}{where}: the KL is negative ({d['kl']['mean']:.2f} nats): responses were not sampled from the "
                "distribution that they were scored under (temperature or top-k, or greedy decoding)."
            )
        if reference is None or base is None or name == against:
            continue
        if d["distinct_2"] < COLLAPSED * base["distinct_2"]:
            yield (
                f"{name}{where}: responses became monotonous: distinct-2 is {d['distinct_2']:.3f}, "
                f"{against}'s is {base['distinct_2']:.3f}."
            )
        if d["length"]["mean"] > MUCH_LONGER * base["length"]["mean"] > 0:
            ratio = d["length"]["mean"] / base["length"]["mean"]
            yield f"{name}{where}: responses are {ratio:.1f} times as long as {against}'s; a win may be one by length."
        for column, said in (("gold", "gold"), ("held_out_reward", "the held-out reward model's score")):
            if _over_optimised(system, reference, column):
                yield f"{name}{where}: the reward rose but {said} fell against {against}: the reward is over-optimised."
    if group and len(set(next(iter(group.values())).units)) < 20:
        yield "There are too few prompts for honest intervals: use at least 20, better 200."


def _over_optimised(system: SystemResponses, reference: SystemResponses, column: str) -> bool:
    """Whether the reward went up and another judge's score down, both beyond doubt; few prompts prove neither, and
    nothing optimised the base."""
    if system.name == "base" or not (_judged(system, reference, "reward") and _judged(system, reference, column)):
        return False

    def gain(of: str) -> Interval:
        x, y = getattr(system, of), getattr(reference, of)
        return paired_difference(x, y, clusters=system.units, resamples=2_000)

    reward, other = gain("reward"), gain(column)
    return reward.low is not None and other.high is not None and reward.low > 0 > other.high
