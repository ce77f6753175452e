"""Rankings as ids for the reward stage: cut to its limit, counted, and each with an ordered pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.common.errors import located
from data.common.patience import each
from data.counting import Tally
from data.records import Message, RankedAnswers
from data.template import Renderer
from stages.settings import RewardConfig

EQUAL_WHEN_CUT = "its responses are equal once cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRanking:
    """One ranking as ids: K queries (the same, unless truncated differently), K responses, ranks, scores."""

    queries: list[list[int]]
    responses: list[list[int]]
    ranks: list[int]
    scores: list[float] | None
    weight: float = 1.0
    prompt: tuple[Message, ...] = ()


def encode_rankings(
    renderer: Renderer, rankings: Sequence[RankedAnswers], config: RewardConfig, unit: str = "rankings"
) -> tuple[list[EncodedRanking], Tally]:
    """Ids of every ranking; responses that are the same after truncation count once, rankings left without an ordered
    pair are dropped and counted."""
    kept, tally = [], Tally(unit=unit, key="reward.max_tokens", limit=config.max_tokens)
    for ranking in each(rankings, f"rendering {unit}"):
        rows: dict[tuple[int, ...], int] = {}
        encoded, parts = [], []
        for i, answer in enumerate(ranking.answers):
            with located(ranking.prompt.source):
                asked = ranking.prompt.messages
                made = renderer.fitted(asked, answer, ranking.finished[i], max_tokens=config.max_tokens, prove=True)
            parts.append(made)
            if made.response and rows.setdefault((*made.query, -1, *made.response), i) == i:
                score = ranking.scores[i] if ranking.scores else None
                encoded.append((made.query, made.response, ranking.ranks[i], score))
        if len({rank for _, _, rank, _ in encoded}) < 2:
            cut = any(p.cut_answer or p.cut_prompt for p in parts)
            tally.record(parts, EQUAL_WHEN_CUT if cut else "no two distinct responses of different rank")
            continue
        tally.record(parts)
        kept.append(
            EncodedRanking(
                queries=[q for q, _, _, _ in encoded],
                responses=[r for _, r, _, _ in encoded],
                ranks=[rank for _, _, rank, _ in encoded],
                scores=[s for _, _, _, s in encoded if s is not None] if ranking.scores else None,
                weight=ranking.weight,
                prompt=ranking.prompt.messages,
            )
        )
    return kept, tally
