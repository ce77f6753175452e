"""Verdicts in words: one that may speak for either side is refused, and what both sides did badly is never learnt."""

from __future__ import annotations

import re
from typing import Any

import pytest

from data.derive import as_demonstration, as_documents, as_ranking
from data.formats import FORMATS, Reject, parse
from data.formats.reading import read

SIDES = {"prompt": "Name a river.", "response_a": "The Ebro.", "response_b": "Rain."}
Q, A, B = (
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Ebro."},
    {"role": "assistant", "content": "Rain."},
)
ARENA = {"conversation_a": [Q, A], "conversation_b": [Q, B]}


def row_of(shape: str, verdict: Any) -> Any:
    row = SIDES | {"preference": verdict} if shape == "sides" else ARENA | {"winner": verdict}
    return parse(row, "rows.jsonl:1")[1][0]


@pytest.mark.parametrize("shape", ["sides", "arena"])
@pytest.mark.parametrize(
    "verdict",
    [
        "B is worse",
        "not B",
        "model_b lost",
        "B loses",
        "A is not better",
        "b: weaker",
        "B (rejected)",
        "B isn't better",
    ],
)
def test_a_verdict_that_may_speak_for_either_side_is_refused(shape: str, verdict: str) -> None:
    with pytest.raises(Reject, match="may speak for either side; name the better one alone"):
        row_of(shape, verdict)


@pytest.mark.parametrize("shape", ["sides", "arena"])
@pytest.mark.parametrize("verdict", ["b", "model_b", "B is much better", "strongly prefer B", "B wins"])
def test_a_verdict_that_speaks_for_one_side_is_read(shape: str, verdict: str) -> None:
    assert row_of(shape, verdict).answers == ("Rain.", "The Ebro.")


@pytest.mark.parametrize("shape", ["sides", "arena"])
@pytest.mark.parametrize("verdict", ["tie (bothbad)", "both bad", "both_bad", "Tie: both are bad"])
def test_responses_that_are_both_bad_are_no_demonstration(shape: str, verdict: str) -> None:
    row = row_of(shape, verdict)
    assert row.ranks == (0, 0)
    for derive in (as_demonstration, as_documents):
        with pytest.raises(Reject, match="both responses are bad"):
            derive(row)
    with pytest.raises(Reject, match="all its responses tie"):
        as_ranking(row)
    assert as_demonstration(row_of(shape, "tie"))[0].answer == "The Ebro."


@pytest.mark.parametrize("verdict", ["neither", "Neither is good", "none", "neither of them", "neither is better"])
def test_responses_of_which_neither_is_good_are_no_demonstration(verdict: str) -> None:
    row = row_of("sides", verdict)
    assert row.ranks == (0, 0)
    if verdict.endswith("better"):
        assert as_demonstration(row)[0].answer == "The Ebro."
        return
    with pytest.raises(Reject, match="both responses are bad"):
        as_demonstration(row)


@pytest.mark.parametrize(
    "name, more",
    [
        ("SHP", {"upvote_ratio": 0.98, "score_ratio": 1.8, "seconds_difference": 1.0, "post_id": "a"}),
        ("arena battle", {"completion_a_is_acceptable": True, "completion_b_is_acceptable": False}),
        ("message tree without a head", {"rank": 0, "labels": {"name": ["quality"], "value": [0.8], "count": [3]}}),
        ("ChatGPT export", {"safe_urls": ["https://example.org"]}),
    ],
)
def test_columns_of_a_public_set_that_rank_nothing_are_read(name: str, more: dict[str, Any]) -> None:
    found, rows, lost = read({**FORMATS[name].example, **more})
    assert (found, lost) == (name, ()) and rows


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("truncated", True, "where: truncated != True"),
        ("is_truncated", "true", "where: is_truncated != 'true'"),
        ("response_cut_off", True, "where: response_cut_off != True"),
        ("is_complete", False, "where: is_complete != False"),
        ("completed", "no", "where: completed != 'no'"),
        ("truncated", False, ""),
        ("is_complete", True, ""),
    ],
)
def test_a_response_that_a_switch_calls_cut_is_not_taken_for_a_whole_one(name: str, value: Any, named: str) -> None:
    row = {"prompt": "Name a river.", "completion": "The Eb", name: value}
    if not named:
        assert parse(row, "rows.jsonl:1")[1][0].answers == ("The Eb",)
        return
    with pytest.raises(Reject, match=re.escape(named)):
        parse(row, "rows.jsonl:1")


@pytest.mark.parametrize(("value", "whole"), [("true", True), ("False", False), (True, True), (False, False)])
def test_whether_a_response_is_finished_may_be_a_word(value: Any, whole: bool) -> None:
    row = {"prompt": "Name a river.", "completion": "The Eb", "finished": value}
    assert parse(row, "rows.jsonl:1")[1][0].finished == whole


@pytest.mark.parametrize("given", ["<noinput>", "<noInput>", "<no input>", "[No input]", "", " <noinput>\n"])
def test_a_word_that_stands_for_no_input_is_no_part_of_a_prompt(given: str) -> None:
    row = {"instruction": "Name a river.", "input": given, "output": "The Ebro."}
    assert [m.content for m in parse(row, "rows.jsonl:1")[1][0].messages] == ["Name a river."]
    kept = {"instruction": "Is it <noinput>?", "input": "no input", "output": "No."}
    assert parse(kept, "rows.jsonl:1")[1][0].messages[0].content == "Is it <noinput>?\n\nno input"
