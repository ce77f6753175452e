"""Rankings as ids for the reward stage: cut to its limit, counted, and each with an ordered pair."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

from data.common.errors import located
from data.common.patience import each
from data.counting import Tally
from data.records import Message, RankedAnswers
from data.storage.codec import Codec, Encoded
from data.storage.store import Store
from data.storage.token_rows import ids_bytes, ids_of
from data.storage.views import origin_of
from data.template import Renderer
from stages.settings import RewardConfig
from stages.training.negatives import negative

TURN = tuple(field.name for field in fields(Message))
EQUAL_WHEN_CUT = "its responses are equal once cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRanking:
    """One ranking as ids: K queries (the same, unless truncated differently), K responses, ranks, scores.

    The last ``made`` responses are not of the data (``reward.negatives``).
    """

    queries: list[list[int]]
    responses: list[list[int]]
    ranks: list[int]
    scores: list[float] | None
    weight: float = 1.0
    prompt: tuple[Message, ...] = ()
    made: int = 0

    @property
    def given(self) -> list[tuple[list[int], list[int]]]:
        """Queries and responses that the data hold."""
        return list(zip(self.queries, self.responses, strict=True))[: len(self.ranks) - self.made]


def ranking_store() -> Store[EncodedRanking]:
    """A store of encoded rankings."""
    return Store(EncodedRanking, Codec(_encode, _decode))


def _encode(row: EncodedRanking) -> Encoded:
    lengths = [list(map(len, row.queries)), list(map(len, row.responses))]
    turns = [[getattr(m, name) for name in TURN] for m in row.prompt]
    ids = [i for ids in (*row.queries, *row.responses) for i in ids]
    head = json.dumps([lengths, row.ranks, row.scores, row.weight, row.made]).encode()
    return Encoded(head, ids_bytes(ids), json.dumps(turns, ensure_ascii=False).encode(errors="surrogatepass"))


def _decode(stored: Encoded) -> EncodedRanking:
    lengths, ranks, scores, weight, made = json.loads(stored.content)
    ids, at = ids_of(stored.source), 0
    rows: tuple[list[list[int]], list[list[int]]] = ([], [])
    for side, own in zip(rows, lengths, strict=True):
        for length in own:
            side.append(ids[at : at + length])
            at += length
    turns = json.loads(stored.rest.decode(errors="surrogatepass"))
    prompt = tuple(Message(**dict(zip(TURN, turn, strict=True))) for turn in turns)
    return EncodedRanking(
        queries=rows[0], responses=rows[1], ranks=ranks, scores=scores, weight=weight, prompt=prompt, made=made
    )


def encode_rankings(
    renderer: Renderer,
    rankings: Sequence[RankedAnswers],
    config: RewardConfig,
    unit: str = "rankings",
    positions: int | None = None,
    negatives: Sequence[str] = (),
) -> tuple[Sequence[EncodedRanking], Tally]:
    """Ids of every ranking; responses that are the same after truncation count once, rankings left without an ordered
    pair are dropped and counted. ``positions`` are those of the base; with ``negatives`` the share of the rankings that
    are kept that ``config`` names get a worse response of one of these kinds (``stages.training.negatives``), which is
    not counted."""
    kept = ranking_store()
    tally = Tally(unit=unit, key="reward.max_tokens", limit=config.max_tokens, room=positions, sign=renderer.unknown_id)
    for place, ranking in enumerate(each(rankings, f"rendering {unit}")):
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
            cut = any(p.cut for p in parts)
            why = EQUAL_WHEN_CUT if cut else "no two distinct responses of different rank"
            tally.record(parts, why, origin_of(rankings, place))
            continue
        tally.record(parts, source=origin_of(rankings, place))
        worse = _worse(renderer, rankings, place, config, negatives) if negatives else None
        added = worse is not None and (*worse[0], -1, *worse[1]) not in rows
        if worse is not None and added:
            encoded.append((*worse, max(ranking.ranks) + 1, min(ranking.scores) if ranking.scores else None))
        kept.append(
            EncodedRanking(
                queries=[q for q, _, _, _ in encoded],
                responses=[r for _, r, _, _ in encoded],
                ranks=[rank for _, _, rank, _ in encoded],
                scores=[s for _, _, _, s in encoded if s is not None] if ranking.scores else None,
                weight=ranking.weight,
                prompt=ranking.prompt.messages,
                made=int(added),
            )
        )
    return kept, tally


def _worse(
    renderer: Renderer, rankings: Sequence[RankedAnswers], place: int, config: RewardConfig, kinds: Sequence[str]
) -> tuple[list[int], list[int]] | None:
    """Query and response of a worse response within the limit; None where no kind applies, or nothing fits."""
    found = negative(rankings, place, kinds, config.negatives_share)
    if found is None:
        return None
    made = renderer.fitted(rankings[place].prompt.messages, *found, max_tokens=config.max_tokens)
    return (made.query, made.response) if made.response else None
