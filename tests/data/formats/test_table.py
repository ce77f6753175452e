"""Every entry of the table: its example is read by it and by no other, with the order and the roles that it says."""

from __future__ import annotations

from typing import Any

import pytest

from data.formats import FORMATS, Reject, Unread, parse
from data.formats.rows import REVIEWED
from data.judgements import gathered
from data.parsed_rows import Parsed
from tests.support.raw_rows import records, turns_of, understood

Q = "u:Name a river."
BETTER, WORSE = ("The Ebro.", "Rain."), (0, 1)
EXAMPLES = {
    "message tree": (Q, BETTER, WORSE),
    "message tree without a head": (Q, BETTER, WORSE),
    "tab-separated ranking": ("", ("The Ebro.", "A river.", "Rain."), (0, 1, 2)),
    "ranked answers": (Q, BETTER, WORSE),
    "ranked answers to a question": (Q, BETTER, (1, 2)),
    "scored answers": (Q, BETTER, (1, 2)),
    "UltraFeedback": (Q, BETTER, WORSE),
    "responses and annotations": (Q, BETTER, WORSE),
    "responses and the best": (Q, BETTER, WORSE),
    "several samples": (Q, BETTER, WORSE),
    "PKU-SafeRLHF": (Q, BETTER, WORSE),
    "arena battle": (Q, BETTER, (0, 0)),
    "arena outcomes": (Q, BETTER, WORSE),
    "two responses": (Q, BETTER, WORSE),
    "PandaLM": (Q, BETTER, WORSE),
    "alpaca_farm pairs": (Q, BETTER, WORSE),
    "SHP": (Q, BETTER, WORSE),
    "WebGPT": (Q, BETTER, WORSE),
    "summaries": ("u:A walk\n\nI walked along the Ebro.", ("A walk along a river.", "Nothing."), WORSE),
    "rated summaries": ("u:A walk\n\nI walked along the Ebro.", ("A walk along a river.",), (0,)),
    "stack exchange pairs": (Q, BETTER, WORSE),
    "completions with pass rates": ("u:Return 1.", ("return 1", "return 2"), WORSE),
    "lists of chosen and rejected": (Q, ("The Ebro.", "Rain.", "Snow."), (0, 1, 1)),
    "HH transcripts": (Q, BETTER, WORSE),
    "preference": (Q, BETTER, WORSE),
    "orca pairs": ("s:Speak like a pirate.|" + Q, BETTER, WORSE),
    "next steps": (Q, ("The Ebro.", "The Rain."), WORSE),
    "distilabel's Orca pairs": (Q, BETTER, WORSE),
    "alpaca preference": (Q + "\n\nIn Spain.", BETTER, WORSE),
    "chosen_response and rejected_response": (Q, BETTER, WORSE),
    "response_chosen and response_rejected": (Q, BETTER, WORSE),
    "response and rejected_response": (Q, BETTER, WORSE),
    "OpenAI preference": (Q, BETTER, WORSE),
    "chosen_messages and rejected_messages": (Q, BETTER, WORSE),
    "better and worse": (Q, BETTER, WORSE),
    "several sides": (Q, ("The Ebro.", "Rain.", "Snow."), (1, 2, 3)),
    "two sides": (Q, BETTER, WORSE),
    "transcript": ("s:Be brief.|" + Q, BETTER[:1], (0,)),
    "messages": ("s:Be brief.|" + Q, BETTER[:1], (0,)),
    "texts in turn": (Q, BETTER[:1], (0,)),
    "paired turns": (Q, BETTER[:1], (0,)),
    "sharegpt": ("s:Be brief.|" + Q, BETTER[:1], (0,)),
    "turns": ("s:Be brief.|" + Q, BETTER[:1], (0,)),
    "messages with a thumb": (Q, ("Rain.",), (0,)),
    "messages with a rejected answer": (Q, BETTER, WORSE),
    "user and assistant": (Q, BETTER[:1], (0,)),
    "MOSS": ("s:Be brief.|" + Q, BETTER[:1], (0,)),
    "ChatGPT export": (Q, BETTER[:1], (0,)),
    "prompt and completion": ("s:Speak like a pirate.|" + Q, BETTER[:1], (0,)),
    "question and answer": ("u:What is 2 + 3?", ("5",), (0,)),
    "query and response": (Q + "|a:The Po.|u:And in Spain?", BETTER[:1], (0,)),
    "thumbs": (Q, ("Rain.",), (0,)),
    "scored completions": (Q, BETTER[:1], (0,)),
    "self-instruct": ("u:Add one.\n\n1", ("2",), (0,)),
    "alpaca": ("u:Translate.\n\nel río", ("the river",), (0,)),
    "alpaca with several outputs": (Q, ("The Ebro.", "The Po."), (0, 0)),
    "instruction and response": ("u:Which river?\n\nThe Ebro flows through Spain.", BETTER[:1], (0,)),
    "problem and solution": ("u:What is 2 + 3?", ("Two and three are 5.",), (0,)),
    "inputs and targets": (Q, BETTER[:1], (0,)),
    "input and output": (Q, BETTER[:1], (0,)),
    "prompts": ("u:What is 2 + 3?", (), ()),
    "asked and answered": (Q, BETTER[:1], (0,)),
    "benchmark questions": (Q, (), ()),
    "sampling report": (Q, BETTER, (0, 0)),
    "multiple choice": ("u:Which one is a river?\n\nA. Rain\nB. Ebro", ("Ebro",), (0,)),
    "choices in columns": ("u:Which one is a river?\n\nA. Rain\nB. Ebro", ("Ebro",), (0,)),
    "text": ("", (), ()),
    "labelled text": ("", (), ()),
    "benchmark answers": ("", (), ()),
}


def test_every_entry_has_a_case_and_an_example():
    assert list(EXAMPLES) == list(FORMATS)
    assert all(f.example and f.columns and (f.required or f.finds) for f in FORMATS.values())


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_is_read_as_it_is_meant(name):
    found, [row] = parse(FORMATS[name].example, "f:1")
    assert (turns_of(row.messages), row.answers, row.ranks) == EXAMPLES[name]
    assert found == ("prompt and completion" if name == "thumbs" else name)
    assert parse(FORMATS[name].example, format=name)[0] == name


@pytest.mark.parametrize("name", FORMATS)
def test_an_example_with_one_more_text_is_refused_by_its_name(name):
    with pytest.raises(Unread, match="'remarks'") as caught:
        parse({**FORMATS[name].example, "remarks": "Something that matters."})
    assert caught.value.columns == ("remarks",) and caught.value.paste == "ignore: [remarks]"
    assert parse({**FORMATS[name].example, "remarks": "Something."}, ignore=["rem*"])[1]


def test_texts_and_labels():
    assert parse({"text": "t"})[1][0].text == "t"
    row = parse({"text": "A fine film.", "label": 1})[1][0]
    assert (row.text, row.category) == ("A fine film.", "1")
    mapped = parse({"text": "A fine film.", "label": "good"}, columns={"prompt": "text", "completion": "label"})[1][0]
    assert (turns_of(mapped.messages), mapped.answers) == ("u:A fine film.", ("good",))


@pytest.mark.parametrize("label", ["False", False, -1, "-1", 0, 0.0, "0", "bad", "No", "dislike", "thumbs_down"])
@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_a_thumbs_down_is_never_a_demonstration_nor_a_document(label, name):
    for row in (
        {"prompt": "q", "completion": "bad answer", name: label},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad answer"}], name: label},
        {"instruction": "q", "output": "bad answer", name: label},
    ):
        found = understood([row])
        assert found[0].row is not None and found[0].row.scores == (0.0,)
        assert not records(found, "demonstrations") and not records(found, "documents")
        assert len(records(found, "prompts")) == 1


@pytest.mark.parametrize("label", ["True", True, 1, "1", 1.0, "good", "yes", "liked"])
def test_a_thumbs_up_is_a_demonstration(label):
    [one] = records(understood([{"prompt": "q", "completion": "a", "label": label}]), "demonstrations")
    assert one.answer == "a"


def test_liked_and_not_liked_under_one_prompt_are_a_ranking():
    rows = [("q", "a", True), ("q", "b", False), ("q", "c", False), ("other", "d", True), ("r", "e", 1), ("r", "f", -1)]
    found = understood({"prompt": p, "completion": c, "label": label} for p, c, label in rows)
    first, second = records(found, "rankings")
    assert (first.answers, first.ranks, first.prompt.text) == (("a", "b", "c"), (0, 1, 1), "q")
    assert (second.answers, second.ranks) == (("e", "f"), (0, 1))
    left = [one for one in gathered(found, "rankings") if one.row.judged]
    assert [one.row.answers for one in left] == [("d",)]
    assert [d.answer for d in records(found, "demonstrations")] == ["a", "d", "e"]


def test_an_answer_with_two_labels_is_left_out_of_its_ranking():
    rows = [("q", "a", True), ("q", "a", False), ("q", "b", False), ("q", "c", True)]
    found = understood({"prompt": p, "completion": c, "label": label} for p, c, label in rows)
    [ranking] = records(found, "rankings")
    assert ranking.answers == ("c", "b")


def test_scores_of_single_answers_rank_them_and_choose_the_demonstration():
    rows = [("q", "a", 1), ("q", "b", 4), ("q", "c", 4), ("r", "d", 0)]
    found = understood({"prompt": p, "response": c, "helpfulness": s, "verbosity": 2} for p, c, s in rows)
    [ranking] = records(found, "rankings")
    assert (ranking.answers, ranking.ranks, ranking.scores) == (("b", "c", "a"), (0, 0, 1), (4.0, 4.0, 1.0))
    assert sorted(d.answer for d in records(found, "demonstrations")) == ["b", "d"]


def test_a_dump_of_messages_is_put_together():
    rows = [
        {"message_id": "3", "parent_id": "1", "text": "worse", "role": "assistant", "rank": 1},
        {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter", "rank": None},
        {"message_id": "2", "parent_id": "1", "text": "better", "role": "assistant", "rank": 0},
        {"message_id": "4", "parent_id": "2", "text": "more?", "role": "prompter", "rank": None},
        {"message_id": "5", "parent_id": "4", "text": "more.", "role": "assistant", "rank": None},
        {"message_id": "6", "parent_id": "1", "text": "gone", "role": "assistant", "rank": 2, "deleted": True},
    ]
    found = understood(rows)
    assert all(isinstance(one, Parsed) and one.row is not None for one in found)
    [ranking] = records(found, "rankings")
    assert (turns_of(ranking.prompt.messages), ranking.answers) == ("u:q", ("better", "worse"))
    demonstrations = {turns_of(d.prompt.messages): d.answer for d in records(found, "demonstrations")}
    assert demonstrations == {"u:q": "better", "u:q|a:better|u:more?": "more."}


def test_rows_that_are_lists_of_turns_or_texts():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert parse(turns)[1][0].answers == ("a",)
    assert parse("a line")[1][0].text == "a line"


USER, GOOD = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        ({"prompt": "q", "prompt_id": "1", "messages": [USER, GOOD]}, "u:q", ("a",)),
        ({"conversations": ["q", "b", "r", "a"], "source": "lima"}, "u:q|a:b|u:r", ("a",)),
        ({"conversation": [{"input": "q", "output": "a"}], "num_turns": 1}, "u:q", ("a",)),
        ({"kind": "NLI", "input": "q", "target": "a"}, "u:q", ("a",)),
        ({"id": "1", "system_prompt": "s", "question": "q", "response": "a"}, "s:s|u:q", ("a",)),
        ({"INSTRUCTION": "q", "RESPONSE": "a", "SOURCE": "x"}, "u:q", ("a",)),
        ({"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}],
          "turns": 1, "num_responses": 2}, "u:q", ("a", "b")),
        ({"messages": [USER, GOOD], "rejected_messages": [USER, {"role": "assistant", "content": "b"}]}, "u:q",
         ("a", "b")),
        ({"instruction": "q", "output_1": "b", "output_2": "a", "generator_1": "x", "preference": 1.9}, "u:q",
         ("a", "b")),
        ({"instruction": "q", "chosen": [USER, GOOD], "rejected": [USER, {"role": "assistant", "content": "b"}],
          "chosen-rating": 5, "rejected-rating": 3, "chosen-model": "m"}, "u:q", ("a", "b")),
        ({"question_id": "1", "category": "c", "cluster": "d", "turns": [{"content": "q"}]}, "u:q", ()),
    ],
)  # fmt: skip
def test_files_that_are_often_met(row, prompt, answers):
    [one] = parse(row)[1]
    assert (turns_of(one.messages), one.answers) == (prompt, answers)


@pytest.mark.parametrize("name", ["was_safe", "wasSafe", "human-score", "Reward", "correct", "harmful"])
def test_a_judgement_is_not_lost_whatever_its_name_looks_like(name):
    with pytest.raises(Unread, match=name):
        parse({"prompt": "q", "response": "a", "category": {"drugs": True}, name: False})


WEIRD: tuple[Any, ...] = (
    *(None, "", " ", "text", 0, -1, 1.5, True, float("nan"), 10**400, "[", "[1]", "\ud800"),
    *([], {}, [None], [[]], [{}], [1, "a"], {"a": []}, {"role": "user"}, [{"role": "user", "content": 3}]),
)


def spoilt(value, weird):
    """The value with each of its parts, one at a time, in the weird one's place."""
    yield weird
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in spoilt(inner, weird))
            yield {k: v for k, v in value.items() if k != key}
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from ([*value[:i], other, *value[i + 1 :]] for other in spoilt(inner, weird))


@pytest.mark.parametrize("name", FORMATS)
def test_a_spoilt_row_is_read_or_refused_and_nothing_else(name):
    for weird in WEIRD:
        for row in spoilt(FORMATS[name].example, weird):
            for forced in (None, name):
                try:
                    rows = parse(row, format=forced)[1]
                except Reject as error:
                    assert str(error)
                else:
                    assert all(len(r.answers) == len(r.ranks) for r in rows)
                    records([Parsed("f:1", name, r) for r in rows], "rankings")


def test_messages_of_a_dump_without_their_parents_are_named():
    def node(own, parent, role="prompter"):
        return {"message_id": own, "parent_id": parent, "text": "t" + own, "role": role}

    found = understood([node("1", None), node("2", "1", "assistant"), node("3", "gone", "assistant"), node("4", "5"),
                        node("5", "4", "assistant"), node("2", "1", "assistant")])  # fmt: skip
    assert len([one for one in found if one.row]) == 1
    reasons = sorted(one.reason for one in found if one.row is None)
    assert len(reasons) == 4 and "came before" in reasons[0] and all("parent" in r for r in reasons[1:])


def test_turns_with_what_a_server_wrote_beside_them_are_read():
    more = {"country": None, "redacted": False, "toxic": False, "turn_identifier": 7, "header": {"user-agent": "x"}}
    turns = [{"role": "user", "content": "q"} | more, {"role": "assistant", "content": "a"} | more]
    _, [row] = parse({"conversation": turns, "toxic": False, "redacted": False})
    assert (turns_of(row.messages), row.answers) == ("u:q", ("a",))


def _tree(*replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    said = [{"text": f"a{at}", "role": "assistant", "rank": at, **one} for at, one in enumerate(replies)]
    return {"message_tree_id": "1", "prompt": {"text": "q", "role": "prompter", "replies": said}, **more}


def test_messages_that_a_review_turned_down_are_left_out():
    turned_down = {"review_result": False, "replies": [{"text": "more?", "role": "prompter", "replies": []}]}
    [made] = parse(_tree({}, turned_down, {"review_result": None}, {"review_result": True}))[1]
    assert (made.answers, made.notes) == (("a0", "a2", "a3"), (REVIEWED,))
    [alone] = parse(_tree(turned_down))[1]
    assert (turns_of(alone.messages), alone.answers, alone.notes) == ("u:q", (), (REVIEWED,))


@pytest.mark.parametrize("state", ["aborted_low_grade", "halted_by_moderator"])
def test_a_tree_that_was_given_up_is_rejected(state):
    with pytest.raises(Reject, match=f"tree_state is {state}"):
        parse(_tree({}, {}, tree_state=state))
    first = {"message_id": "1", "text": "q", "role": "prompter", "replies": [], "tree_state": state}
    with pytest.raises(Reject, match=f"tree_state is {state}"):
        parse(first)
    with pytest.raises(Reject, match="review_result is false"):
        parse({**first, "tree_state": "ready_for_export", "review_result": False})
    assert parse(_tree({}, {}, tree_state="ready_for_export"))[1][0].answers == ("a0", "a1")
