"""Every format from a row to records, and rows that are wrong."""

from __future__ import annotations

import pytest

from data.derive import as_demonstration, as_documents, as_prompt, as_ranking
from data.formats import CELLS, DUPLICATE, FORMATS, MERGED, Reject, parse
from data.formats.rows import CLOSED
from data.records import group_of

USER = {"role": "user", "content": "q"}
HH = "\n\nHuman: q\n\nAssistant: mm\n\nHuman: more\n\nAssistant: "


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def turns(prompt) -> str:
    return "|".join(f"{m.role[0]}:{m.content}" for m in prompt.messages)


RANKINGS = [
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}, "u:q"),
    ("preference", {"prompt": [USER], "chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")]}, "u:q"),
    ("preference", {"chosen": [USER, said("assistant", "a")], "rejected": [USER, said("assistant", "b")]}, "u:q"),
    ("preference", {"prompt": "q", "chosen": [USER, said("assistant", "a")],
                    "rejected": [USER, said("assistant", "b")]}, "u:q"),
    ("preference", {"chosen": "a", "rejected": "b", "prompt": None}, ""),
    ("preference", {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
                    "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}, "s:s|u:q"),
    ("HH transcripts", {"chosen": HH + "a", "rejected": HH + "b"}, "u:q|a:mm|u:more"),
    ("ranked answers", {"prompt": "q", "responses": ["a", "b"]}, "u:q"),
    ("ranked answers", {"prompt": "q", "responses": ["b", "a"], "ranks": [1, 0]}, "u:q"),
    ("ranked answers", {"responses": ["b", "a"], "scores": [-1, 2.5]}, ""),
    ("scored answers", {"prompt": "q", "answers": [{"text": "b", "score": 1}, {"text": "x", "score": None},
                                                   {"text": "a", "score": 7}]}, "u:q"),
    ("tab-separated ranking", {CELLS: ["a", "", "b", " "]}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "prompt"), RANKINGS)
def test_rankings_of_every_format(name, row, prompt):
    found, [parsed] = parse(row, "f:1")
    [ranking] = as_ranking(parsed)
    assert (found, turns(ranking.prompt)) == (name, prompt)
    assert ranking.answers == ("a", "b") and ranking.ranks == (0, 1)
    assert ranking.prompt.source == "f:1"
    assert ranking.prompt.group == group_of(ranking.prompt.messages, ranking.answers)
    assert as_demonstration(parsed)[0].answer == "a"


DEMONSTRATIONS = [
    ("prompt and completion", {"prompt": "q", "completion": "a"}, "u:q"),
    ("prompt and completion", {"prompt": [USER], "completion": [said("assistant", "a")]}, "u:q"),
    ("prompt and completion", {"prompt": "q", "completion": "a", "label": True}, "u:q"),
    ("messages", {"messages": [said("system", "s"), USER, said("assistant", "x"), said("user", "y"),
                               said("assistant", "a")]}, "s:s|u:q|a:x|u:y"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
     "s:s|u:q"),
    ("alpaca", {"instruction": "do", "input": "this", "output": "a"}, "u:do\n\nthis"),
    ("alpaca", {"instruction": "do", "input": "", "output": "a", "history": [["q", "b"]]}, "u:q|a:b|u:do"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "prompt"), DEMONSTRATIONS)
def test_demonstrations_of_every_format(name, row, prompt):
    found, [parsed] = parse(row)
    [demonstration] = as_demonstration(parsed)
    assert (found, turns(demonstration.prompt), demonstration.answer) == (name, prompt, "a")
    assert turns(as_prompt(parsed)[0]) == prompt
    with pytest.raises(Reject, match="a ranking needs two"):
        as_ranking(parsed)


def test_self_instruct_has_several_in_a_row():
    name, rows = parse(
        {"instruction": "add", "instances": [{"input": "1", "output": "2"}, {"input": "", "output": "3"}]}
    )
    demonstrations = [as_demonstration(r)[0] for r in rows]
    assert name == "self-instruct"
    assert [(turns(d.prompt), d.answer) for d in demonstrations] == [("u:add\n\n1", "2"), ("u:add", "3")]


def test_prompts_and_texts():
    assert parse({"prompt": "q", "category": "c"})[1][0].category == "c"
    assert turns(as_prompt(parse({"prompt": [said("system", "s"), USER]})[1][0])[0]) == "s:s|u:q"
    assert as_documents(parse({"text": "t"})[1][0])[0].text == "t"
    with pytest.raises(Reject, match="no prompt"):
        as_prompt(parse({"text": "t"})[1][0])


def test_documents_are_transcripts_texts_or_answers():
    def texts(row):
        return [d.text for d in as_documents(parse(row)[1][0])]

    assert texts({"prompt": "q", "responses": ["a", "b"]}) == ["user : q\nassistant : a", "user : q\nassistant : b"]
    assert texts({"prompt": "Once.", "completion": " Then."}) == ["Once. Then."]
    assert texts({CELLS: ["a", "b"]}) == ["a", "b"]
    assert texts({"prompt": "q"}) == ["user : q"]


def test_margins_scores_and_ties():
    assert parse({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "1.5"})[1][0].scores == (1.5, 0.0)
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 9, "score_rejected": 4}
    assert parse(row)[1][0].scores == (9.0, 4.0)
    answers = [{"text": t, "score": s} for t, s in (("a", 2), ("b", 5), ("c", 2))]
    tied = parse({"prompt": "q", "answers": answers})[1][0]
    assert (tied.answers, tied.ranks, tied.scores) == (("b", "a", "c"), (0, 1, 1), (5.0, 2.0, 2.0))
    with pytest.raises(Reject, match="all its responses tie"):
        as_ranking(parse({"prompt": "q", "answers": [{"text": t, "score": 1} for t in "ab"]})[1][0])


def test_repeated_answers_keep_their_best_place():
    row = parse({CELLS: ["a", "b", "a", "c", "b"]})[1][0]
    assert (row.answers, row.ranks, row.notes) == (("a", "b", "c"), (0, 1, 3), (DUPLICATE, DUPLICATE))
    with pytest.raises(Reject, match="has 1 different response; a ranking needs two"):
        as_ranking(parse({CELLS: ["a", "a"]})[1][0])


def test_neighbouring_turns_are_joined():
    row = parse({"messages": [said("user", "a"), said("user", "b"), said("assistant", "c")]})[1][0]
    assert turns(as_prompt(row)[0]) == "u:a\n\nb" and row.notes == (MERGED,)


def test_group_by_names_the_group():
    assert parse({"prompt": "q", "topic": 3}, group_by="topic")[1][0].group == "topic=3"
    with pytest.raises(Reject, match="no column 'topic'"):
        parse({"prompt": "q"}, group_by="topic")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q"}, "no known format has the columns question. Nearest: .*`columns: {prompt: question}`"),
        ({}, "columns \\(none\\)"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "q", "chosen": 3, "rejected": ["a", "b"]}, "expected"),
        ({"prompt": {"a": 1}}, "role None"),
        ({"prompt": " "}, "empty"),
        ({"prompt": "a\x00b"}, "NUL"),
        ({"prompt": "q", "responses": "a"}, "not a list"),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [0]}, "differ in number"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [0, float("nan")]}, "not a finite number"),
        ({"prompt": "q", "answers": [{"text": "a"}]}, "none of its responses has a score"),
        ({"prompt": "q", "completion": "a", "label": 4}, "neither liked .* nor not"),
        ({"messages": [said("tool", "x")]}, "role 'tool'"),
        ({"messages": []}, "empty"),
        ({"chosen": HH + "a", "rejected": HH.replace("mm", "other") + "b"}, "differ before their last turn"),
        ({"chosen": HH + "a\n\nHuman: x", "rejected": HH + "b"}, "does not end"),
        ({"prompt": "q", "completion": "a", "finished": "no"}, "finished"),
        ({"instruction": "x", "instances": []}, "no instances"),
    ],
)
def test_wrong_rows_say_why(row, reason):
    with pytest.raises(Reject, match=reason):
        parse(row)


def test_every_format_is_listed_with_its_columns():
    assert all(f.columns for f in FORMATS.values())
    assert len({f.columns for f in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize("mark", ["</s>", " </s>\n", "<|im_end|>", "<|im_end|>\n<|endoftext|>", "<|eot_id|>", "<eos>"])
def test_marks_that_close_a_turn_are_taken_off_and_counted(mark: str) -> None:
    """The run's own template sets one; with the data's the response would end twice."""
    _, [row] = parse({"prompt": "Name a river.", "completion": f"The Ebro.{mark}"}, "f:1")
    assert (row.answers, row.notes) == (("The Ebro.",), (CLOSED,))
    _, [row] = parse({"prompt": "Name a river.", "chosen": f"The Ebro.{mark}", "rejected": f"Rain.{mark}"}, "f:1")
    assert (row.answers, row.notes) == (("The Ebro.", "Rain."), (CLOSED, CLOSED))
    turns = [("user", "Name one."), ("assistant", f"The Ebro.{mark}"), ("user", "One more."), ("assistant", "The Po.")]
    _, [row] = parse({"messages": [{"role": role, "content": text} for role, text in turns]}, "f:1")
    assert [m.content for m in row.messages] + list(row.answers) == ["Name one.", "The Ebro.", "One more.", "The Po."]
    assert row.notes == (CLOSED,)


@pytest.mark.parametrize("text", ["<s>wrong</s>", "a </s> b", "</s>", "an <eos> b", "The Ebro.\n"])
def test_marks_that_are_text_stay(text: str) -> None:
    _, [row] = parse({"prompt": "Name a river.", "completion": text}, "f:1")
    assert (row.answers, row.notes) == ((text,), ())
