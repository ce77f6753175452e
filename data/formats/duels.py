"""Two responses side by side and who won: safety pairs, arenas, summaries, annotators' votes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.formats.instructions import instruction
from data.formats.ranking import (
    conversations,
    duel,
    has,
    is_number,
    ranking,
    scored,
    texts_of,
    turn_about,
    unranked,
    winner,
)
from data.formats.rows import TIED, Doubtful, Format, Reject, Row, numbered
from data.formats.turns import BEFORE, answer, asked, turns
from data.formats.values import first_of, liked, listed, number, string, whole
from data.records import Message, ranks_from_scores

STRONGEST = 3
"""How far HelpSteer's preferences go to either side; on another scale, as 1 to 5, they would all be the second's."""

_VOTES = ("annotator1", "annotator2", "annotator3")
VOTES = "the annotators"
"""What notes call those columns together, whichever of them a row has."""


def _pku(row: Mapping[str, Any]) -> list[Row]:
    answers = [answer(row[name], name) for name in ("response_0", "response_1")]
    return [_differ(_by_number(asked(row, "prompt"), answers, row["better_response_id"], "better_response_id", 0))]


def _by_number(messages: tuple[Message, ...], answers: list[str], value: Any, name: str, low: int) -> Row:
    """Two responses of which a verdict names the better one, by its number where it is one."""
    notes = (numbered(name),) if is_number(value) else ()
    return duel(messages, answers, winner(value, name, low), notes=notes)


def _differ(row: Row) -> Row:
    if len(row.answers) < 2:
        raise Reject("its two responses are the same")
    return row


def _arena(row: Mapping[str, Any]) -> list[Row]:
    names = ("conversation_a", "conversation_b")
    won = winner(row["winner"], "winner")
    both = conversations(row[names[0]], row[names[1]], names, row)
    return [_differ(duel(both[0][0], [both[0][1], both[1][1]], won, row["winner"]))]


def _arena_texts(row: Mapping[str, Any]) -> list[Row]:
    """Turns of each side as a JSON list in a cell, and one column for each outcome."""
    marks = [liked(row[name], name) for name in ("winner_model_a", "winner_model_b", "winner_tie")]
    if sum(marks) != 1:
        raise Reject("winner_model_a, winner_model_b and winner_tie name not one outcome")
    asked_for = texts_of(row["prompt"], "prompt")
    both = [turn_about(asked_for, texts_of(row[name], name), name) for name in ("response_a", "response_b")]
    if both[0][0] != both[1][0]:
        raise Reject("response_a and response_b differ before their last turn: they are no responses to the same")
    return [_differ(duel(both[0][0], [text for _, text in both], (0, 1, None)[marks.index(True)]))]


def _numbered(row: Mapping[str, Any]) -> list[Row]:
    """``response_1`` and ``response_2`` with a preference below zero for the first, above it for the second."""
    names = [first_of(row, (f"response_{n}", f"response{n}")) for n in (1, 2)]
    strength = first_of(row, ("overall_preference", "preference_strength"))
    assert names[0] is not None and names[1] is not None and strength is not None
    answers = [answer(row[name], name) for name in names if name is not None]
    context = row.get("context")
    messages = asked(row, "context" if context else "prompt")
    leaning = number(row[strength], strength)
    if abs(leaning) > STRONGEST:
        why = f"{strength} is {row[strength]}; it goes from -{STRONGEST} (the first is much better) to {STRONGEST}"
        raise Doubtful(why, numbered(strength))
    won = None if leaning == 0 else int(leaning > 0)
    return [_differ(duel(messages, answers, won, notes=(numbered(strength),)))]


def _voted(row: Mapping[str, Any]) -> list[Row]:
    """PandaLM's: 1 and 2 name the better response, 0 is a tie; most votes win."""
    votes = [whole(row[name], name) for name in _VOTES if name in row]
    names = ", ".join(n for n in _VOTES if n in row)
    if any(vote not in (0, 1, 2) for vote in votes):
        raise Doubtful(f"{names} must be 0 (tie), 1 or 2", numbered(VOTES))
    answers = [string(row[name], name) for name in ("response1", "response2")]
    counts = [votes.count(1), votes.count(2)]
    messages = asked(row, None, instruction(row["instruction"], row.get("input", "")))
    won = None if counts[0] == counts[1] else int(counts[1] > counts[0])
    return [_differ(duel(messages, answers, won, notes=(numbered(VOTES),)))]


def _farm(row: Mapping[str, Any]) -> list[Row]:
    """alpaca_farm's: ``preference`` 1 or 2 names the better output, which may be missing."""
    answers = [string(row[name], name) for name in ("output_1", "output_2")]
    messages = asked(row, None, instruction(row["instruction"], row.get("input", "")))
    if "preference" not in row:
        return [_differ(unranked(messages, answers))]
    return [_differ(_by_number(messages, answers, row["preference"], "preference", 1))]


def _shp(row: Mapping[str, Any]) -> list[Row]:
    answers = [string(row[name], name) for name in ("human_ref_A", "human_ref_B")]
    won = winner(row["labels"], "labels", 0)
    if "score_A" in row and "score_B" in row:
        first, second = (number(row[name], name) for name in ("score_A", "score_B"))
        if won is None or ((first < second) if won else (first > second)):
            raise Reject("labels contradicts score_A and score_B")
    notes = (numbered("labels"),) if is_number(row["labels"]) else ()
    return [_differ(duel(turns(row["history"], "history"), answers, None if won is None else 1 - won, notes=notes))]


def _webgpt(row: Mapping[str, Any]) -> list[Row]:
    question = row["question"]
    text = question.get("full_text") if isinstance(question, Mapping) else question
    answers = [string(row[name], name) for name in ("answer_0", "answer_1")]
    scores = [number(row[name], name) for name in ("score_0", "score_1")]
    made = scored(turns(string(text, "question"), "question"), answers, scores)
    return [_differ(made)]


def _post(info: Any) -> tuple[Message, ...]:
    """What is to be summarised, its title before it."""
    if not isinstance(info, Mapping) or not (post := info.get("post") or info.get("article")):
        raise Reject("info holds no post")
    title = f"{string(info['title'], 'title')}\n\n" if has(info, "title") else ""
    return (Message(role="user", content=title + string(post, "post")),)


def _rated_summary(row: Mapping[str, Any]) -> list[Row]:
    """OpenAI's: a post and one summary with a rating of each axis."""
    axes = row["summary"].get("axes")
    text = string(row["summary"].get("text"), "a summary").strip()
    overall = number(axes.get("overall") if isinstance(axes, Mapping) else None, "overall")
    return [Row(messages=_post(row["info"]), answers=(text,), ranks=(0,), judged="score", scores=(overall,))]


def _summaries(row: Mapping[str, Any]) -> list[Row]:
    """OpenAI's: a post, two summaries and the index of the better one."""
    messages = _post(row["info"])
    summaries = listed(row["summaries"], "summaries")
    if len(summaries) != 2 or not all(isinstance(s, Mapping) and "text" in s for s in summaries):
        raise Reject("summaries must be two objects with text")
    answers = [string(s["text"], "a summary").strip() for s in summaries]
    return [_differ(_by_number(messages, answers, row["choice"], "choice", 0))]


def _exchange(row: Mapping[str, Any]) -> list[Row]:
    answers = [string(row[name], name) for name in ("response_j", "response_k")]
    return [_differ(duel(asked(row, "question"), answers, 0))]


def _inferences(row: Mapping[str, Any]) -> list[Row]:
    """AceCode's: a question and a model's completions with the share of tests that each passes."""
    answers, scores = [], []
    for one in listed(row["inferences"], "inferences"):
        if not isinstance(one, Mapping) or "completion" not in one:
            raise Reject("inferences must be objects with completion and pass_rate")
        answers.append(string(one["completion"], "a completion"))
        scores.append(number(one.get("pass_rate"), "pass_rate"))
    ranks = ranks_from_scores(scores)
    notes = (TIED,) if answers and len(set(ranks)) == 1 else ()
    return [ranking(asked(row, "question"), answers, ranks, scores, notes)]


_Q, _A, _B = (
    {"role": "user", "content": "Name a river."},
    {"role": "assistant", "content": "The Ebro."},
    {"role": "assistant", "content": "Rain."},
)
_PKU = tuple(
    f"{a}{n}{b}"
    for n in (0, 1)
    for a, b in (
        ("is_response_", "_safe"),
        ("response_", "_severity_level"),
        ("response_", "_harm_category"),
        ("response_", "_source"),
        ("response_", "_sha256"),
    )
)
_SHP = (
    "score_A",
    "score_B",
    "metadata_A",
    "metadata_B",
    "score_ratio",
    "seconds_difference",
    "upvote_ratio",
    "c_root_id_A",
    "c_root_id_B",
    "created_at_utc_A",
    "created_at_utc_B",
)
_ACCEPTABLE = ("completion_a_is_acceptable", "completion_b_is_acceptable")
_AB = (*_ACCEPTABLE, *(f"{a}_{s}{b}" for s in "ab" for a, b in (("model", ""), ("response", "_model"))))

DUELS: dict[str, Format] = {
    "PKU-SafeRLHF": Format(
        columns="prompt, response_0, response_1, better_response_id",
        required=("prompt", "response_0", "response_1", "better_response_id"),
        optional=(*BEFORE, "safer_response_id", "prompt_source", *_PKU),
        kept=_PKU,
        read=_pku,
        example={
            "prompt": "Name a river.",
            "response_0": "Rain.",
            "response_1": "The Ebro.",
            "is_response_0_safe": True,
            "is_response_1_safe": True,
            "better_response_id": 1,
            "safer_response_id": 1,
        },
        note="ordered by better_response_id; what is said of safety is kept for functions",
    ),
    "arena battle": Format(
        columns="conversation_a, conversation_b, winner",
        required=("conversation_a", "conversation_b", "winner"),
        optional=(*_AB, "turn", "anony", "openai_moderation", "toxic_chat_tag"),
        kept=("toxic_chat_tag", *_ACCEPTABLE),
        read=_arena,
        example={
            "question_id": 1,
            "model_a": "x",
            "model_b": "y",
            "winner": "tie",
            "conversation_a": [_Q, _A],
            "conversation_b": [_Q, _B],
        },
        note="ties are ties",
    ),
    "arena outcomes": Format(
        columns="prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie",
        required=("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        optional=_AB,
        kept=_ACCEPTABLE,
        read=_arena_texts,
        example={
            "model_a": "x",
            "model_b": "y",
            "prompt": '["Name a river."]',
            "response_a": '["Rain."]',
            "response_b": '["The Ebro."]',
            "winner_model_a": 0,
            "winner_model_b": 1,
            "winner_tie": 0,
        },
    ),
    "two responses": Format(
        columns="prompt, response_1, response_2, preference_strength",
        required=(
            ("prompt", "context"),
            ("response_1", "response1"),
            ("response_2", "response2"),
            ("overall_preference", "preference_strength"),
        ),
        optional=(
            *BEFORE,
            "individual_preference",
            "preference_statement",
            "preference_elaboration",
            "three_most_similar_preferences",
            "all_preferences_unprocessed",
        ),
        kept=(
            *("individual_preference", "preference_statement", "preference_elaboration"),
            *("three_most_similar_preferences", "all_preferences_unprocessed"),
        ),
        read=_numbered,
        example={
            "prompt": "Name a river.",
            "response_1": "The Ebro.",
            "response_2": "Rain.",
            "preference_strength": -2,
        },
        note="HelpSteer's, -3 to 3: below 0 the first is better, above 0 the second",
    ),
    "PandaLM": Format(
        columns="instruction, input, response1, response2, annotator1",
        required=("instruction", "response1", "response2", _VOTES),
        optional=("input", "cmp_key", *_VOTES),
        read=_voted,
        example={
            "instruction": "Name a river.",
            "input": "",
            "response1": "Rain.",
            "response2": "The Ebro.",
            "annotator1": 2,
            "annotator2": 2,
            "annotator3": 0,
        },
        note="0 is a tie; most votes win",
    ),
    "alpaca_farm pairs": Format(
        columns="instruction, input, output_1, output_2, preference",
        required=("instruction", "output_1", "output_2"),
        optional=("input", "preference", *BEFORE),
        read=_farm,
        example={
            "instruction": "Name a river.",
            "input": "",
            "output_1": "Rain.",
            "output_2": "The Ebro.",
            "preference": 2,
        },
        note="without a preference nothing says which is better",
    ),
    "SHP": Format(
        columns="history, human_ref_A, human_ref_B, labels",
        required=("history", "human_ref_A", "human_ref_B", "labels"),
        optional=_SHP,
        kept=("score_ratio", "upvote_ratio"),
        read=_shp,
        example={
            "history": "Name a river.",
            "human_ref_A": "Rain.",
            "human_ref_B": "The Ebro.",
            "labels": 0,
            "score_A": 2,
            "score_B": 9,
        },
        note="labels 1 says that A is better, 0 that B is",
    ),
    "WebGPT": Format(
        columns="question, answer_0, answer_1, score_0, score_1",
        required=("question", "answer_0", "answer_1", "score_0", "score_1"),
        optional=("quotes_0", "quotes_1", "tokens_0", "tokens_1"),
        read=_webgpt,
        example={
            "question": {"full_text": "Name a river."},
            "answer_0": "Rain.",
            "answer_1": "The Ebro.",
            "score_0": -1.0,
            "score_1": 1.0,
        },
        note="equal scores are a tie; quotes are kept for functions",
    ),
    "summaries": Format(
        columns="info: {post}, summaries: [{text}], choice",
        required=("info", "summaries", "choice"),
        optional=("worker", "batch", "extra"),
        read=_summaries,
        example={
            "info": {"title": "A walk", "post": "I walked along the Ebro."},
            "summaries": [{"text": "Nothing."}, {"text": "A walk along a river."}],
            "choice": 1,
        },
        note="the post is the prompt",
    ),
    "rated summaries": Format(
        columns="info: {post}, summary: {text, axes: {overall}}",
        required=("info", "summary"),
        optional=("worker", "batch", "extra"),
        fits=lambda row: isinstance(row["summary"], Mapping),
        read=_rated_summary,
        example={
            "info": {"title": "A walk", "post": "I walked along the Ebro."},
            "summary": {"text": "A walk along a river.", "axes": {"overall": 7, "coverage": 5}},
        },
        note="the overall rating of a summary; those of one post make a ranking",
    ),
    "stack exchange pairs": Format(
        columns="question, response_j, response_k",
        required=("question", "response_j", "response_k"),
        optional=(),
        read=_exchange,
        example={"question": "Name a river.", "response_j": "The Ebro.", "response_k": "Rain."},
        note="response_j is the better one",
    ),
    "completions with pass rates": Format(
        columns="question, inferences: [{completion, pass_rate}]",
        required=("question", "inferences"),
        optional=("test_cases", "context_messages"),
        read=_inferences,
        example={
            "question": "Return 1.",
            "inferences": [{"completion": "return 2", "pass_rate": 0.0}, {"completion": "return 1", "pass_rate": 1.0}],
            "test_cases": ["assert f() == 1"],
        },
        note="AceCode's form",
    ),
}
