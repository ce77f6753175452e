"""Turns: roles under all their names, parts, reasoning, tools and their calls, marks of training, empty turns."""

from __future__ import annotations

import json

import pytest

from data.formats import Reject, parse
from data.records import Message
from tests.support.raw_rows import turns_of

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def read(*turns, **more):
    return parse({"messages": list(turns), **more})[1][0]


@pytest.mark.parametrize(
    ("role", "ours"),
    [("developer", "system"), ("System", "system"), ("human", "user"), ("User", "user"), ("prompter", "user")],
)
def test_names_of_roles(role, ours):
    turns = (said(role, "x"), said("user", "q"), said("Assistant", "a"))
    whole = read(*turns).messages
    assert whole[0].role == ours and read(*turns).answers == ("a",)


def test_parts_are_joined_and_pictures_refused():
    row = read(said("user", [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]), said("assistant", "c"))
    assert turns_of(row.messages) == "u:ab"
    for kind in ("image", "image_url", "video", "input_audio"):
        with pytest.raises(Reject, match="cannot see"):
            read(said("user", [{"type": kind, "value": "x"}, {"type": "text", "text": "a"}]), said("assistant", "c"))
    with pytest.raises(Reject, match="type 'hologram'"):
        read(said("user", [{"type": "hologram", "value": "x"}]))


def test_calls_results_and_tools_are_kept():
    row = read(
        said("user", "q"), said("assistant", None, tool_calls=[CALL]), said("tool", "42", tool_call_id="1"),
        said("assistant", "a"), tools=[TOOL],
    )  # fmt: skip
    user, call, result = row.messages
    assert [m.role for m in row.messages] == ["user", "assistant", "tool"] and row.answers == ("a",)
    assert json.loads(user.tools) == [TOOL] and (result.content, result.tool_call_id) == ("42", "1")
    assert json.loads(call.tool_calls)[0]["function"] == {"name": "look", "arguments": {"x": 1}}
    assert [Message.from_dict(m.as_dict()) for m in row.messages] == list(row.messages)


def test_sharegpts_calls_and_observations():
    turns = [("human", "q"), ("function_call", '{"name": "look", "arguments": {"x": 1}}'), ("observation", "42"),
             ("gpt", "a")]  # fmt: skip
    row = parse({"conversations": [{"from": r, "value": v} for r, v in turns],
                 "tools": '[{"name": "look", "parameters": {}}]'})[1][0]  # fmt: skip
    assert [m.role for m in row.messages] == ["user", "assistant", "tool"]
    assert json.loads(row.messages[1].tool_calls)[0]["function"]["name"] == "look"
    assert json.loads(row.messages[0].tools) == [TOOL]


def test_reasoning_is_put_before_the_answer():
    for turn in (
        said("assistant", "a", reasoning_content="because"),
        said("assistant", [{"type": "reasoning", "value": "because"}, {"type": "text", "value": "a"}]),
    ):
        assert read(said("user", "q"), turn).answers == ("<think>\nbecause\n</think>\n\na",)


def test_marks_of_training_are_kept():
    row = read(
        said("user", "q"), said("assistant", "x", loss=False), said("user", "r"), said("assistant", "a", weight=1)
    )
    assert [m.trained for m in row.messages] == [True, False, True]
    assert read(said("user", "q", loss_weight=0.0), said("assistant", "a", loss_weight=1.0)).answers == ("a",)
    for turns in (
        (said("user", "q"), said("assistant", "a", loss=False)),
        (said("user", "q", loss=True), said("assistant", "a")),
        (said("user", "q"), said("assistant", "a", weight=0.5)),
    ):
        with pytest.raises(Reject, match=r"train|only 0 and 1"):
            read(*turns)
    with pytest.raises(Reject, match="mask"):
        read(said("user", "q"), said("assistant", "a"), mask="Assistant")


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((said("user", "q"), said("assistant", ""), said("user", "r"), said("assistant", "a")), "turn 2 .* is empty"),
        ((said("user", "q"), said("assistant", " ")), "turn 2 .* is empty"),
        ((said("user", "q"), said("assistant", None)), "is null"),
        ((said("user", "q"), said("assistant", None, tool_calls=[CALL])), "ends with a call"),
        ((said("tool", "x"),), "role 'tool'"),
        ((said("narrator", "x"),), "role 'narrator'"),
        ((said("user", "q", tool_calls=[CALL]), said("assistant", "a")), "calls a tool"),
        ((said("user", "q"), said("assistant", "a", secret="more")), "'secret', which nothing reads"),
        ((said("user", "q"), said("assistant", "a", tool_calls=[{"function": {}}])), "names no function"),
    ],
)
def test_turns_that_cannot_be_used_are_named(turns, reason):
    with pytest.raises(Reject, match=reason):
        read(*turns)


def test_pretraining_turns_are_texts():
    assert [r.text for r in parse({"messages": [said("pretrain", "words")]})[1]] == ["words"]


@pytest.mark.parametrize(
    ("turn", "names"),
    [
        ({"role": "assistant", "content": "The Ebro.", "text": "Rain."}, "content and text"),
        ({"from": "gpt", "value": "The Ebro.", "content": "Rain."}, "content and value"),
        ({"role": "assistant", "from": "human", "content": "The Ebro."}, "role and from"),
    ],
)
def test_a_turn_that_says_two_things_is_refused(turn, names):
    with pytest.raises(Reject, match=f"has {names}, which differ; keep one"):
        parse({"messages": [{"role": "user", "content": "Name a river."}, turn]})


def test_a_turn_that_says_one_thing_twice_is_read():
    turn = {"role": "assistant", "from": "gpt", "speaker": "Ann", "content": "The Ebro.", "text": "The Ebro."}
    [row] = parse({"messages": [{"role": "user", "content": "Name a river."}, turn]})[1]
    assert row.answers == ("The Ebro.",)


def test_turns_by_number_stand_in_the_order_of_their_numbers():
    turns = {f"turn_{n}": {"human": f"q{n}", "assistant": f"a{n}"} for n in (10, 2, 1)}
    [row] = parse({"conversation": turns})[1]
    assert (turns_of(row.messages), row.answers) == ("u:q1|a:a1|u:q2|a:a2|u:q10", ("a10",))


def test_a_list_of_texts_is_a_conversation():
    [row] = parse(["Name a river.", "The Ebro."])[1]
    assert (turns_of(row.messages), row.answers) == ("u:Name a river.", ("The Ebro.",))
    with pytest.raises(Reject, match="list instead of an object"):
        parse(["Name a river."])
