"""A second judgement next to the first: what contradicts is the row's fault, what nothing reads is said."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from data.formats import Reject, Unread, parse
from data.formats.rankings import UNLIKE
from data.formats.rows import SECOND, quoted

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


@pytest.mark.parametrize("names", [("chosen", "rejected"), ("accepted", "rejected")])
@pytest.mark.parametrize("name", ["delta", "Diff", "gap"])
def test_a_difference_below_zero_may_speak_against_the_choice(names: tuple[str, str], name: str) -> None:
    row = ASKED | dict(zip(names, ("The Ebro.", "Rain."), strict=True))
    for value in (-1, "-0.5"):
        with pytest.raises(Reject, match=rf"{name} is -.*`ignore: \[{name}\]`"):
            parse(row | {name: value}, "rows.jsonl:1")
        assert parse(row | {name: value}, "rows.jsonl:1", ignore=(name,))[1]
    assert parse(row | {name: 2}, "rows.jsonl:1")[1][0].answers[0] == "The Ebro."
    beside = ASKED | {"response_a": "The Ebro.", "response_b": "Rain.", "winner": "b", name: -1}
    assert parse(beside, "rows.jsonl:1")[1][0].answers[0] == "Rain."


@pytest.mark.parametrize(
    ("name", "value", "scores"),
    [
        ("n_votes", [1, 40, 2], "n_votes"),
        ("num_correct", [1, 40, 2], "num_correct"),
        ("vote_count", "[1, 40, 2]", "vote_count"),
        ("judge", [1, 40, 2], "judge"),
        ("is_correct", [False, True, False], "is_correct"),
        ("info", {"scores": [1, 9, 3]}, "info.scores"),
        ("tags", ["bad", "good", "bad"], ""),
        ("level", ["low", "high", "low"], ""),
        ("source", ["rejected", "chosen", "rejected"], ""),
        ("metadata", [{"score": 1}, {"score": 9}, {"score": 2}], ""),
    ],
)
def test_a_list_that_judges_responses_is_no_metadata(name: str, value: Any, scores: str) -> None:
    row = ASKED | {"responses": ["Rain.", "The Ebro.", "Snow."], name: value}
    with pytest.raises(Unread, match=f"reads no column '{name}'.*ranked as they stand, best first") as caught:
        parse(row, "rows.jsonl:1")
    assert parse(row, "rows.jsonl:1", ignore=(name,))[1][0].answers[0] == "Rain."
    assert parse(row | {"scores": [1, 9, 2]}, "rows.jsonl:1", ignore=("is_correct",))[1][0].answers[0] == "The Ebro."
    if scores:
        assert f"columns: {{scores: {quoted(scores)}}}" in str(caught.value)
        assert parse(row, "rows.jsonl:1", columns={"scores": scores})[1][0].answers[0] == "The Ebro."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ["a", "b", "c"]),
        ("response_ids", [7, 8, 9]),
        ("n_tokens", [3, 4, 5]),
        ("tags", ["rivers", "Spain", "water"]),
        ("judge", ["m", "m", "m"]),
        ("n_votes", [1, 40]),
        ("metadata", {"score": 4}),
    ],
)
def test_lists_that_describe_responses_stand_beside(name: str, value: Any) -> None:
    row = ASKED | {"responses": ["Rain.", "The Ebro.", "Snow."], name: value}
    assert parse(row, "rows.jsonl:1")[1][0].answers[0] == "Rain."


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(10.0, 1.0), (5.0, 5.0)], "contradict each other"),
        ([(8, 4), (6, 3), (5, 4.5)], "contradict each other"),
        ([(8, 4), (6, 3), (7, 5)], "said"),
        ([(8, 4), (6, 3), (7, 3.5)], ""),
        ([(8, 4), (8, 5)], ""),
        ([(8, None), (6, 3)], ""),
    ],
)
def test_two_scores_of_each_response(scores: list[tuple[float, float | None]], best: str) -> None:
    completions = [
        {"response": f"r{at}", "overall_score": one, "fine-grained_score": other}
        for at, (one, other) in enumerate(scores)
    ]
    row = {"instruction": "Name a river.", "completions": completions}
    if best.startswith("contradict"):
        with pytest.raises(Reject, match="overall_score and fine-grained_score in completions contradict each other"):
            parse(row, "rows.jsonl:1")
        return
    [made] = parse(row, "rows.jsonl:1")[1]
    assert made.answers[0] == "r0" and (UNLIKE in made.notes) == bool(best)
