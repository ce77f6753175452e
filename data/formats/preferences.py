"""Two responses to the same, one chosen: under all the names that the prompt and the two have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.formats.instructions import QUESTION, asked_any, instruction
from data.formats.one_response import finished_of
from data.formats.ranking import PAIR_SCORES, Side, pair, side
from data.formats.rows import TIED, Format, Reject, Row
from data.formats.turns import BEFORE, answer, asked, conversation, conversation_prompt, message, transcript
from data.formats.values import blank, first_of, listed, string
from data.records import Message

CHOSEN = ("chosen", "chosen_response", "chosen_messages", "response_chosen", "pos_resp")
REJECTED = ("rejected", "rejected_response", "rejected_messages", "response_rejected", "neg_resp")
PROMPT = ("prompt", "question", "query", "context", "input", "conversations", "messages")
_SCORES = ("margin", *(name for names in PAIR_SCORES for name in names))


def _two(row: Mapping[str, Any], messages: tuple[Message, ...]) -> list[Row]:
    chosen, rejected = first_of(row, CHOSEN), first_of(row, REJECTED)
    assert chosen is not None and rejected is not None
    both = [side(row[name], name, messages) for name in (chosen, rejected)]
    return [pair(both, row, (chosen, rejected), finished_of(row))]


def _preference(row: Mapping[str, Any]) -> list[Row]:
    """``chosen`` and ``rejected``, responses or whole conversations, with a prompt or without."""
    name = first_of(row, PROMPT)
    made = _two(row, asked(row, name))
    if not blank(row.get("response")) and answer(row["response"], "response").strip() != made[0].answers[0].strip():
        raise Reject("response says something else than chosen")
    for other in ("conversations", "messages"):
        if other != name and not blank(row.get(other)):
            _check_repeated(listed(row[other], other), other, made[0])
    return made


def _check_repeated(turns: list[Any], name: str, made: Row) -> None:
    """A conversation next to a prompt repeats the prompt, or the conversation that was chosen."""
    said = [(m.role, m.content) for m in (message(turn, name) for turn in turns)]
    before = [(m.role, m.content) for m in made.messages]
    if said not in (before, [*before, ("assistant", made.answers[0])]):
        raise Reject(f"{name} says something else than prompt and chosen")


def _next_steps(row: Mapping[str, Any]) -> list[Row]:
    """The next step of a solution: both responses begin with the steps before it."""
    before = string(row["initial_reason_steps"], "initial_reason_steps")
    if without := next((name for name in ("chosen", "rejected") if blank(row[name])), None):
        raise Reject(f"{without} is blank: no step follows those before it")
    return _preference({k: before + string(v, k) if k in ("chosen", "rejected") else v for k, v in row.items()})


def _labelled(row: Mapping[str, Any]) -> list[Row]:
    """distilabel's: the judge's status says whether it found them equal."""
    [made] = _preference({k: v for k, v in row.items() if k != "chosen_score"})
    if row["status"] != "tie":
        return [made]
    return [replace(made, ranks=(0, 0), notes=(*made.notes, TIED))]


def _instructed(row: Mapping[str, Any]) -> list[Row]:
    return _two(row, asked(row, None, instruction(row["instruction"], row.get("input", ""))))


def _response_first(row: Mapping[str, Any]) -> list[Row]:
    """The usual response is chosen, and another is rejected."""
    name = first_of(row, ("response", "answer", "completion", "output"))
    assert name is not None
    messages = asked_any(row)
    both = [side(row[one], one, messages) for one in (name, "rejected_response")]
    return [pair(both, row, (name, "rejected_response"), finished_of(row))]


def _openai(row: Mapping[str, Any]) -> list[Row]:
    """``input`` with messages and tools, and the two outputs as turns."""
    given = row["input"]
    raw = listed(given.get("messages"), "input.messages")
    messages = asked(given, None, conversation_prompt(raw, "input.messages"))
    names = ("preferred_output", "non_preferred_output")
    return [pair([side(row[name], name, messages) for name in names], row, names)]


def _hh(row: Mapping[str, Any]) -> list[Row]:
    """Two transcripts with "\\n\\nHuman:" and "\\n\\nAssistant:" turns that differ in the last."""
    both: list[Side] = []
    for name in ("chosen", "rejected"):
        turns = transcript(string(row[name], name), name)
        if not turns[-1].content:
            both.append((conversation(turns[:-1], name).messages, "", ()))
            continue
        whole = conversation(turns, name)
        both.append((whole.messages, whole.answers[0], whole.notes))
    return [pair(both, row)]


def _listed(row: Mapping[str, Any]) -> list[Row]:
    """Lists of responses: all chosen before all rejected, equal among themselves."""
    chosen, rejected = ([string(one, name) for one in row[name]] for name in ("chosen", "rejected"))
    answers = (*chosen, *rejected)
    if len(set(answers)) < len(answers) or any(not one.strip() for one in answers):
        raise Reject("its lists chosen and rejected hold a response that is empty or stands there twice")
    first = pair(
        [side(one[0], name, asked(row, "prompt")) for one, name in ((chosen, "chosen"), (rejected, "rejected"))], {}
    )
    return [replace(first, answers=answers, ranks=(0,) * len(chosen) + (1,) * len(rejected))]


def _is_listed(row: Mapping[str, Any]) -> bool:
    lists = [row.get(name) for name in ("chosen", "rejected")]
    return all(isinstance(one, list) and one and all(isinstance(text, str) for text in one) for one in lists)


def _is_hh(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row.get(k), str) and re.search(r"(^|\n\n)Human:", row[k]) for k in ("chosen", "rejected"))


_LABELLING = (
    *("generations", "order", "labelling_prompt", "raw_labelling_response", "rating", "rationale", "chosen_score"),
    *("original_chosen", "original_rejected", "in_gsm8k_train"),
)
_MORE = (*BEFORE, *_SCORES, "finished")
_Q, _A, _B = (
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Ebro."},
    {"role": "assistant", "content": "Rain."},
)

PREFERENCES: dict[str, Format] = {
    "lists of chosen and rejected": Format(
        columns="prompt, chosen: [text], rejected: [text]",
        required=("prompt", "chosen", "rejected"),
        optional=(*BEFORE, "num_correct", "num_incorrect", "total_completions"),
        fits=_is_listed,
        read=_listed,
        example={"prompt": "Name a river.", "chosen": ["The Ebro."], "rejected": ["Rain.", "Snow."]},
        note="every response chosen is better than every one rejected",
    ),
    "HH transcripts": Format(
        columns="chosen, rejected (Human:/Assistant:)",
        required=("chosen", "rejected"),
        fits=_is_hh,
        read=_hh,
        example={
            "chosen": "\n\nHuman: Name a river.\n\nAssistant: The Ebro.",
            "rejected": "\n\nHuman: Name a river.\n\nAssistant: Rain.",
        },
    ),
    "preference": Format(
        columns="[prompt or conversations,] chosen, rejected",
        required=("chosen", "rejected"),
        optional=("prompt", "conversations", "messages", "response", *_MORE),
        read=_preference,
        example={
            "prompt": "Name a river.",
            "chosen": "The Ebro.",
            "rejected": "Rain.",
            "score_chosen": 8,
            "score_rejected": 3,
        },
        note="responses, or conversations that differ in the last turn; equal scores are a tie, `margin` is kept",
    ),
    "orca pairs": Format(
        columns="system, question, chosen, rejected",
        required=(("question", "query", "context", "input"), "chosen", "rejected"),
        optional=_MORE,
        read=_preference,
        example={
            "system": "Speak like a pirate.",
            "question": "Name a river.",
            "chosen": "The Ebro.",
            "rejected": "Rain.",
        },
        note="the prompt under question, query, context or input: text or turns",
    ),
    "next steps": Format(
        columns="prompt, initial_reason_steps, chosen, rejected",
        required=("prompt", "initial_reason_steps", "chosen", "rejected"),
        optional=("prompt_step_by_step", "full_chosen", "full_rejected", "answer"),
        read=_next_steps,
        example={"prompt": "Name a river.", "initial_reason_steps": "The ", "chosen": "Ebro.", "rejected": "Rain."},
        note="Step-DPO's form: both responses begin with the steps before",
    ),
    "distilabel's Orca pairs": Format(
        columns="input, chosen, rejected, labelling_model, status",
        required=("input", "chosen", "rejected", "labelling_model", "status"),
        optional=(*BEFORE, *_LABELLING),
        read=_labelled,
        example={
            "system": "",
            "input": "Name a river.",
            "chosen": "The Ebro.",
            "rejected": "Rain.",
            "generations": ["The Ebro.", "Rain."],
            "labelling_model": "m",
            "rating": [9.0, 8.0],
            "rationale": "The first is better.",
            "status": "unchanged",
            "chosen_score": 9.0,
        },
        note="those whose status is tie are one",
    ),
    "alpaca preference": Format(
        columns="instruction, input, chosen, rejected",
        required=("instruction", "chosen", "rejected"),
        optional=("input", *_MORE),
        read=_instructed,
        example={"instruction": "Name a river.", "input": "In Spain.", "chosen": "The Ebro.", "rejected": "Rain."},
    ),
    "chosen_response and rejected_response": Format(
        columns="prompt, chosen_response, rejected_response",
        required=(("prompt", "question", "query", "context"), "chosen_response", "rejected_response"),
        optional=_MORE,
        read=_preference,
        example={"prompt": "Name a river.", "chosen_response": "The Ebro.", "rejected_response": "Rain."},
    ),
    "response_chosen and response_rejected": Format(
        columns="prompt, response_chosen (or pos_resp), response_rejected (or neg_resp)",
        required=(
            ("prompt", "question", "query", "context"),
            ("response_chosen", "pos_resp"),
            ("response_rejected", "neg_resp"),
        ),
        optional=_MORE,
        read=_preference,
        example={"prompt": "Name a river.", "response_chosen": "The Ebro.", "response_rejected": "Rain."},
    ),
    "response and rejected_response": Format(
        columns="query, response, rejected_response",
        required=(QUESTION, ("response", "answer", "completion", "output"), "rejected_response"),
        optional=("input", *_MORE),
        read=_response_first,
        example={"query": "Name a river.", "response": "The Ebro.", "rejected_response": "Rain."},
    ),
    "OpenAI preference": Format(
        columns="input: {messages}, preferred_output, non_preferred_output",
        required=("input", "preferred_output", "non_preferred_output"),
        fits=lambda row: isinstance(row["input"], Mapping),
        read=_openai,
        example={"input": {"messages": [_Q], "tools": []}, "preferred_output": [_A], "non_preferred_output": [_B]},
    ),
    "chosen_messages and rejected_messages": Format(
        columns="chosen_messages, rejected_messages",
        required=("chosen_messages", "rejected_messages"),
        optional=("prompt", *_MORE),
        read=_preference,
        example={"chosen_messages": [_Q, _A], "rejected_messages": [_Q, _B]},
    ),
}
