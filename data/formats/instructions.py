"""A prompt and a response under the names that people give them, and thumbs or scores on such a response."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.formats.one_response import LABELS, SCORES, THOUGHTS, judged_one, single
from data.formats.ranking import unranked
from data.formats.rows import NO_PROMPT, SECOND, Format, Reject, Row
from data.formats.turns import BEFORE, SYSTEM, answer, asked, turns
from data.formats.values import blank, first_of, liked, listed, number, string
from data.records import Message

QUESTION = ("prompt", "question", "query", "instruction")
ANSWER = ("completion", "response", "answer", "output", "generation", "chosen")


def _answered(row: Mapping[str, Any], question: str, names: tuple[str, ...]) -> list[Row]:
    name = first_of(row, names)
    assert name is not None
    made = single(asked(row, question), answer(row[name], "completion" if question == "prompt" else name), row)
    made = judged_one(made, row) if any(label in row for label in LABELS) else made
    return [replace(made, notes=(NO_PROMPT,)) if not made.messages else made]


def _completion(row: Mapping[str, Any]) -> list[Row]:
    return _answered(row, "prompt", ("completion", "response", "answer"))


def _question(row: Mapping[str, Any]) -> list[Row]:
    return _answered(row, "question", ("answer", "response"))


def _query(row: Mapping[str, Any]) -> list[Row]:
    return _answered(row, "query", ("response", "answer"))


def _thumb(row: Mapping[str, Any]) -> list[Row]:
    made = judged_one(_any_answer(row), row)
    assert made.scores is not None
    second = {name: _said(row[name], name) for name in SCORES if name in row}
    if other := next((name for name, said in second.items() if said not in (None, bool(made.scores[0]))), None):
        raise Reject(f"its labels contradict each other: {first_of(row, LABELS)}, {other}")
    return [replace(made, notes=(*made.notes, SECOND)) if None in second.values() else made]


def _said(value: Any, name: str) -> bool | None:
    """Whether a word or true or false likes what it stands next to; None of a number, whose scale nobody knows."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None
    try:
        return None if isinstance(value, str) and value.strip()[-1:].isdigit() else liked(value, name)
    except Reject:
        return None


def _score(row: Mapping[str, Any]) -> list[Row]:
    """One response with a score of its own: responses to the same prompt make a ranking."""
    name = first_of(row, SCORES)
    assert name is not None
    return [replace(_any_answer(row), judged="score", scores=(number(row[name], name),))]


def _any_answer(row: Mapping[str, Any]) -> Row:
    name = first_of(row, ANSWER)
    assert name is not None
    return single(asked_any(row), answer(row[name], name), row)


def asked_any(row: Mapping[str, Any], names: tuple[str, ...] = QUESTION) -> tuple[Message, ...]:
    """What is asked, under the first of the names that the row has; an instruction with its input."""
    name = first_of(row, names)
    if name == "instruction":
        return asked(row, name, instruction(row["instruction"], row.get("input", "")))
    return asked(row, name)


NO_INPUT = re.compile(r"<\s*no[ _-]?input\s*>|\[\s*no[ _-]?input\s*\]", re.IGNORECASE)


def instruction(text: Any, given: Any) -> tuple[Message, ...]:
    """An instruction and, behind an empty line, its input; ``<noinput>`` of self-instruct is none."""
    if isinstance(text, list | dict):
        return turns(text, "instruction")
    parts = [string(text, "instruction"), string(given, "input")]
    parts[1] = "" if NO_INPUT.fullmatch(parts[1].strip()) else parts[1]
    return turns("\n\n".join(p.strip() for p in parts if p.strip()), "instruction")


def _alpaca(row: Mapping[str, Any]) -> list[Row]:
    """``input`` follows the instruction behind an empty line; ``system`` and ``history`` pairs may come before."""
    messages = asked(row, None, instruction(row["instruction"], row.get("input", "")))
    if "output" not in row:
        return [Row(messages=messages)] if messages else _empty()
    output = string(row["output"], "output")
    if not blank(row.get("prompt")) and string(row["instruction"], "instruction").strip() not in str(row["prompt"]):
        raise Reject("its prompt does not hold its instruction: they are of different rows")
    if not blank(row.get("text")) and output.strip() not in string(row["text"], "text"):
        raise Reject("its text does not hold its output: they are of different rows")
    return [single(messages, output, row)]


def _empty() -> list[Row]:
    raise Reject("the prompt is empty")


def _alpaca_many(row: Mapping[str, Any]) -> list[Row]:
    messages = asked(row, None, instruction(row["instruction"], row.get("input", "")))
    return [unranked(messages, [string(o, "output") for o in listed(row["output"], "output")])]


def _dolly(row: Mapping[str, Any]) -> list[Row]:
    """``context`` follows the instruction behind an empty line."""
    name = first_of(row, ("response", "answer", "completion"))
    assert name is not None
    given = row.get("context") if not blank(row.get("context")) else row.get("input", "")
    messages = asked(row, None, instruction(row["instruction"], given))
    return [single(messages, answer(row[name], name), row)]


def _source_and_target(row: Mapping[str, Any]) -> list[Row]:
    question, reply = first_of(row, _SOURCES), first_of(row, _TARGETS)
    assert question is not None and reply is not None
    return [single(asked(row, question), answer(row[reply], reply), row)]


def _asked_and_answered(row: Mapping[str, Any]) -> list[Row]:
    question, reply = first_of(row, _ASKED), first_of(row, _REPLIES)
    assert question is not None and reply is not None
    made = single(asked_any(row, _ASKED), answer(row[reply], reply), row)
    return [judged_one(made, row) if any(label in row for label in LABELS) else made]


def _problem(row: Mapping[str, Any]) -> list[Row]:
    question, reply = first_of(row, ("problem", "question")), first_of(row, (*_SOLUTIONS, "answer"))
    assert question is not None and reply is not None
    made = single(asked(row, question), answer(row[reply], reply), row)
    return [judged_one(made, row) if any(label in row for label in LABELS) else made]


def _input_output(row: Mapping[str, Any]) -> list[Row]:
    name = first_of(row, ("output", "target"))
    assert name is not None
    return [single(asked(row, "input"), answer(row[name], name), row)]


def _self_instruct(row: Mapping[str, Any]) -> list[Row]:
    rows = []
    for instance in listed(row["instances"], "instances"):
        if not isinstance(instance, Mapping) or "output" not in instance:
            raise Reject("instances must be objects with input and output")
        messages = instruction(row["instruction"], instance.get("input", ""))
        rows.append(single(messages, string(instance["output"], "output"), row))
    if not rows:
        raise Reject("it has no instances")
    return rows


def _prompt(row: Mapping[str, Any]) -> list[Row]:
    messages = asked(row, "prompt")
    return [Row(messages=messages)] if any(m.role != "system" for m in messages) else _empty()


def _first_question(row: Mapping[str, Any]) -> list[Row]:
    """The first of a question's turns; those that follow ask about an answer that is not there."""
    first = listed(row["turns"], "turns")[:1]
    text = first[0].get("content") if first and isinstance(first[0], Mapping) else (first or [None])[0]
    messages = turns(text, "turns") if isinstance(text, str) else ()
    if not messages:
        raise Reject("turns holds no question as text")
    notes = ("questions after the first, which ask about an answer that is not there, left out",)
    return [Row(messages=messages, notes=notes * (len(row["turns"]) > 1))]


def _sampling_report(row: Mapping[str, Any]) -> list[Row]:
    """Open-Assistant's report of a model's samples: responses to each prompt, none of them judged."""
    rows = []
    for one in listed(row["prompts"], "prompts"):
        if not isinstance(one, Mapping) or "prompt" not in one:
            raise Reject("prompts must hold objects with prompt and results")
        results = listed(one.get("results") or [], "results")
        if any(not isinstance(result, Mapping) for result in results):
            raise Reject("results must hold objects with outputs")
        outputs = [o for result in results for o in listed(result.get("outputs") or [], "outputs")]
        messages = turns(one["prompt"], "prompt")
        rows.append(unranked(messages, [string(o, "outputs") for o in outputs]) if outputs else Row(messages=messages))
    return rows


_LATE = ("finished", *THOUGHTS)
_OTHER_SCORES = ("correctness", "coherence", "complexity", "verbosity")
_SOURCES = ("inputs_pretokenized", "inputs", "source_text", "input_text")
_TARGETS = ("targets_pretokenized", "targets", "target_text", "output_text")
_SOLUTIONS = ("generated_solution", "generated_answer", "solution")
_ASKED = (*QUESTION, "problem", "input", "inputs", "user_prompt", "user_input", "user_query", "prompt_text")
_REPLIES = (
    *("completion", "response", "answer", "output", "generation", "generated_text", "model_output", "reply"),
    *("model_response", "assistant_response", "bot_response", "response_text", "answer_text"),
)

INSTRUCTIONS: dict[str, Format] = {
    "prompt and completion": Format(
        columns="prompt, completion",
        required=("prompt", ("completion", "response", "answer")),
        optional=(*BEFORE, *LABELS, *_LATE),
        read=_completion,
        example={"system": "Speak like a pirate.", "prompt": "Name a river.", "completion": "The Ebro."},
        note="text, one turn or a list of turns; response and answer are names of the completion",
    ),
    "question and answer": Format(
        columns="question, answer",
        required=("question", ("answer", "response")),
        optional=(*BEFORE, *_LATE),
        read=_question,
        example={"question": "What is 2 + 3?", "answer": "5", "ground_truth": "5"},
        note="a ground truth next to it goes to your functions",
    ),
    "query and response": Format(
        columns="query, response",
        required=("query", ("response", "answer")),
        optional=(*BEFORE, *_LATE),
        read=_query,
        example={"query": "And in Spain?", "response": "The Ebro.", "history": [["Name a river.", "The Po."]]},
    ),
    "thumbs": Format(
        columns="prompt, completion, label",
        required=(QUESTION, ANSWER, LABELS),
        optional=(*BEFORE, *LABELS, *SCORES, *_LATE, "input"),
        kept=SCORES,
        read=_thumb,
        example={"prompt": "Name a river.", "completion": "Rain.", "label": False},
        note="liked responses are demonstrations; a ranking takes a liked and a not liked one of the same prompt; "
        "a score next to the label is kept for functions, which is said",
    ),
    "scored completions": Format(
        columns="prompt, response, helpfulness",
        required=(QUESTION, ANSWER, SCORES),
        optional=(*BEFORE, *_LATE, "input", *_OTHER_SCORES),
        kept=_OTHER_SCORES,
        read=_score,
        example={
            "prompt": "Name a river.",
            "response": "The Ebro.",
            "helpfulness": 4,
            "correctness": 4,
            "coherence": 4,
            "complexity": 1,
            "verbosity": 1,
        },
        note="HelpSteer and others; responses to the same prompt make a ranking, and the best is a demonstration",
    ),
    "self-instruct": Format(
        columns="instruction, instances: [{input, output}]",
        required=("instruction", "instances"),
        optional=("is_classification", *_LATE),
        read=_self_instruct,
        example={"instruction": "Add one.", "instances": [{"input": "1", "output": "2"}]},
    ),
    "alpaca": Format(
        columns="instruction, input, output",
        required=("instruction",),
        optional=("output", "input", "text", "prompt", *BEFORE, *_LATE),
        read=_alpaca,
        fits=lambda row: not isinstance(row.get("output"), list),
        example={"instruction": "Translate.", "input": "el río", "output": "the river", "history": []},
    ),
    "alpaca with several outputs": Format(
        columns="instruction, input, output: [...]",
        required=("instruction", "output"),
        optional=("input", *BEFORE),
        read=_alpaca_many,
        fits=lambda row: isinstance(row["output"], list),
        example={"instruction": "Name a river.", "input": "", "output": ["The Ebro.", "The Po."]},
        note="alpaca_farm's samples; nothing says which is better",
    ),
    "instruction and response": Format(
        columns="instruction, context, response",
        required=("instruction", ("response", "answer", "completion")),
        optional=("context", "input", *BEFORE, *_LATE),
        read=_dolly,
        example={
            "instruction": "Which river?",
            "context": "The Ebro flows through Spain.",
            "response": "The Ebro.",
            "category": "closed_qa",
        },
        note="Dolly's form; the context follows the instruction",
    ),
    "problem and solution": Format(
        columns="problem, solution",
        required=(("problem", "question"), (*_SOLUTIONS, "answer")),
        optional=(*BEFORE, *LABELS, *_LATE, "answer", "expected_answer"),
        read=_problem,
        example={"problem": "What is 2 + 3?", "solution": "Two and three are 5.", "answer": "5", "level": 1},
        note="MATH's form and that of its successors; `answer` next to the solution goes to your functions",
    ),
    "inputs and targets": Format(
        columns="inputs, targets",
        required=(_SOURCES, _TARGETS),
        optional=_LATE,
        read=_source_and_target,
        example={"inputs": "Name a river.", "targets": "The Ebro.", "task_name": "rivers"},
        note="FLAN's, P3's and Aya's form",
    ),
    "input and output": Format(
        columns="input, output",
        required=("input", ("output", "target")),
        optional=(*SYSTEM, "history", *_LATE),
        read=_input_output,
        example={"input": "Name a river.", "output": "The Ebro."},
    ),
    "prompts": Format(
        columns="prompt",
        required=("prompt",),
        optional=BEFORE,
        read=_prompt,
        example={"prompt": "What is 2 + 3?", "ground_truth": "5"},
        note="a reference answer next to it goes to your functions",
    ),
    "asked and answered": Format(
        columns="prompt, output (or other names of both)",
        required=(_ASKED, _REPLIES),
        optional=(*BEFORE, *LABELS, *_LATE, "input"),
        read=_asked_and_answered,
        example={"user_query": "Name a river.", "model_output": "The Ebro."},
    ),
    "benchmark questions": Format(
        columns="question_id, turns: [...]",
        required=("question_id", "turns"),
        optional=("reference",),
        read=_first_question,
        example={"question_id": 81, "category": "writing", "turns": ["Name a river.", "And another."]},
        note="MT-Bench's form; the first question is the prompt",
    ),
    "sampling report": Format(
        columns="prompts: [{prompt, results: [{outputs}]}]",
        required=("prompts",),
        optional=("args",),
        read=_sampling_report,
        example={
            "model_name": "m",
            "date": "2023-03-01",
            "prompts": [
                {"prompt": "Name a river.", "results": [{"sampling_config": "k50", "outputs": ["The Ebro.", "Rain."]}]}
            ],
        },
        note="Open-Assistant's form; prompts, with responses that nobody judged",
    ),
}
