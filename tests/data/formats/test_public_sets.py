"""Data sets that many people have, by small rows in their shape: roles, order, scores and reasoning arrive."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data.checks import check_files
from data.common.errors import UserError
from data.formats import Reject, Unread, parse
from data.formats.dumps import BRANCHES
from data.formats.public_sets import PUBLIC_SETS
from data.source_settings import DataConfig, Source
from data.sources import load_records
from tests.support.raw_rows import records, turns_of, understood

Q, ASKED = "Name a river.", "u:Name a river."
GOOD, BAD = "The Ebro.", "Rain."
THOUGHT = "<think>\nSpain.\n</think>\n\nThe Ebro."
READ: dict[str, tuple[str, ...]] = {
    "Magpie": (GOOD,),
    "MetaMath": (GOOD,),
    "Infinity-Instruct": (GOOD,),
    "WildChat": (GOOD,),
    "OpenR1-Math": (GOOD,),
    "NuminaMath": (GOOD,),
    "distilabel's Capybara pairs": (GOOD, BAD),
    "s1K": (THOUGHT,),
    "UltraInteract pairs": (GOOD, BAD),
    "COIG": (GOOD,),
    "Arena 140k": (GOOD, BAD),
    "Hermes function calling": (GOOD,),
    "Chinese DeepSeek-R1 distillation": (THOUGHT,),
    "Open Instruct's comparisons by people": (GOOD, BAD),
    "CAMEL": (GOOD,),
    "Nemotron post-training": (GOOD,),
    "xLAM function calls": ('[{"name": "f"}]',),
    "pairs out of many samples": (GOOD, BAD),
    "Natural Instructions": (GOOD,),
    "Magicoder": (GOOD,),
    "WebInstruct": (GOOD,),
}


def test_every_set_has_a_case():
    assert {*READ, "FineWeb", "CommonsenseQA", "Math-Step-DPO"} | {
        name for name, one in PUBLIC_SETS.items() if one.refused
    } == set(PUBLIC_SETS)


@pytest.mark.parametrize("name", READ)
def test_a_known_set_is_read(name):
    [row] = parse(PUBLIC_SETS[name].example)[1]
    assert (turns_of(row.messages), row.answers) == (ASKED, READ[name])
    with pytest.raises(Unread, match="'remarks'"):
        parse({**PUBLIC_SETS[name].example, "remarks": "Something that matters."})


@pytest.mark.parametrize("name", [name for name, one in PUBLIC_SETS.items() if one.refused])
def test_a_set_without_training_data_says_so(name):
    with pytest.raises(Reject) as caught:
        parse(PUBLIC_SETS[name].example)
    assert str(caught.value) == PUBLIC_SETS[name].refused


def test_a_set_of_texts():
    [row] = parse(PUBLIC_SETS["FineWeb"].example)[1]
    assert row.text == GOOD


def test_sets_whose_prompt_is_put_together():
    [row] = parse(PUBLIC_SETS["CommonsenseQA"].example)[1]
    assert (turns_of(row.messages), row.answers) == ("u:Which is a river?\n\nA. Rain\nB. Ebro", ("Ebro",))
    [row] = parse(PUBLIC_SETS["Math-Step-DPO"].example)[1]
    assert (turns_of(row.messages), row.answers) == (ASKED, ("Think. The Ebro.", "Think. Rain."))


def test_what_a_set_leaves_out_is_there_for_functions():
    [row] = parse(PUBLIC_SETS["Magpie"].example)[1]
    assert row.columns["knowledge"] == "Rivers."


def test_a_recipe_of_its_own_decides():
    example = PUBLIC_SETS["MetaMath"].example
    [row] = parse(example, columns={"prompt": "original_question"}, ignore=["query"])[1]
    assert turns_of(row.messages) == "u:x?"
    magpie = PUBLIC_SETS["Magpie"].example
    [row] = parse(magpie, ignore=["instruction", "response", *PUBLIC_SETS["Magpie"].ignore[1:]])[1]
    assert row.answers == (GOOD,)


def test_more_turns_than_instruction_and_response_are_not_left_out():
    longer = {**PUBLIC_SETS["Magpie"].example}
    longer["conversations"] = [*longer["conversations"], {"from": "human", "value": "More?"}]
    with pytest.raises(Unread, match="conversations"):
        parse(longer)


PROMETHEUS = PUBLIC_SETS["Prometheus"].example


def test_both_uses_of_prometheus():
    [learnt] = parse(PROMETHEUS, ignore=["orig_*"])[1]
    assert learnt.answers == ("It is. [RESULT] 5",)
    ignore = ["instruction", "output", "input", "orig_criteria", "orig_feedback", "orig_reference_answer"]
    columns = {"prompt": "orig_instruction", "completion": "orig_response", "score": "orig_score"}
    [judged] = parse(PROMETHEUS, columns=columns, ignore=[*ignore, "orig_score?*"])[1]
    assert (turns_of(judged.messages), judged.answers, judged.scores) == (ASKED, (GOOD,), (5.0,))


# ---- reasoning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "completion": GOOD, "reasoning": "Spain."},
        {"question": Q, "answer": GOOD, "reasoning_content": "<think>\nSpain.\n</think>"},
        {"instruction": Q, "input": "", "output": GOOD, "thinking": ["Spain."]},
        {"Question": Q, "Complex_CoT": "Spain.", "Response": GOOD},
        {"query": Q, "response": GOOD, "cot": "Spain."},
        {"inputs": Q, "targets": GOOD, "chain_of_thought": "Spain."},
        {"instruction": Q, "context": "", "response": GOOD, "thought": "Spain."},
        {"prompt": Q, "completion": GOOD, "label": True, "reasoning": "Spain."},
        {"prompt": Q, "response": GOOD, "score": 3, "reasoning": "Spain."},
        {"problem": Q, "solution": GOOD, "thinking": "Spain."},
        {"user": Q, "assistant": GOOD, "reasoning": "Spain."},
        {"prompt": Q, "completion": THOUGHT, "reasoning": "Spain."},
    ],
)
def test_reasoning_in_a_column_of_its_own_stands_before_the_response(row):
    [found] = parse(row)[1]
    assert (turns_of(found.messages), found.answers) == (ASKED, (THOUGHT,))


def test_reasoning_is_never_dropped():
    for row in (
        {"prompt": Q, "chosen": GOOD, "rejected": BAD, "reasoning": "Spain."},
        {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": GOOD}], "thinking": "Spain."},
        {"prompt": Q, "responses": [GOOD, BAD], "reasoning": "Spain."},
        {"prompt": Q, "completion": GOOD, "rationale": "Spain."},
    ):
        with pytest.raises(Unread, match=r"reasoning|thinking|rationale"):
            parse(row)
    with pytest.raises(Reject, match="reasoning of its own"):
        parse({"prompt": Q, "completion": THOUGHT, "reasoning": "France."})


@pytest.mark.parametrize("flag", ["on", "off", True])
def test_a_switch_of_reasoning_is_none(flag):
    messages = [{"role": "user", "content": Q}, {"role": "assistant", "content": GOOD}]
    assert parse({"messages": messages, "reasoning": flag})[1][0].answers == (GOOD,)
    assert parse({"prompt": Q, "completion": GOOD, "reasoning": flag})[1][0].answers == (GOOD,)


# ---- shapes of public sets that formats of their own read ---------------------------------------------------------


def two_of(first: dict[str, Any], second: dict[str, Any]) -> Any:
    return records(understood([first, second]), "rankings")


@pytest.mark.parametrize(
    ("row", "answers", "ranks"),
    [
        ({"question": Q, "answers": [{"answer_id": 7, "pm_score": 5, "selected": True, "text": GOOD},
                                     {"answer_id": 8, "pm_score": 1, "selected": False, "text": BAD}]},
         (GOOD, BAD), (0, 1)),
        ({"instruction": Q, "generations": [BAD, GOOD], "generation_models": ["a", "b"], "ratings": [2, 5],
          "rationales": ["bad", "good"], "distilabel_metadata": {"raw": "x"}}, (GOOD, BAD), (0, 1)),
        ({"instruction": Q, "responses": [{"model": "a", "response": BAD}, {"model": "b", "response": GOOD}],
          "annotations": [{"model": "a", "rating": "2"}, {"model": "b", "rating": "5"}], "preference": "style"},
         (GOOD, BAD), (0, 1)),
        ({"prompt": Q, "outputs": [{"model": "a", "output": BAD, "score": 1}, {"output": GOOD, "score": 3}]},
         (GOOD, BAD), (0, 1)),
        ({"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "response": GOOD, "chosen": GOOD, "rejected": BAD}, (GOOD, BAD),
         (0, 1)),
        ({"instruction": Q, "chosen_response": GOOD, "rejected_response": BAD, "chosen_avg_rating": 5.0,
          "rejected_avg_rating": 2.0}, (GOOD, BAD), (0, 1)),
        ({"Frage": Q, "Antwort A": BAD, "Antwort B": GOOD, "Besser": "B"}, (GOOD, BAD), (0, 1)),
        ({"prompt": json.dumps([Q]), "response_a": json.dumps([BAD]), "response_b": json.dumps([GOOD]),
          "winner": "model_b", "language": "English"}, (GOOD, BAD), (0, 1)),
        ({"input": Q, "chosen": GOOD, "rejected": BAD, "labelling_model": "m", "status": "tie", "chosen_score": 9},
         (GOOD, BAD), (0, 0)),
    ],
)  # fmt: skip
def test_judged_responses_in_the_shape_of_public_sets(row, answers, ranks):
    [found] = parse(row)[1]
    assert (turns_of(found.messages), found.answers, found.ranks) == (ASKED, answers, ranks)


def test_a_response_that_is_not_the_chosen_one_is_named():
    with pytest.raises(Reject, match="something else than chosen"):
        parse({"prompt": Q, "response": "Snow.", "chosen": GOOD, "rejected": BAD})


def test_safe_and_unsafe_responses_are_a_ranking():
    def row(text, safe):
        return {"prompt": Q, "response": text, "category": {"drugs": not safe}, "is_safe": safe}

    [ranking] = two_of(row(BAD, False), row(GOOD, True))
    assert ranking.answers == (GOOD, BAD)
    assert not records(understood([row(BAD, False)]), "demonstrations")


def test_a_rating_next_to_a_thumb_is_kept():
    found = understood([{"prompt": [{"role": "user", "content": Q}], "label": True, "rating": 5.0,
                         "completion": [{"role": "assistant", "content": GOOD}]}])  # fmt: skip
    assert found[0].row.judged == "label" and found[0].row.columns["rating"] == 5.0


def test_ratings_of_summaries_by_their_overall_axis():
    def row(text, overall):
        return {"info": {"id": "1", "post": Q, "title": None}, "worker": "w", "batch": "b",
                "summary": {"text": text, "policy": "p", "axes": {"overall": overall, "accuracy": 7}}}  # fmt: skip

    [ranking] = two_of(row(BAD, 2), row(GOOD, 6))
    assert (ranking.answers, ranking.scores) == ((GOOD, BAD), (6.0, 2.0))
    with pytest.raises(Reject, match="overall"):
        parse(row(GOOD, None))


# ---- transcripts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"instruction": "Human:Hi\nAssistant:Hello\nHuman:Name a river.\nAssistant:", "input": "", "output": GOOD},
         "u:Hi|a:Hello|u:Name a river.", GOOD),
        ({"prompt": "User: Hi\nAssistant: Hello\nUser: Name a river.", "completion": GOOD},
         "u:Hi|a:Hello|u:Name a river.", GOOD),
        ({"topic": "x", "input": "The conversation between human and AI assistant.\n[|Human|] Name a river.\n[|AI|] "
          "The Ebro.\n[|Human|] "}, ASKED, GOOD),
        ({"system": "SYSTEM: Be brief.", "chat": "USER: Name a river.\n\n\nASSISTANT: <functioncall> {} <|endoftext|>"
          "\n\n\nFUNCTION RESPONSE: {}\n\n\nASSISTANT: The Ebro. <|endoftext|>\n\n\n"},
         "s:Be brief.|u:Name a river.|a:<functioncall> {}|t:{}", GOOD),
        ({"plain_text": "[Human]: Name a river.<eoh> [MOSS]: The Ebro.<eoa>"}, ASKED, GOOD),
    ],
)  # fmt: skip
def test_transcripts_are_read_as_turns(row, prompt, answer):
    [found] = parse(row)[1]
    assert (turns_of(found.messages), found.answers) == (prompt, (answer,))


@pytest.mark.parametrize(
    "text",
    [
        "### Human: Name a river.### Assistant: The Ebro.",
        "<s>[INST] Name a river. [/INST] The Ebro. </s>",
        "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\nThe Ebro.<|im_end|>\n",
        "Human: Name a river.\n\nAssistant: The Ebro.",
    ],
)
def test_a_text_that_is_a_transcript_is_a_demonstration_and_a_document(text):
    found = understood([{"text": text}])
    [demonstration] = records(found, "demonstrations")
    assert (turns_of(demonstration.prompt.messages), demonstration.answer) == (ASKED, GOOD)
    [document] = records(found, "documents")
    assert document.text == text and document.group == demonstration.prompt.group
    [prompt] = records(found, "prompts")
    assert turns_of(prompt.messages) == ASKED


def test_a_system_message_inside_the_first_turn():
    first = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nName a river. [/INST] The Ebro. </s>"
    text = f"{first}<s>[INST] More? [/INST] The Po. </s>"
    [demonstration] = records(understood([{"text": text}]), "demonstrations")
    assert turns_of(demonstration.prompt.messages) == "s:Be brief.|u:Name a river.|a:The Ebro.|u:More?"


@pytest.mark.parametrize(
    "text",
    ["Human: a poem about us", "User: one\nUser: two", "Assistant: hello\nUser: hi", "Human rights\nAssistant: x",
     "Write a dialogue.\nHuman: Hi\nAssistant: Hello"],
)  # fmt: skip
def test_a_text_that_is_no_transcript_stays_one(text):
    assert turns_of(parse({"prompt": text, "completion": "a"})[1][0].messages) == "u:" + text
    assert not records(understood([{"text": text}]), "demonstrations")


def test_commands_of_moss_are_not_dropped():
    turn = {"Human": "<|Human|>: q<eoh>", "Commands": '<|Commands|>: Search("x")<eoc>', "MOSS": "<|MOSS|>: a<eom>"}
    with pytest.raises(Reject, match="Commands"):
        parse({"meta_instruction": "m", "chat": {"turn_1": turn}})


# ---- records of annotation tools -------------------------------------------------------------------------------------


def argilla(*values: dict[str, Any], status: str = "submitted") -> dict[str, Any]:
    answers = [{"user_id": str(i), "status": status, "values": {k: {"value": v} for k, v in one.items()}}
               for i, one in enumerate(values)]  # fmt: skip
    fields = {"prompt": Q, "response1": BAD, "response2": GOOD}
    return {"id": "7", "fields": fields, "responses": answers, "metadata": {}, "suggestions": [], "vectors": {}}


def label_studio(*values: dict[str, Any], **more: Any) -> dict[str, Any]:
    results = [{"from_name": "preference", "to_name": "x", "type": "pairwise", "value": value} for value in values]
    annotations = [{"id": 1, "result": [one], "was_cancelled": False, **more} for one in results]
    data = {"prompt": Q, "answer1": BAD, "answer2": GOOD}
    return {"id": 1, "data": data, "annotations": annotations, "predictions": [], "project": 3}


FLAT = {"prompt": Q, "response_1": BAD, "response_2": GOOD, "better.suggestion": "response_1",
        "better.responses": ["response_2", "response_1"], "better.responses.users": ["u", "v"],
        "better.responses.status": ["submitted", "discarded"]}  # fmt: skip
FIRST_VERSION = {"prompt": Q, "response_1": BAD, "response_2": GOOD, "better-suggestion": "response_1",
                 "better": [{"user_id": "u", "value": "response_2", "status": "submitted"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "people"),
    [
        (argilla({"preference": "response2"}), 1),
        (argilla({"preference": "response2"}, {"preference": "response2"}), 2),
        (argilla({"order": [{"value": "response2", "rank": 1}, {"value": "response1", "rank": 2}]}), 1),
        (label_studio({"selected": "right"}), 1),
        (label_studio({"choices": ["answer2"]}, {"choices": ["answer2"]}), 2),
        (FLAT, 1),
        (FIRST_VERSION, 1),
    ],
)
def test_records_of_annotation_tools(tmp_path, record, people):
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(record).replace(Q, "And another?") + "\n")
    loaded = load_records(["a.jsonl"], "rankings", DataConfig(), seed=0, base_dir=tmp_path)
    assert [(r.prompt.text, r.answers) for r in loaded.records] == [
        (prompt, (GOOD, BAD)) for prompt in (Q, "And another?") for _ in range(people)
    ]
    [count] = loaded.counts
    assert (count.read, count.used, count.rejected) == (2, 2, 0)
    assert check_files([tmp_path / "a.jsonl"]).files[0].usable["rankings"] == 2 * people


def test_records_that_nobody_submitted_are_named(tmp_path):
    for record in (argilla({"preference": "response2"}, status="discarded"),
                   label_studio({"selected": "left"}, was_cancelled=True)):  # fmt: skip
        good = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"})
        (tmp_path / "a.jsonl").write_text(good + "\n" + json.dumps(record) + "\n")
        loaded = load_records(["a.jsonl"], "rankings", DataConfig(), seed=0, base_dir=tmp_path)
        assert [r.reason for r in loaded.rejected] == ["no annotation of it is submitted"]


def test_a_question_of_another_name_is_mapped(tmp_path):
    record = json.dumps(label_studio({"selected": "right"})).replace("preference", "who")
    (tmp_path / "a.jsonl").write_text(record + "\n")
    with pytest.raises(UserError, match=r"`columns: {preference: who}`"):
        load_records(["a.jsonl"], "rankings", DataConfig(), seed=0, base_dir=tmp_path)
    source = Source(path="a.jsonl", columns={"preference": "who"})
    [ranking] = load_records([source], "rankings", DataConfig(), seed=0, base_dir=tmp_path).records
    assert ranking.answers == (GOOD, BAD)


# ---- the best of several ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "first"),
    [({"best_index": 1}, GOOD), ({"best_response": BAD}, BAD), ({"chosen_idx": "2"}, "Snow."), ({"best": GOOD}, GOOD)],
)
def test_the_best_of_several_is_better_than_the_others(more, first):
    [found] = parse({"prompt": Q, "responses": [BAD, GOOD, "Snow."], **more})[1]
    assert found.answers[0] == first and found.ranks == (0, 1, 1) and len(found.answers) == 3


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"best": 1}, r"`columns: {best_index: best}`"), ({"best_index": 3}, "counted from 0"), ({"chosen": 0}, "counts")],
)
def test_an_index_that_may_count_from_either_is_refused(more, reason):
    with pytest.raises(Reject, match=reason):
        parse({"prompt": Q, "responses": [BAD, GOOD, "Snow."], **more})


def test_an_export_of_chatgpt_follows_its_current_branch():
    def node(text, role, parent, *children):
        said = {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}}
        return {"message": said, "parent": parent, "children": list(children)}

    tree = {"r": {"message": None, "parent": None, "children": ["a"]}, "a": node(Q, "user", "r", "b", "c"),
            "b": node(BAD, "assistant", "a"), "c": node(GOOD, "assistant", "a")}  # fmt: skip
    [row] = parse({"title": "T", "mapping": tree, "current_node": "c"})[1]
    assert (turns_of(row.messages), row.answers, row.notes) == (ASKED, (GOOD,), (BRANCHES,))


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": Q}, {"from": "chatbot", "value": GOOD}],
        [{"speaker": "USER", "utterance": Q}, {"speaker": "ASSISTANT", "utterance": GOOD}],
        [{"sender": "human", "text": Q, "created_at": "2024"}, {"sender": "assistant", "text": GOOD}],
        [{"author": {"role": "user"}, "content": {"parts": [Q]}},
         {"author": {"role": "assistant"}, "content": {"parts": [GOOD]}}],
        [{"role": "user", "parts": [{"text": Q}]}, {"role": "model", "parts": [{"text": GOOD}]}],
        [{"sender": "user", "message": Q}, {"sender": "bot", "message": GOOD}],
    ],
)  # fmt: skip
def test_other_names_of_role_and_text(turns):
    for name in ("messages", "conversations", "chat", "turns", "contents", "chat_messages", "utterances"):
        [row] = parse({name: turns})[1]
        assert (turns_of(row.messages), row.answers) == (ASKED, (GOOD,))


def test_a_speaker_called_system_is_not_taken_for_the_system_message():
    with pytest.raises(Reject, match="role 'system'"):
        parse({"turns": [{"speaker": "user", "text": Q}, {"speaker": "system", "text": GOOD}]})
