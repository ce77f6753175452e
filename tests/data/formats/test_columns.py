"""No column is lost without a word: what is refused, what may stand beside, contradictions, and near fits."""

from __future__ import annotations

import json

import pytest
import yaml

from data.common.errors import UserError
from data.formats import NoFormat, Reject, Unread, parse
from data.source_settings import Source
from data.sources import DataConfig, load_records
from data.where import Where
from tests.support.raw_rows import records, turns_of, understood

PAIR = {"chosen": "The Ebro.", "rejected": "Rain."}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"question": "q", **PAIR}, "u:q"),
        ({"query": "q", **PAIR}, "u:q"),
        ({"context": "q", **PAIR}, "u:q"),
        ({"context": [{"role": "user", "content": "q"}], **PAIR}, "u:q"),
        ({"instruction": "q", "input": "i", **PAIR}, "u:q\n\ni"),
        ({"prompt": None, "question": "q", **PAIR}, "u:q"),
        ({"system": "s", "prompt": "q", **PAIR}, "s:s|u:q"),
        ({"system_prompt": "s", "prompt": "q", "history": [["a", "b"]], **PAIR}, "s:s|u:a|a:b|u:q"),
        ({"messages": [{"role": "user", "content": "q"}], "system": "s", **PAIR}, "s:s|u:q"),
        ({"system": "s", "prompt": "q", "history": [["a", "b"]], "completion": "The Ebro."}, "s:s|u:a|a:b|u:q"),
        ({"system_prompt": "s", "messages": [{"role": "user", "content": "q"},
                                             {"role": "assistant", "content": "The Ebro."}]}, "s:s|u:q"),
        ({"system": "s", "prompt": "q", "responses": ["Rain.", "The Ebro."], "rewards": [0, 1]}, "s:s|u:q"),
        ({"prompt": "q", "responses": ["Rain.", "The Ebro."], "rank": [2, 1]}, "u:q"),
        ({"prompt": "q", "responses": ["Rain.", "The Ebro."], "ratings": ["2", "3"]}, "u:q"),
    ],
)  # fmt: skip
def test_prompts_systems_histories_and_orders_arrive(row, prompt):
    [one] = parse(row)[1]
    assert turns_of(one.messages) == prompt and one.answers[0] == "The Ebro."


def _turn(said: str) -> dict[str, str]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return {"role": roles[said[0]], "content": said[2:]}


def _pair_behind(turns: str, names: tuple[str, str]) -> dict[str, list[dict[str, str]]]:
    before = [_turn(said) for said in turns.split("|")]
    return {name: [*before, _turn(f"a:{name}")] for name in names}


@pytest.mark.parametrize("names", [("chosen", "rejected"), ("accepted", "rejected"), ("response_a", "response_b")])
@pytest.mark.parametrize(
    ("beside", "turns", "whole"),
    [
        ({"prompt": "q"}, "s:s|u:q", "s:s|u:q"),
        ({"prompt": "q"}, "u:p|a:b|u:q", "u:p|a:b|u:q"),
        ({"prompt": "q"}, "u:q|a:b|u:r", "u:q|a:b|u:r"),
        ({"prompt": " q  r\n"}, "u:q r", "u:q r"),
        ({"instruction": "q", "input": "i"}, "s:s|u:q i", "s:s|u:q i"),
        ({"prompt": [_turn("u:p"), _turn("a:b"), _turn("u:q")]}, "s:s|u:p|a:b|u:q", "s:s|u:p|a:b|u:q"),
        ({"prompt": [_turn("u:p"), _turn("a:b"), _turn("u:q")]}, "u:q", "u:p|a:b|u:q"),
        ({"prompt": "q", "system": "s"}, "s:s |u:q", "s:s|u:q"),
        ({"prompt": "q", "system": "s"}, "u:q ", "s:s|u:q "),
        ({"prompt": "q"}, "a:b|u:r", "u:q|a:b|u:r"),
        ({"prompt": "q", "history": [["p", "b"]]}, "u:q", "u:p|a:b|u:q"),
        ({"prompt": "q"}, "u:p", "the row's question is neither the first nor the last one of chosen"),
        ({"prompt": "q"}, "u:p|a:b|u:q|a:b|u:r", "the row's question is neither the first nor the last one of chosen"),
        ({"prompt": [_turn("u:p"), _turn("a:b"), _turn("u:q")]}, "u:p", "neither the first nor the last one of chosen"),
        ({"prompt": "q", "system": "s"}, "s:t|u:q", "chosen begins with another system message"),
    ],
)
def test_a_prompt_that_a_conversation_holds_is_not_put_before_it_again(names, beside, turns, whole):
    row = {**beside, **_pair_behind(turns, names), **({"winner": "a"} if "response_a" in names else {})}
    if ":" not in whole:
        with pytest.raises(Reject, match=whole.replace("chosen", names[0])):
            parse(row)
        return
    [made] = parse(row)[1]
    assert (turns_of(made.messages), made.answers) == (whole, names)


@pytest.mark.parametrize("value", ["some text", ["a", "b"], {"role": "user", "content": "x"}, [{"deep": ["text"]}]])
@pytest.mark.parametrize("name", ["hint", "persona", "passage", "prefix"])
def test_unknown_columns_with_text_are_refused(name, value):
    with pytest.raises(Unread, match=f"no column '{name}'.*`ignore: \\[{name}\\]`"):
        parse({"prompt": "q", "completion": "a", name: value})
    assert parse({"prompt": "q", "completion": "a", name: value}, known=[name])[1]
    assert parse({"prompt": "q", "completion": "a", name: None})[1] and parse({"prompt": "q", name: " "})[1]


@pytest.mark.parametrize("name", ["my_score", "rank_of_all", "winner", "human_label", "reward_2", "preference"])
@pytest.mark.parametrize("value", [1, 0.5, True, [1, 2]])
def test_numbers_that_judge_are_refused(name, value):
    with pytest.raises(Unread, match=name):
        parse({"prompt": "q", "chosen": "a", "rejected": "b", name: value})


def test_what_describes_a_row_stands_beside():
    beside = {
        "id": "7", "question_id": 3, "source": "forum", "category": "c", "lang": "en", "model": "m", "url": "http://x",
        "date": "2024-01-01", "license": "MIT", "tags": ["a", "b"], "dataset": "d", "split": "train", "index": 4,
        "annotator": "me", "metadata": {"deep": "text"}, "width": 3, "has_code": False,
    }  # fmt: skip
    name, [row] = parse({"prompt": "q", "completion": "a", **beside})
    assert name == "prompt and completion" and row.category == "c"
    assert all(row.columns[key] == value for key, value in beside.items())
    with pytest.raises(Unread, match="source"):
        parse({"prompt": "q", "completion": "a", "source": "A long passage. " * 40})


def test_references_stand_beside_prompts_for_functions():
    for name in ("ground_truth", "reference_answer", "solution", "test_cases", "label", "reward_model"):
        row = parse({"prompt": "q", name: {"ground_truth": "5"} if name == "reward_model" else "5"})[1][0]
        assert name in row.columns and not row.answers


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", **PAIR, "score_chosen": 2, "score_rejected": 9}, "2 of chosen and 9 of rejected"),
        ({"prompt": "q", **PAIR, "chosen_rating": 2, "rejected_rating": 3}, "against the choice"),
        ({"prompt": "q", **PAIR, "margin": -1}, "margin"),
        ({"prompt": "q", **PAIR, "score_chosen": 2}, "without score_rejected"),
        ({"prompt": "q", **PAIR, "score_chosen": 9, "score_rejected": 2, "chosen_rating": 1, "rejected_rating": 1},
         "contradict"),
        ({"prompt": "q", **PAIR, "messages": [{"role": "user", "content": "other"}]}, "something else"),
        ({"prompt": "q", "completion": "a", "label": True, "kto_tag": False}, "contradict"),
        ({"prompt": "q", "completion": "a", "label": "maybe"}, "neither liked"),
        ({"messages": [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "He."}]}, "image"),
        ({"prompt": "q", "completion": "a", "images": ["x.jpg"]}, "column images"),
        ({"conversation_a": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}],
          "conversation_b": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "y"}],
          "winner": "model_a"}, "differ before"),
        ({"prompt": "q", "completion_a": "a", "completion_b": "b", "preference": "perhaps"}, "neither side"),
        ({"instruction": "i", "output": "the river", "text": "of another row"}, "different rows"),
    ],
)  # fmt: skip
def test_contradictions_are_named(row, reason):
    with pytest.raises(Reject, match=reason):
        parse(row)


def test_equal_scores_are_a_tie():
    found = understood([{"prompt": "q", **PAIR, "score_chosen": 8.5, "score_rejected": 8.5},
                        {"prompt": "q", **PAIR, "score_chosen": 8.5, "score_rejected": 8}])  # fmt: skip
    assert [one.row.ranks for one in found] == [(0, 0), (0, 1)] and len(records(found, "rankings")) == 1


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"theme": "q and more", "solution": "a"}, {"prompt": "theme", "completion": "solution"}),
        ({"key": "q", "value": "a"}, {"prompt": "key", "completion": "value"}),
        ({"frage": "q", "antwort": "a"}, {"prompt": "frage", "completion": "antwort"}),
        ({"problem": "q", "good": "a", "other": "b"}, {"prompt": "problem", "chosen": "good", "rejected": "other"}),
        ({"pergunta": "q", "resposta": "a"}, {"prompt": "pergunta", "completion": "resposta"}),
        ({"问题": "q", "回答": "a"}, {"prompt": "问题", "completion": "回答"}),
        ({"question": "q", "response_a": "a", "response_b": "b", "task": "A", "who": "b"}, {"preference": "who"}),
        ({"chat_log": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
         {"messages": "chat_log"}),
        ({"article": "words"}, {"text": "article"}),
        ({"Problem Text": "q", "the answer: full": "a"}, {"prompt": "Problem Text", "completion": "the answer: full"}),
    ],
)  # fmt: skip
def test_the_line_to_paste_works(row, columns):
    with pytest.raises(NoFormat) as caught:
        parse(row)
    first = caught.value.near[0]
    if row.get("article"):
        first = next(near for near in caught.value.near if near.format == "text")
    assert dict(first.columns) == columns and 1 <= len(caught.value.near) <= 2
    assert f"`{first.paste}`" in str(caught.value)
    pasted = yaml.safe_load(f"{{{first.paste}}}")
    name, found = parse(row, **pasted)
    assert name == first.format and found


def test_every_suggestion_can_be_pasted():
    rows = [{"problem": "q", "salution": "a", "hints": "h", "level": "1"}, {"a": "x", "b": "y", "c": "z", "d": "w"},
            {"prompt": "q", "completoin": "a"}, {"story": "s", "moral": "m"}]  # fmt: skip
    for row in rows:
        with pytest.raises(Reject) as caught:
            parse(row)
        for near in getattr(caught.value, "near", ()):
            assert parse(row, **yaml.safe_load(f"{{{near.paste}}}"))[0] == near.format
        if isinstance(caught.value, Unread):
            assert parse(row, **yaml.safe_load(f"{{{caught.value.paste}}}"))
            assert "`columns: {completion: completoin}`" in str(caught.value)


def test_a_column_that_gives_way_is_not_lost():
    row = {"prompt": "instructions of the annotators", "question": "q", "answer": "a"}
    with pytest.raises(Unread, match="theirs"):
        parse(row, columns={"prompt": "question"})
    assert turns_of(parse(row, columns={"prompt": "question"}, ignore=["prompt"])[1][0].messages) == "u:q"


def test_ignored_columns_are_still_offered_to_functions():
    assert parse({"prompt": "q", "hint": "h"}, ignore=["hint"])[1][0].columns == {"hint": "h"}


def test_an_unknown_format_is_a_wrong_setting():
    with pytest.raises(UserError, match="Did you mean 'alpaca'"):
        parse({"prompt": "q"}, format="alpacca")


def test_a_source_is_refused_once_for_its_unread_columns(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": "a", "persona": "p"} for i in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def load(**config):
        return load_records(["a.jsonl"], "demonstrations", DataConfig(**config), seed=0, base_dir=tmp_path)

    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert message.count("ignore: [persona]") == 1 and "persona (50 rows)" in message and "a.jsonl:1" in message
    assert len(load(ignore="persona").records) == len(load(ignore=["per*"]).records) == 50


def test_prompts_with_references_say_how_they_become_demonstrations(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "q", "solution": "a"}) + "\n")
    config = DataConfig()
    [prompt] = load_records(["a.jsonl"], "prompts", config, seed=0, base_dir=tmp_path).records
    assert prompt.columns == {"solution": "a"}
    with pytest.raises(UserError, match=r"`columns: {completion: solution}`"):
        load_records(["a.jsonl"], "demonstrations", config, seed=0, base_dir=tmp_path)


@pytest.mark.parametrize("name", ["stars", "chosen", "best_index", "winner_id", "picked", "feedback", "评分"])
def test_more_names_that_judge(name):
    for row in ({"prompt": "q", "completion": "a"}, {"prompt": "q", "chosen": "a", "rejected": "b"}):
        if name not in row:
            with pytest.raises((Unread, Reject), match=name):
                parse({**row, name: 3})


def test_numbers_in_lists_and_objects_next_to_responses_are_not_lost():
    several = {"prompt": "q", "responses": ["a", "b"]}
    for more in ({"order": [1, 0]}, {"pairs": [[0, 1]]}, {"notes": {"score": 3}}, {"ranking": [2, 1]}):
        with pytest.raises(Unread, match=next(iter(more))):
            parse({**several, **more})
    assert parse({"prompt": "q", "completion": "a", "tokens_of": [3, 4]})[1]


def test_what_is_no_text_whatever_its_column_is_called():
    stated = {"u": "https://x.org/a?b=c", "t": "2024-05-01T10:00:00Z", "n": "1,234", "p": "12%", "b": "True",
              "i": "123e4567-e89b-12d3-a456-426614174000", "h": "d41d8cd98f00b204e9800998ecf8427e"}  # fmt: skip
    assert parse({"prompt": "q", "completion": "a", **stated})[1]
    for name, value in (("rating_of_it", "4"), ("u", "see https://x.org"), ("n", "4 of them"), ("t", "in 2024-05-01")):
        with pytest.raises(Unread, match=name):
            parse({"prompt": "q", "completion": "a", name: value})


@pytest.mark.parametrize(
    ("row", "line", "prompt", "answer"),
    [
        ({"inputs": {"question": "q"}, "outputs": {"answer": "a"}},
         'columns: {prompt: "inputs.question", completion: "outputs.answer"}', "u:q", "a"),
        ({"row_idx": 0, "row": {"prompt": "q", "completion": "a"}, "truncated_cells": []},
         'columns: {prompt: "row.prompt", completion: "row.completion"}', "u:q", "a"),
        ({"request": {"model": "m", "messages": [{"role": "user", "content": "q"}]},
          "response": {"choices": [{"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}},
         'columns: {prompt: "request.messages", completion: "response.choices.0.message"}, ignore: [request, response]',
         "u:q", "a"),
        ({"question": "q", "answer": {"text": "a"}}, 'columns: {prompt: question, completion: "answer.text"}', "u:q",
         "a"),
        ({"question": "q", "answer": ["a", "b"]},
         'columns: {prompt: question, completion: "answer.0"}, ignore: [answer]', "u:q", "a"),
    ],
)  # fmt: skip
def test_what_stands_inside_objects_is_mapped_by_its_path(row, line, prompt, answer):
    with pytest.raises(Reject) as caught:
        parse(row)
    assert f"`{line}`" in str(caught.value)
    before = json.dumps(row)
    [found] = parse(row, **yaml.safe_load(f"{{{line}}}"))[1]
    assert (turns_of(found.messages), found.answers, json.dumps(row)) == (prompt, (answer,), before)


def test_what_is_left_inside_an_object_is_not_lost():
    row = {"example": {"question": "q", "answer": "a", "hint": "h"}}
    with pytest.raises(Unread, match="example"):
        parse(row, columns={"prompt": "example.question", "completion": "example.answer"})
    with pytest.raises(NoFormat):
        parse(row, columns={"prompt": "example.questions", "completion": "example.answer.text"})


def test_a_path_is_checked_as_a_column_is(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"row": {"q": "what?", "a": "that"}}) + "\n")

    def load(**columns):
        source = {"path": "a.jsonl", "columns": columns}
        return load_records([Source(**source)], "demonstrations", DataConfig(), seed=0, base_dir=tmp_path).records

    assert load(prompt="row.q", completion="row.a")[0].answer == "that"
    with pytest.raises(UserError, match=r"no row has a column 'rows\.q'"):
        load(prompt="rows.q", completion="row.a")


def test_numbers_with_a_comma_before_their_decimals():
    def score(value):
        return parse({"prompt": "q", "response": "a", "score": value})[1][0].scores

    assert (score("4,5"), score("-0,25"), score("3,14159"), score("4.5")) == ((4.5,), (-0.25,), (3.14159,), (4.5,))
    with pytest.raises(Reject, match="1,234"):
        score("1,234")


def test_a_row_written_as_json_inside_json_is_read():
    assert parse(json.dumps({"prompt": "q", "completion": "a"}))[1][0].answers == ("a",)
    assert parse("{not JSON}")[1][0].text == "{not JSON}" and parse("{}")[1][0].text == "{}"


@pytest.mark.parametrize(
    ("name", "value", "other", "where"),
    [
        ("tie", True, False, "tie != True"),
        ("is_swapped", "yes", "no", "is_swapped != 'yes'"),
        ("spam", "TRUE", "FALSE", "spam != 'TRUE'"),
        ("is_valid", False, True, "is_valid != False"),
        ("Keep", "no", "yes", "Keep != 'no'"),
        ("to exclude", True, False, "row['to exclude'] != True"),
        ("is_tie", 1, 0, "is_tie != 1"),
        ("flipped", 1.0, 0.0, "flipped != 1.0"),
        ("deleted", "1.0", "0.0", "deleted != '1.0'"),
        ("keep", 0, 1, "keep != 0"),
        ("draw", True, False, "draw != True"),
        ("is_equal", 1, 0, "is_equal != 1"),
    ],
)
def test_a_switch_that_rules_a_row_out_is_no_metadata(name, value, other, where):
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(Unread) as caught:
        parse({**row, name: value})
    assert f"to leave such rows out `where: {where}`" in str(caught.value)
    assert not Where(where)({**row, name: value})
    assert Where(where)({**row, name: other})
    assert parse({**row, name: other})[1][0].answers == ("a", "b")
