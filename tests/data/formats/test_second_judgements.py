"""A second judgement next to the first: what contradicts is the row's fault, what nothing reads is said."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from data.formats import Reject, parse
from data.formats.rows import SECOND

ASKED = {"prompt": "Name a river."}
ONE = ASKED | {"completion": "The Ebro."}
SEVERAL = ASKED | {"responses": ["The Ebro.", "Rain.", "Snow."]}
SHP = {"history": "Name a river.", "human_ref_A": "Rain.", "human_ref_B": "The Ebro."}


@pytest.mark.parametrize("name", ["rating", "score", "helpfulness", "quality", "reward"])
@pytest.mark.parametrize("value", [5, -1.0, "4", "4/5"])
def test_a_score_next_to_a_label_is_kept_and_said(name: str, value: Any) -> None:
    _, [row] = parse(ONE | {"label": False, name: value}, "rows.jsonl:1")
    assert (row.judged, row.scores, row.notes) == ("label", (0.0,), (SECOND,)) and row.columns[name] == value
    _, [alone] = parse(ONE | {"label": False}, "rows.jsonl:1")
    assert not alone.notes


@pytest.mark.parametrize("label, word", [(True, "bad"), (False, "good"), ("good", "no"), (0, True), (1, False)])
def test_words_that_contradict_a_label_are_a_fault(label: Any, word: Any) -> None:
    with pytest.raises(Reject, match="its labels contradict each other: label, quality"):
        parse(ONE | {"label": label, "quality": word}, "rows.jsonl:1")


def test_words_that_agree_with_a_label_are_fine() -> None:
    _, [row] = parse(ONE | {"label": True, "quality": "good"}, "rows.jsonl:1")
    assert row.scores == (1.0,) and not row.notes


@pytest.mark.parametrize("ranks", sorted(set(product((0, 1, 2), repeat=3))))
@pytest.mark.parametrize("scores", [(1, 2, 3), (3, 1, 2), (2, 2, 1), (1, 1, 1)])
def test_scores_against_ranks_are_a_fault(ranks: tuple[int, ...], scores: tuple[int, ...]) -> None:
    pairs = [(i, j) for i in range(3) for j in range(3)]
    contradict = any(ranks[i] < ranks[j] and scores[i] < scores[j] for i, j in pairs)
    row = SEVERAL | {"ranks": list(ranks), "scores": list(scores)}
    if not contradict:
        _, [made] = parse(row, "rows.jsonl:1")
        assert made.ranks == tuple(sorted(ranks))
        return
    with pytest.raises(Reject, match=r"scores contradict ranks: of rank \d is \d.*`ignore: \[ranks\]`"):
        parse(row, "rows.jsonl:1")
    for ignored in ("ranks", "scores"):
        assert parse(row, "rows.jsonl:1", ignore=(ignored,))[1][0].answers


@pytest.mark.parametrize(
    "row, named",
    [
        (SEVERAL | {"scores": [3, 2, 1], "rewards": [1, 2, 3]}, "rewards"),
        (SEVERAL | {"ranks": [0, 1, 2], "rank": [2, 1, 0]}, "rank"),
        (ASKED | {"completions": ["a b", "c d"], "scores": [2, 1], "ratings": [1, 2]}, "ratings"),
        (ONE | {"label": False, "is_good": True}, "is_good"),
        (ONE | {"label": False, "upvoted": 1}, "upvoted"),
        (ONE | {"score": 4, "rating": 1}, "score"),
        (ASKED | {"chosen": "The Ebro.", "rejected": "Rain.", "winner": "rejected"}, "winner"),
    ],
)
def test_a_judgement_that_nothing_reads_is_named(row: dict[str, Any], named: str) -> None:
    with pytest.raises(Reject, match=rf"reads no column '{named}'.*`ignore: \[{named}\]`"):
        parse(row, "rows.jsonl:1")
    assert parse(row, "rows.jsonl:1", ignore=(named,))[1]


@pytest.mark.parametrize("label, scores, fits", [(1, (9, 2), True), (0, (2, 9), True), (1, (2, 9), False)])
def test_votes_against_the_label_of_shp(label: int, scores: tuple[int, int], fits: bool) -> None:
    row = SHP | {"labels": label, "score_A": scores[0], "score_B": scores[1]}
    if fits:
        assert parse(row, "rows.jsonl:1")[1][0].answers[0] == ("Rain." if label else "The Ebro.")
        return
    with pytest.raises(Reject, match="labels contradicts score_A and score_B"):
        parse(row, "rows.jsonl:1")
