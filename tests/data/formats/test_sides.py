"""Two responses in columns that are told apart by one word: opposites, and sides with a verdict or scores."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from data.common.errors import UserError
from data.formats import NoFormat, Reject, Unread, parse
from data.formats.sides import OPPOSITES, SIDES
from data.source_settings import DataConfig, Source
from data.sources import load_records, parse_file
from tests.support.raw_rows import turns_of

Q, A, B = "Name a river.", "The Ebro.", "Rain."


@pytest.mark.parametrize(("better", "worse"), OPPOSITES)
@pytest.mark.parametrize("spelled", ["{}", "{}_response", "answer_{}", "{} Answer", "Text-{}"])
def test_opposites(better, worse, spelled):
    row = {"question": Q, spelled.format(worse): B, spelled.format(better): A}
    [found] = parse(row)[1]
    assert (turns_of(found.messages), found.answers, found.ranks) == ("u:" + Q, (A, B), (0, 1))


@pytest.mark.parametrize(("one", "other"), SIDES)
@pytest.mark.parametrize("spelled", ["response_{}", "{}_answer", "Output {}", "model_{}_response", "answer_{}_body"])
def test_sides_by_what_the_verdict_names(one, other, spelled):
    first, second = spelled.format(one), spelled.format(other)
    for value, answers, ranks in (
        (first, (A, B), (0, 1)),
        (second, (B, A), (0, 1)),
        (f"{second} is better", (B, A), (0, 1)),
        (B, (B, A), (0, 1)),
        ("tie", (A, B), (0, 0)),
        ("about the same", (A, B), (0, 0)),
    ):
        [found] = parse({"prompt": Q, first: A, second: B, "preference": value})[1]
        assert (turns_of(found.messages), found.answers, found.ranks) == ("u:" + Q, answers, ranks), value


@pytest.mark.parametrize(
    ("more", "answers", "ranks"),
    [
        ({"winner": "model_b"}, (B, A), (0, 1)),
        ({"winner": "gpt", "model_a": "llama", "model_b": "gpt"}, (B, A), (0, 1)),
        ({"preference": "A>B"}, (A, B), (0, 1)),
        ({"preference": "A<<B"}, (B, A), (0, 1)),
        ({"preference": "[[A=B]]"}, (A, B), (0, 0)),
        ({"verdict": "left"}, (A, B), (0, 1)),
        ({"verdict": "the second one"}, (B, A), (0, 1)),
        ({"score_a": 2, "score_b": 4.5}, (B, A), (0, 1)),
        ({"rating_response_a": "3", "rating_response_b": "3"}, (A, B), (0, 0)),
        ({"preference": "b", "score_a": 2, "score_b": 4}, (B, A), (0, 1)),
        ({"preference": "a", "length_a": 3, "length_b": 9, "source_a": "x", "source_b": "y"}, (A, B), (0, 1)),
    ],
)
def test_who_won(more, answers, ranks):
    [found] = parse({"instruction": Q, "input": "", "response_a": A, "response_b": B, **more})[1]
    assert (turns_of(found.messages), found.answers, found.ranks) == ("u:" + Q, answers, ranks)


def test_scores_come_along_in_the_order_of_the_responses():
    assert parse({"prompt": Q, "response_a": A, "response_b": B, "score_a": 2, "score_b": 4})[1][0].scores == (4.0, 2.0)
    row = {"prompt": Q, "better_answer": A, "worse_answer": B, "better_score": 4, "worse_score": 4}
    assert parse(row)[1][0].ranks == (0, 0)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"preference": "perhaps"}, "neither side"),
        ({"preference": "a or b"}, "neither side"),
        ({"preference": "b", "score_a": 4, "score_b": 2}, "contradicts"),
        ({"preference": ["a"]}, "names no side"),
        ({"response_b": A, "preference": "a"}, "the same"),
    ],
)
def test_verdicts_that_cannot_be_meant(more, reason):
    with pytest.raises(Reject, match=reason):
        parse({"prompt": Q, "response_a": A, "response_b": B, **more})


def test_names_of_models_are_no_responses():
    with pytest.raises(Unread, match="winner"):
        parse({"prompt": Q, "model_a": "llama", "model_b": "gpt", "winner": "model_a"})
    with pytest.raises(NoFormat):
        parse({"chosen_model": "llama", "rejected_model": "gpt", "question": Q})
    row = {"question": Q, "good_answer": A, "bad_answer": B, "good_model": "llama", "bad_model": "gpt"}
    assert parse(row)[1][0].answers == (A, B)


def test_a_third_side_is_not_dropped():
    with pytest.raises(Unread, match="response_c"):
        parse({"prompt": Q, "response_a": A, "response_b": B, "response_c": "Snow.", "preference": "a"})


@pytest.mark.parametrize(
    ("names", "low", "verdict"),
    [
        (("answer_a", "answer_b"), 0, "label"),
        (("output_1", "output_2"), 1, "label"),
        (("left answer", "right answer"), 1, "choice"),
        (("response_a", "response_b"), 0, "Which is better?"),
    ],
)
def test_numbers_that_may_count_from_either_are_refused_with_sources_that_work(tmp_path, names, low, verdict):
    rows = [(f"{Q} {i}", won) for i, won in enumerate((0, 1, 1, 0))]
    lines = [{"prompt": q, names[0]: f"{A} {q}", names[1]: B, verdict: low + won} for q, won in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = []
    for won in (0, 1):
        with pytest.raises(Reject, match="count from 0 or from 1") as caught:
            parse(next(line for line in lines if line[verdict] == low + won))
        pasted = re.findall(r"`(.*?)`", str(caught.value))
        assert len(pasted) == 2
        sources.append({"path": "a.jsonl", **yaml.safe_load(f"{{{pasted[won]}}}")})
    config = DataConfig(rankings=sources)
    found = load_records(config.rankings, "rankings", config, seed=0, base_dir=tmp_path).records
    assert {r.prompt.text: r.answers for r in found} == {
        q: (f"{A} {q}", B) if won == 0 else (B, f"{A} {q}") for q, won in rows
    }


@pytest.mark.parametrize(("first", "second"), [("response_1", "response_2"), ("output1", "output2")])
def test_numbers_that_are_in_the_names_name_the_sides(first, second):
    for won, answers in ((1, (A, B)), ("2", (B, A)), (2.0, (B, A))):
        assert parse({"prompt": Q, first: A, second: B, "preferred": won})[1][0].answers == answers
    with pytest.raises(Reject, match="count from 0 or from 1"):
        parse({"prompt": Q, first: A, second: B, "preferred": 0})


def test_a_spreadsheet_of_annotators(tmp_path):
    (tmp_path / "a.csv").write_text(
        "Unnamed: 0,Timestamp,Prompt,Response A,Response B,Preferred,Annotator,Task Link\n"
        f"0,2024-01-01 10:00,{Q},{B},{A},Response B,ann@x.org,https://x.org/1\n"
        f"1,2024-01-01 10:05,More?,{A},{B},A,ann@x.org,https://x.org/2\n"
    )
    found = load_records(["a.csv"], "rankings", DataConfig(), seed=0, base_dir=tmp_path).records
    assert [(r.prompt.text, r.answers) for r in found] == [(Q, (A, B)), ("More?", (A, B))]


@pytest.mark.parametrize(
    ("column", "value"), [("comment", "b has a mistake"), ("instance_quality", "poor"), ("response_a_acceptable", "no")]
)
def test_what_people_wrote_beside_two_sides_is_not_lost(column, value):
    row = {"question": "q?", "response_a": "x", "response_b": "y", "verdict": "A", column: value}
    with pytest.raises(Reject, match=f"reads no column '{column}'"):
        parse(row)


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ((1, 2, -2), "preference > 0"),
        ((0, 1, 2), "preference == 0"),
        (("2", "3"), "preference == '3'"),
        ((1, 2, 1), ""),
        (("response_1", "response_2", 0), ""),
    ],
)
def test_numbers_of_a_verdict_are_judged_over_the_whole_file(tmp_path, values, refused):
    rows = [{"prompt": f"{Q} {at}", "response_1": A, "response_2": B, "preference": v} for at, v in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def load(**settings):
        source = Source(path="a.jsonl", **settings)
        return load_records([source], "rankings", DataConfig(), seed=0, base_dir=tmp_path)

    if not refused:
        words = {1: A, 2: B, "response_1": A, "response_2": B}
        assert [r.answers[0] for r in load().records] == [words[v] for v in values if v in words]
        return
    with pytest.raises(UserError, match="which may count from 0 or from 1, or be a score") as caught:
        load()
    assert refused in str(caught.value)
    with pytest.raises(UserError, match="which may count from 0 or from 1"):
        list(parse_file(tmp_path / "a.jsonl", "a.jsonl"))
    prompts = load_records(["a.jsonl"], "prompts", DataConfig(), seed=0, base_dir=tmp_path).records
    assert len(prompts) == len({1, 2, "2"}.intersection(values))
    if 1 in values:  # rows without the value that is none of the two
        assert len(load(where="preference == 1 or preference == 2").records) == 2


@pytest.mark.parametrize(
    "form, name, good, wrong, why",
    [
        ({"instruction": "{q}", "output_1": A, "output_2": B}, "preference", (1, 2), 0, "1 stands for the first"),
        (
            {"prompt": "{q}", "response_0": A, "response_1": B},
            "better_response_id",
            (0, 1),
            2,
            "0 stands for the first",
        ),
        ({"history": "{q}", "human_ref_A": A, "human_ref_B": B}, "labels", (0, 1), 2, "0 stands for the first"),
        ({"instruction": "{q}", "response1": A, "response2": B}, "annotator1", (1, 2), 3, "0 .tie., 1 or 2"),
        ({"instruction": "{q}", "response1": A, "response2": B}, "annotator2", (1, 2), -1, "0 .tie., 1 or 2"),
        ({"prompt": "{q}", "response_1": A, "response_2": B}, "preference_strength", (-3, 3), 5, "-3 .* to 3"),
        ({"context": "{q}", "response1": A, "response2": B}, "overall_preference", (1, 2, 3), 4, "-3 .* to 3"),
        (
            {"info": {"post": "{q}"}, "summaries": [{"text": A}, {"text": B}]},
            *("choice", (0, 1), 2, "0 stands for the first"),
        ),
    ],
)
def test_numbers_of_known_forms_are_judged_over_the_whole_file(tmp_path, form, name, good, wrong, why):
    def load(values):
        rows = [json.dumps(form | {name: v}).replace("{q}", f"{Q} {at}") for at, v in enumerate(values)]
        (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
        return load_records(["a.jsonl"], "rankings", DataConfig(), seed=0, base_dir=tmp_path)

    assert len(load(good).records) == len(good)
    with pytest.raises(UserError, match=why) as caught:
        load((*good, wrong))
    assert "a.jsonl:" in str(caught.value) and "by `where`" in str(caught.value)
