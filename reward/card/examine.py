"""The report card of a reward model: it is asked about held-out rankings, and about damaged responses that need no
label.

The numbers are made in ``reward.card.report_card``; this module collects what they are made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.common.errors import UserError
from data.records import RankedAnswers
from models.backbone.seeds import derived_seed
from reward.card.ngrams import ngram_scores
from reward.card.probes import ProbedAnswer, damage
from reward.card.report_card import Judged, make_card
from reward.model import RewardModel

FILE = "report_card.json"
NGRAM_RANKINGS = 5000  # training rankings behind the n-gram baseline; more change its accuracy little
PROBED = 256  # responses that are damaged


def examine(
    model: RewardModel,
    train: Sequence[RankedAnswers],
    held_out: Sequence[RankedAnswers],
    *,
    samples: Sequence[float] = (),
    sampled_from: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """The card (see ``reward.card.report_card.make_card``); empty without a held-out ranking.

    Args:
        model: ready to score.
        train, held_out: rankings; the first are for the n-gram baseline.
        samples: scores, less their mean, of the SFT model's own samples.
        sampled_from: what they are, in words.
        seed: of the random baseline.
    """
    judged, kept = judge(model, held_out)
    if not judged:
        return {}
    rng = np.random.default_rng(derived_seed(seed, "reward/card"))
    baselines: dict[str, list[list[float]]] = {
        "random": [rng.random(len(r.ranks)).tolist() for r in judged],
        "longest answer": [[float(n) for n in r.lengths] for r in judged],
    }
    try:
        linear = ngram_scores(train[:NGRAM_RANKINGS], held_out)
    except UserError:  # nothing to learn from: evaluation on rankings of another run
        pass
    else:
        baselines["n-grams"] = [[linear[n][i] for i in answers] for n, answers in kept]
    return make_card(
        judged, baselines=baselines, probes=probe(model, held_out), samples=samples, sampled_from=sampled_from
    )


def judge(model: RewardModel, rankings: Sequence[RankedAnswers]) -> tuple[list[Judged], list[tuple[int, list[int]]]]:
    """Scored rankings, and for each the number of its record and of the responses that count.

    Responses that are the same to the model (after truncation) count once, as in training; rankings without an ordered
    pair are left out.
    """
    rows: list[tuple[int, int, list[int], list[int]]] = []
    for n, r in enumerate(rankings):
        seen: set[tuple[int, ...]] = set()
        for i, answer in enumerate(r.answers):
            query, response = model.renderer.prompt_and_answer(
                r.prompt.messages, answer, r.finished[i], max_tokens=model.max_tokens
            )
            if response and (*query, -1, *response) not in seen:
                seen.add((*query, -1, *response))
                rows.append((n, i, query, response))
    scores = model.score_ids([q for _, _, q, _ in rows], [a for _, _, _, a in rows]).tolist()
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
    model: RewardModel, rankings: Sequence[RankedAnswers]
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
    texts = [text for _, text in chosen] + [text for _, text, _ in flat]
    asked = [r.prompt.messages for r, _ in chosen] + [chosen[i][0].prompt.messages for i, _, _ in flat]
    done = [True] * len(chosen) + [finished for _, _, finished in flat]
    scores = model.score_texts(asked, texts, done).tolist() if texts else []
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
