"""The report card of a reward model: it is asked about held-out rankings, and about damaged responses that need no
label.

The numbers are made in ``reward.card.report_card``; this module collects what they are made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from data.common.errors import UserError
from data.common.patience import patience
from data.records import RankedAnswers
from models.backbone.seeds import derived_seed
from reward.card.ngrams import ngram_scores
from reward.card.probes import ProbedAnswer, damage
from reward.card.report_card import Judged, make_card
from reward.card.scored_once import ScoredOnce

FILE = "report_card.json"
HELD_OUT_ROWS = "held-out rankings"
NGRAM_RANKINGS = 5000  # training rankings behind the n-gram baseline; more change its accuracy little
PROBED = 256  # responses that are damaged
EXAMINED_MIN, EXAMINED_MAX = 64, 4096  # held-out rankings that are scored; see ``examined``

T = TypeVar("T")


def examined(rankings: Sequence[T], trained: int | None = None) -> Sequence[T]:
    """The held-out rankings that are scored: evenly spaced ones, so many as were trained on, within bounds.

    So examination takes about as long as training at most, or as 64 rankings take; 4,096 put an accuracy within 1.5
    points.

    Args:
        rankings: all of them.
        trained: rankings that one model was trained on, each as often as it was seen; None: no bound by it.
    """
    count = EXAMINED_MAX if trained is None else min(EXAMINED_MAX, max(EXAMINED_MIN, trained))
    if len(rankings) <= count:
        return rankings
    return [rankings[i * len(rankings) // count] for i in range(count)]


def examine(
    scored: ScoredOnce,
    train: Sequence[RankedAnswers],
    held_out: Sequence[RankedAnswers],
    *,
    of: int | None = None,
    samples: Sequence[float] = (),
    sampled_from: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """The card (see ``reward.card.report_card.make_card``); empty without a held-out ranking.

    Args:
        scored: the model; what it has scored before is not scored again.
        train, held_out: rankings; the first are for the n-gram baseline, all of the second are scored.
        of: how many held-out rankings there are, where ``held_out`` is a part of them.
        samples: scores, less their mean, of the SFT model's own samples.
        sampled_from: what they are, in words.
        seed: of the random baseline.
    """
    judged, kept = judge(scored, held_out)
    if not judged:
        return {}
    rng = np.random.default_rng(derived_seed(seed, "reward/card"))
    baselines: dict[str, list[list[float]]] = {
        "random": [rng.random(len(r.ranks)).tolist() for r in judged],
        "longest answer": [[float(n) for n in r.lengths] for r in judged],
    }
    try:
        with patience("report card: a linear model of n-grams"):
            linear = ngram_scores(train[:NGRAM_RANKINGS], held_out)
    except UserError:  # nothing to learn from: evaluation on rankings of another run
        pass
    else:
        baselines["n-grams"] = [[linear[n][i] for i in answers] for n, answers in kept]
    card = make_card(
        judged, baselines=baselines, probes=probe(scored, held_out), samples=samples, sampled_from=sampled_from
    )
    return card | {"held_out": {"examined": len(held_out), "of": len(held_out) if of is None else of}}


def judge(scored: ScoredOnce, rankings: Sequence[RankedAnswers]) -> tuple[list[Judged], list[tuple[int, list[int]]]]:
    """Scored rankings, and for each the number of its record and of the responses that count.

    Responses that are the same to the model (after truncation) count once, as in training; rankings without an ordered
    pair are left out.
    """
    model = scored.model
    rows: list[tuple[int, int, list[int], list[int]]] = []
    for n, r in enumerate(rankings):
        seen: set[tuple[int, ...]] = set()
        for i, answer in enumerate(r.answers):
            query, response = model.ids_of(r.prompt, answer, r.finished[i])
            if response and (*query, -1, *response) not in seen:
                seen.add((*query, -1, *response))
                rows.append((n, i, query, response))
    scores = scored.score_ids([q for _, _, q, _ in rows], [a for _, _, _, a in rows], HELD_OUT_ROWS).tolist()
    found: dict[int, list[tuple[int, float, int]]] = {}
    for (n, i, _, response), score in zip(rows, scores, strict=True):
        found.setdefault(n, []).append((i, score, len(response)))
    judged, kept = [], []
    for n, answers in found.items():
        r, numbers = rankings[n], [i for i, _, _ in answers]
        if len({r.ranks[i] for i in numbers}) < 2:
            continue
        kept.append((n, numbers))
        judged.append(
            Judged(
                prompt=r.prompt.group,
                ranks=[r.ranks[i] for i in numbers],
                scores=[score for _, score, _ in answers],
                lengths=[tokens for _, _, tokens in answers],
                labels=[r.scores[i] for i in numbers] if r.scores else None,
                category=r.prompt.category,
                source=r.prompt.source.rpartition(":")[0],
            )
        )
    return judged, kept


def probe(
    scored: ScoredOnce, rankings: Sequence[RankedAnswers]
) -> dict[str, tuple[list[float], list[float], list[str]]]:
    """By probe: scores of whole responses, scores of the damaged ones, and their prompts.

    The best finished response of each of the first rankings is damaged.
    """
    chosen: list[tuple[RankedAnswers, str]] = []
    for r in rankings:
        finished = [i for i in range(len(r.answers)) if r.finished[i]]
        if finished and len(chosen) < PROBED:
            chosen.append((r, r.answers[min(finished, key=lambda i: r.ranks[i])]))
    made = damage([ProbedAnswer(r.prompt.group if r.prompt.messages else "", text) for r, text in chosen])
    flat = [(i, text, done) for rows in made.values() for i, (text, done) in rows]
    asked = [(r.prompt, text, True) for r, text in chosen]
    asked += [(chosen[i][0].prompt, text, finished) for i, text, finished in flat]
    rows = [scored.model.ids_of(*one) for one in asked]
    scores = scored.score_ids([q for q, _ in rows], [a for _, a in rows], "damaged responses").tolist()
    whole, rest = scores[: len(chosen)], iter(scores[len(chosen) :])
    return {
        name: (
            [whole[i] for i, _ in rows],
            [next(rest) for _ in rows],
            [chosen[i][0].prompt.group for i, _ in rows],
        )
        for name, rows in made.items()
    }


def summary(card: dict[str, Any]) -> dict[str, Any]:
    """The card in a few numbers, for the stage's metrics; empty for an empty card."""
    if not card:
        return {}
    calibrated = card["calibration"]
    return {
        "top1": card["top1"]["share"],
        "calibration_error": calibrated["before"]["error"] if calibrated else None,
        "temperature": calibrated["temperature"] if calibrated else None,
        "longer_wins": card["length"]["longer_wins"]["share"],
        "baselines": {name: found["share"] for name, found in card["baselines"].items()},
        "probes": {name: found["share"] for name, found in card["probes"].items()},
        "card_warnings": card["warnings"],
    }
