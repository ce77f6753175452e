"""Data sets that many people have, known by their columns, with the settings of a source that read them.

Each is what somebody would write in a recipe: the columns by our names, and those that describe a row and are no part
of what is learnt. A set is known by columns that no other has together; with one of them missing, or settings of the
recipe's own, it is read as any other file. Sets without training data that can be used are refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from data.formats.columns import named_by


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSet:
    """One set: columns that it is known by, our names for its columns, those left out, or why it is refused.

    ``fits`` looks at values where names do not decide. ``read`` is what a row becomes, in words; ``example`` is one,
    shown nowhere and read by a test.
    """

    known_by: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    refused: str = ""
    fits: Callable[[Mapping[str, Any]], bool] | None = None
    read: str = ""
    example: Mapping[str, Any] = field(default_factory=dict)


_PAIR = {"chosen": "The Ebro.", "rejected": "Rain."}
_TURNS = [{"from": "human", "value": "Name a river."}, {"from": "gpt", "value": "The Ebro."}]
_MESSAGES = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Ebro."}]

PUBLIC_SETS: dict[str, PublicSet] = {
    "Magpie": PublicSet(
        known_by=("instruction", "response", "input_quality", "difficulty"),
        fits=lambda row: len(row.get("conversations") or "qa") == 2,
        ignore=(
            *("conversations", "intent", "knowledge", "task_category_generator", "other_task_category"),
            *("difficulty_generator", "input_quality", "quality_explanation", "quality_generator", "llama_guard_2"),
            *("reward_model", "instruct_reward", "min_similar_uuid", "min_neighbor_distance", "gen_input_configs"),
            *("pre_query_template", "base_uuid", "reward_model_1", "reward_model_2", "score_*"),
        ),
        read="instruction and response",
        example={
            "instruction": "Name a river.",
            "response": "The Ebro.",
            "conversations": _TURNS,
            "input_quality": "good",
            "quality_explanation": "It is clear.",
            "difficulty": "easy",
            "intent": "The user wants a river.",
            "knowledge": "Rivers.",
            "instruct_reward": 1.0,
        },
    ),
    "MetaMath": PublicSet(
        known_by=("query", "response", "original_question"),
        ignore=("original_question",),
        read="query and response",
        example={"type": "GSM_Rephrased", "query": "Name a river.", "original_question": "x?", "response": "The Ebro."},
    ),
    "Infinity-Instruct": PublicSet(
        known_by=("conversations", "label", "langdetect"),
        ignore=("label", "langdetect", "reward"),
        read="conversations",
        example={"conversations": _TURNS, "label": {"ability_en": ["x"]}, "langdetect": "en", "reward": 1.5},
    ),
    "WildChat": PublicSet(
        known_by=("conversation_hash", "conversation", "openai_moderation"),
        ignore=("state", "country", "hashed_ip", "header", "redacted", "toxic", "*_moderation", "conversation_hash"),
        read="conversation",
        example={
            "conversation_hash": "x",
            "conversation": _MESSAGES,
            "openai_moderation": [{"flagged": False}],
            "state": "Texas",
            "header": {"accept-language": "en"},
        },
    ),
    "OpenR1-Math": PublicSet(
        known_by=("problem", "solution", "generations", "messages", "correctness_math_verify"),
        ignore=(
            *("problem", "solution", "answer", "generations", "correctness_math_verify", "correctness_llama"),
            *("finish_reasons", "is_reasoning_complete", "correctness_count", "problem_type", "question_type"),
        ),
        read="messages",
        example={
            "problem": "Name a river.",
            "solution": "x",
            "answer": "y",
            "generations": ["<think>a</think>The Ebro.", "b"],
            "correctness_math_verify": [True, False],
            "messages": _MESSAGES,
        },
    ),
    "NuminaMath": PublicSet(
        known_by=("problem", "solution", "messages"),
        ignore=("problem", "solution", "answer"),
        fits=lambda row: isinstance(row["messages"], list) and len(row["messages"]) == 2,
        read="messages, which are the problem and its solution",
        example={"problem": "Name a river.", "solution": "The Ebro.", "messages": _MESSAGES},
    ),
    "Open Instruct's comparisons by people": PublicSet(
        known_by=("completion_a", "completion_b", "completion_a_is_acceptable", "preference", "instance_quality"),
        ignore=("completion_a_is_acceptable", "completion_b_is_acceptable", "instance_quality", "comment"),
        read="two sides",
        example={
            "prompt": "Name a river.",
            "completion_a": "The Ebro.",
            "completion_b": "Rain.",
            "completion_a_is_acceptable": "yes",
            "completion_b_is_acceptable": "no",
            "preference": "a-is-better",
            "instance_quality": "good",
            "comment": "Rain is no river.",
        },
    ),
    "distilabel's Capybara pairs": PublicSet(
        known_by=("conversation", "original_response", "chosen", "rejected"),
        ignore=(
            *("conversation", "original_response", "generation_prompt", "raw_generation_responses", "new_generations"),
            "prompt",
        ),
        fits=lambda row: isinstance(row["chosen"], list),
        read="chosen and rejected, which are whole conversations",
        example={
            "conversation": [{"input": "Name a river.", "output": "The Ebro."}],
            "original_response": "The Ebro.",
            "prompt": "Name a river.",
            "chosen": _MESSAGES,
            "rejected": [_MESSAGES[0], {"role": "assistant", "content": "Rain."}],
        },
    ),
    "s1K": PublicSet(
        known_by=("question", "attempt", "thinking_trajectories"),
        columns={"prompt": "question", "completion": "attempt", "thinking": "thinking_trajectories"},
        ignore=("solution", "cot", "cot_type", "source_type"),
        read="question and attempt, the thinking before it",
        example={
            "question": "Name a river.",
            "solution": "x",
            "thinking_trajectories": ["Spain."],
            "attempt": "The Ebro.",
        },
    ),
    "UltraInteract pairs": PublicSet(
        known_by=("trajectory", "chosen", "rejected"),
        fits=lambda row: isinstance(row["trajectory"], list),
        columns={"prompt": "trajectory"},
        read="the trajectory is the prompt",
        example={"trajectory": [{"from": "user", "value": "Name a river."}], **_PAIR, "parent_id": "x"},
    ),
    "Prometheus": PublicSet(
        known_by=("orig_instruction", "orig_response", "orig_score", "instruction", "output"),
        refused='it holds a judge\'s task and the response that is judged: write `ignore: ["orig_*"]` to learn the '
        "judge's feedback, or `columns: {prompt: orig_instruction, completion: orig_response, score: orig_score}, "
        'ignore: [instruction, output, input, orig_criteria, orig_feedback, orig_reference_answer, "orig_score?*"]` '
        "for the responses with their scores",
        example={
            "orig_instruction": "Name a river.",
            "orig_response": "The Ebro.",
            "orig_reference_answer": "The Ebro.",
            "orig_score": "5",
            "orig_score1_description": "Long.",
            "orig_criteria": "Is it short?",
            "orig_feedback": "It is.",
            "instruction": "###Task",
            "output": "It is. [RESULT] 5",
            "input": "",
        },
    ),
    "COIG": PublicSet(
        known_by=("instruction", "output", "task_type", "answer_from"),
        ignore=("answer_from", "human_verified", "copyright", "task_type", "domain"),
        read="alpaca",
        example={
            "instruction": "Name a river.",
            "input": "",
            "output": "The Ebro.",
            "task_type": {"major": ["x"]},
            "answer_from": "human",
            "human_verified": True,
        },
    ),
    "Arena 140k": PublicSet(
        known_by=("conversation_a", "conversation_b", "winner", "full_conversation"),
        ignore=("full_conversation", "conv_metadata", "category_tag", "is_code", "evaluation_order"),
        read="arena battle",
        example={
            "conversation_a": _MESSAGES,
            "conversation_b": [_MESSAGES[0], {"role": "assistant", "content": "Rain."}],
            "winner": "model_a",
            "full_conversation": [{"user": _MESSAGES[0]}],
        },
    ),
    "Hermes function calling": PublicSet(
        known_by=("conversations", "tools", "subcategory", "task"),
        ignore=("subcategory", "task", "schema"),
        read="conversations with tools",
        example={"conversations": _TURNS, "tools": "[]", "category": "c", "subcategory": "Home", "task": "Turn it on."},
    ),
    "preference dissection": PublicSet(
        known_by=("query", "response_1", "response_2", "preference_labels"),
        refused="it holds a preference of each of 32 judges in preference_labels; make one column of the one you mean",
        example={"query": "q", "response_1": {"content": "a"}, "response_2": {"content": "b"}, "preference_labels": {}},
    ),
    "PRM800K": PublicSet(
        known_by=("labeler", "question", "label"),
        fits=lambda row: isinstance(row["label"], Mapping),
        refused="its labels are of steps of a solution; a reward model here scores whole responses",
        example={"labeler": "x", "question": {"problem": "2 + 3?"}, "label": {"steps": []}},
    ),
    "steps with labels": PublicSet(
        known_by=("prompt", "completions", "labels"),
        fits=lambda row: isinstance(row["completions"], list) and isinstance(row["labels"], list),
        refused="its labels are of steps of a solution; a reward model here scores whole responses",
        example={"prompt": "2 + 3?", "completions": ["Add.", "5."], "labels": [True, False]},
    ),
    "Math-Shepherd": PublicSet(
        known_by=("input", "label", "task"),
        fits=lambda row: "ки" in str(row["input"]),
        refused="its labels are of steps of a solution; a reward model here scores whole responses",
        example={"input": "2 + 3? Add. ки", "label": "2 + 3? Add. +", "task": "GSM8K"},
    ),
    "JudgeLM": PublicSet(
        known_by=("question_body", "answer1_body", "answer2_body", "score"),
        fits=lambda row: isinstance(row["score"], list),
        refused="its scores are log-probabilities of a judge, not of the answers",
        example={"question_body": "q", "answer1_body": "a", "answer2_body": "b", "score": [{"logprobs": -7.0}]},
    ),
    "Chinese DeepSeek-R1 distillation": PublicSet(
        known_by=("input", "reasoning_content", "content"),
        columns={"prompt": "input", "completion": "content"},
        ignore=("repo_name", "score"),
        read="the content, its reasoning before it",
        example={"input": "Name a river.", "reasoning_content": "Spain.", "content": "The Ebro.", "score": 9},
    ),
    "CAMEL": PublicSet(
        known_by=("message_1", "message_2"),
        columns={"prompt": "message_1", "completion": "message_2"},
        ignore=("role_1", "role_2", "topic*", "sub_topic*"),
        read="the first message is the prompt",
        example={"role_1": "x", "topic;": "t", "message_1": "Name a river.", "message_2": "The Ebro."},
    ),
    "Nemotron post-training": PublicSet(
        known_by=("input", "output", "used_in_training"),
        ignore=("used_in_training",),
        read="input and output; a system message from its column",
        example={
            "input": [{"role": "user", "content": "Name a river."}],
            "output": "The Ebro.",
            "reasoning": "off",
            "used_in_training": "yes",
        },
    ),
    "FineWeb": PublicSet(
        known_by=("text", "dump", "language_score"),
        ignore=("score", "int_score", "language_score"),
        read="text",
        example={"text": "The Ebro.", "dump": "CC", "language_score": 0.9, "score": 3.2, "int_score": 3},
    ),
    "red team attempts": PublicSet(
        known_by=("transcript", "task_description", "min_harmlessness_score_transcript"),
        refused="its responses are of a model that somebody tries to harm, and its rating says how well that went; if "
        'you mean to use them, write `ignore: [rating, "task_description*", min_harmlessness_score_transcript]`',
        example={
            "transcript": "\n\nHuman: Name a river.\n\nAssistant: The Ebro.",
            "task_description": "I asked it.",
            "min_harmlessness_score_transcript": -3.0,
            "rating": 0.0,
        },
    ),
    "pairs out of many samples": PublicSet(
        known_by=("chosen", "rejected", "all_generated_responses"),
        ignore=("all_generated_responses", "all_rm_scores"),
        read="the pair",
        example={"prompt": "Name a river.", **_PAIR, "all_generated_responses": ["The Ebro."], "all_rm_scores": [0.2]},
    ),
    "Natural Instructions": PublicSet(
        known_by=("definition", "inputs", "targets"),
        columns={"instruction": "definition", "input": "inputs", "output": "targets"},
        read="alpaca: the definition is the instruction",
        example={"task_name": "t", "id": "1", "definition": "Name a river.", "inputs": "", "targets": "The Ebro."},
    ),
    "CommonsenseQA": PublicSet(
        known_by=("question", "question_concept", "choices", "answerKey"),
        ignore=("question_concept",),
        read="multiple choice",
        example={
            "question": "Which is a river?",
            "question_concept": "river",
            "choices": {"label": ["A", "B"], "text": ["Rain", "Ebro"]},
            "answerKey": "B",
        },
    ),
    "Magicoder": PublicSet(
        known_by=("problem", "solution", "openai_fingerprint"),
        ignore=("openai_fingerprint", "seed"),
        read="problem and solution",
        example={"problem": "Name a river.", "solution": "The Ebro.", "openai_fingerprint": "f", "seed": "x = 1"},
    ),
    "Math-Step-DPO": PublicSet(
        known_by=("prompt", "initial_reason_steps", "full_chosen", "prompt + initial_reason_steps"),
        ignore=("prompt + initial_reason_steps",),
        read="next steps of a solution",
        example={
            "prompt": "Name a river.",
            "initial_reason_steps": "Think. ",
            "prompt + initial_reason_steps": "Name a river. Think.",
            "full_chosen": "Think. The Ebro.",
            "full_rejected": "Think. Rain.",
            **_PAIR,
        },
    ),
    "WebInstruct": PublicSet(
        known_by=("question", "answer", "orig_question", "orig_answer"),
        ignore=("orig_question", "orig_answer"),
        read="question and answer",
        example={"question": "Name a river.", "answer": "The Ebro.", "orig_question": "x?", "orig_answer": "y"},
    ),
    "xLAM function calls": PublicSet(
        known_by=("query", "answers", "tools"),
        fits=lambda row: isinstance(row["answers"], str),
        columns={"prompt": "query", "completion": "answers"},
        read="the answer is the list of calls as JSON",
        example={"query": "Name a river.", "answers": '[{"name": "f"}]', "tools": '[{"name": "f", "parameters": {}}]'},
    ),
}


def set_of(row: Mapping[str, Any], ignore: Collection[str] = ()) -> PublicSet | None:
    """The set that a row is of, where nothing is left out of what it is known by."""
    one = _known(tuple(row), tuple(ignore))
    return one if one is not None and (one.fits is None or one.fits(row)) else None


@lru_cache(maxsize=4096)
def _known(names: tuple[Any, ...], ignore: tuple[str, ...]) -> PublicSet | None:
    present = {str(name) for name in names if not named_by(str(name), ignore)}
    return next((one for one in PUBLIC_SETS.values() if present >= set(one.known_by)), None)
