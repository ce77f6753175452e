"""Several responses to one prompt: best first, with ranks, with scores, or each with its own."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

from data.annotators import judged
from data.formats.instructions import QUESTION, asked_any
from data.formats.ranking import ranking, scored, unranked
from data.formats.rows import NO_PROMPT, Format, Reject, Row
from data.formats.turns import BEFORE, answer
from data.formats.values import first_of, listed, number, string, whole
from data.readers.rows import CELLS
from data.records import Message, ranks_from_scores

RANKS = ("ranks", "rank")
SCORES = ("scores", "rewards", "ratings", "score", "reward", "rating")
_TEXTS = ("text", "answer", "response", "completion", "output", "content", "generation", "summary", "body")
UNLIKE = "rankings of which a second score orders some responses otherwise: the first decides"
_ITEM_SCORES = (
    *("score", "overall_score", "fine-grained_score", "rating", "reward", "pm_score", "upvotes", "votes", "quality"),
)


def _cells(row: Mapping[str, Any]) -> list[Row]:
    """A tab-separated line: responses best first, no prompt."""
    cells = [string(cell, "a cell") for cell in listed(row[CELLS], "cells")]
    answers = [cell for cell in cells if cell.strip()]
    return [ranking((), answers, range(len(answers)))]


def _messages(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    messages = asked_any(row)
    return messages, (NO_PROMPT,) if first_of(row, QUESTION) and not messages else ()


def _ranked(row: Mapping[str, Any]) -> list[Row]:
    """Responses best first, or next to their ranks (lowest is best, equal ranks tie) or scores (higher is better)."""
    answers = [answer(a, "responses") for a in listed(row["responses"], "responses")]
    by_rank, by_score = first_of(row, RANKS), first_of(row, SCORES)
    marks = {"ranks": by_rank, "scores": by_score}
    given = {"ranks": None, "scores": None} | {
        ours: listed(row[their], their) for ours, their in marks.items() if their
    }
    lists, answers, left_out = judged({k: v for k, v in given.items() if v is not None}, answers)
    ended = _ended(row.get("finished"), len(listed(row["responses"], "responses")))
    if left_out and ended:
        raise Reject("finished cannot be matched to responses of which some have no rank")
    # a column that the recipe calls scores may say of each whether it is right
    scores = (
        [float(s) if isinstance(s, bool) else number(s, by_score or "scores") for s in lists["scores"]]
        if "scores" in lists
        else None
    )
    ranks: Sequence[int] = range(len(answers))
    if "ranks" in lists:
        ranks = _whole_ranks([number(r, by_rank or "ranks") for r in lists["ranks"]])
    elif scores is not None:
        ranks = ranks_from_scores(scores)
    if len(ranks) != len(answers) or (scores is not None and len(scores) != len(answers)):
        raise Reject("responses, ranks and scores differ in number")
    if scores is not None and (pair_ := _contradicted(ranks, scores)) is not None:
        one, other = pair_
        raise Reject(
            f"{by_score} contradict {by_rank}: of rank {ranks[one]} is {scores[one]:g}, of rank {ranks[other]} "
            f"{scores[other]:g}, and the lowest rank and the highest score are best; to leave one out, write "
            f"`ignore: [{by_rank}]` or `ignore: [{by_score}]`"
        )
    messages, notes = _messages(row)
    return [ranking(messages, answers, ranks, scores, left_out + notes, ended)]


def _contradicted(ranks: Sequence[int], scores: Sequence[float]) -> tuple[int, int] | None:
    """Two neighbours in rank of which the worse one has the higher score; None where there are none."""
    order = sorted(range(len(ranks)), key=lambda i: (ranks[i], -scores[i]))
    lowest: dict[int, int] = {}
    for at in order:
        lowest[ranks[at]] = at  # the last of its rank has the lowest score
    steps = sorted(lowest)
    for rank, following in pairwise(steps):
        best = next(at for at in order if ranks[at] == following)
        if scores[best] > scores[lowest[rank]]:
            return lowest[rank], best
    return None


def _whole_ranks(given: Sequence[float]) -> list[int]:
    if any(not r.is_integer() for r in given):
        raise Reject("ranks must be whole numbers, 0 is best; give `scores` if these are scores")
    if any(r < 0 for r in given):
        raise Reject("ranks count from 0 (best)")
    return [int(r) for r in given]


def _ended(finished: Any, count: int) -> list[bool]:
    """Whether each response is whole, where the row says so."""
    if finished is None:
        return []
    marks = finished if isinstance(finished, list) else [finished] * count
    if len(marks) != count or any(not isinstance(mark, bool) for mark in marks):
        raise Reject("finished must be true or false, for all responses or one for each")
    return marks


def _own_marks(row: Mapping[str, Any], name: str) -> list[Row]:
    """Responses with a score (higher is better) or rank (lower is better) each; those without one are left out."""
    texts: list[str] = []
    marks: list[float] = []
    kinds: set[str] = set()
    marked: list[Mapping[str, Any]] = []
    for one in listed(row[name], name):
        text = first_of(one, _TEXTS) if isinstance(one, Mapping) else None
        if text is None:
            raise Reject(f"{name} must be objects with text and score")
        mark = next((k for k in (*_ITEM_SCORES, "rank") if one.get(k) is not None), None)
        if mark is None:
            continue
        kinds.add("rank" if mark == "rank" else "score")
        marked.append(one)
        texts.append(string(one[text], f"a response's {text}"))
        marks.append(number(one[mark], mark))
    if not texts:
        raise Reject("none of its responses has a score")
    if len(kinds) > 1:
        raise Reject(f"some of {name} have ranks, others scores")
    if kinds == {"rank"}:
        return [ranking(_messages(row)[0], texts, _whole_ranks(marks))]
    notes = _agreeing(marked, name)
    made = scored(_messages(row)[0], texts, marks)
    return [replace(made, notes=(*made.notes, *notes)) if notes else made]


def _agreeing(items: Sequence[Mapping[str, Any]], name: str) -> tuple[str, ...]:
    """A note where two scores that all responses have order some of them unlike.

    Raises:
        Reject: one score has the best response where the other has the worst.
    """
    found = {key: [one[key] for one in items] for key in (*_ITEM_SCORES, "rank") if all(_scores(o, key) for o in items)}
    lists = {key: [number(v, key) * (-1 if key == "rank" else 1) for v in own] for key, own in found.items()}
    unlike = False
    for (one, first), (other, second) in combinations(lists.items(), 2):
        if len(set(first)) == 1 or len(set(second)) == 1:
            continue
        for a, b in ((first, second), (second, first)):
            if {y for x, y in zip(a, b, strict=True) if x == max(a)} == {min(b)}:
                raise Reject(
                    f"{one} and {other} in {name} contradict each other: one has the best response where the other has "
                    "the worst; leave one of the two out"
                )
        pairs = combinations(zip(first, second, strict=True), 2)
        unlike = unlike or any((a > x and b < y) or (a < x and b > y) for (a, b), (x, y) in pairs)
    return (UNLIKE,) if unlike else ()


def _scores(item: Mapping[str, Any], key: str) -> bool:
    """Whether a response has a number of this name."""
    try:
        return item.get(key) is not None and number(item[key], key) is not None
    except Reject:
        return False


def _answers(row: Mapping[str, Any]) -> list[Row]:
    return _own_marks(row, "answers")


_OBJECTS = ("completions", "responses", "outputs", "generations", "candidates", "samples")


def _completions(row: Mapping[str, Any]) -> list[Row]:
    name = first_of(row, _OBJECTS)
    assert name is not None
    return _own_marks(row, name)


def _annotated(row: Mapping[str, Any]) -> list[Row]:
    """Responses, and in another list a rating of each; both name the model where they do not stand in one order."""
    both = [listed(row[name], name) for name in ("responses", "annotations")]
    if any(not isinstance(one, Mapping) for part in both for one in part) or len(both[0]) != len(both[1]):
        raise Reject("responses and annotations must be as many objects")
    texts = [string(one.get(first_of(one, _TEXTS) or "response"), "a response") for one in both[0]]
    makers = [[one.get("model") for one in part] for part in both]
    order = range(len(texts))
    if makers[0] != makers[1]:
        if len({str(m) for m in makers[0]}) < len(texts) or sorted(map(str, makers[0])) != sorted(map(str, makers[1])):
            raise Reject("annotations cannot be matched to responses by their model")
        order = [makers[1].index(maker) for maker in makers[0]]  # type: ignore[assignment]
    notes = [both[1][at] for at in order]
    marks = [number(one.get(first_of(one, ("rating", "score")) or "rating"), "rating") for one in notes]
    return [scored(_messages(row)[0], texts, marks)]


_SAMPLES = ("completions", "answers", "outputs", "generations", "samples")
LISTS = ("responses", "completions", "answers", "outputs", "generations", "samples", "candidates", "options", "choices")
_POINTS = ("best_index", "best_idx", "chosen_index", "chosen_idx", "preferred_index", "best_response_index")
_BEST = (*_POINTS, "best_response", "best_answer", "best", "chosen", "selected", "preferred", "winner")
MARKS = frozenset({*RANKS, *SCORES, *_BEST})
"""Columns that say which of several responses is better."""


def _best_of(row: Mapping[str, Any]) -> list[Row]:
    """Responses of which one is named, by its text or its index from 0: it is better than the others."""
    name, best = first_of(row, LISTS), first_of(row, _BEST)
    assert name is not None and best is not None
    texts = [answer(one, name) for one in listed(row[name], name)]
    value = row[best]
    if isinstance(value, str) and value in texts:
        at = texts.index(value)
    elif best not in _POINTS:
        shown = repr(value)[:40]
        raise Reject(
            f"{best} is {shown}, none of its {name}; if it counts them from 0, write `columns: {{best_index: {best}}}`"
        )
    else:
        at = whole(value, best)
    if not 0 <= at < len(texts):
        raise Reject(f"{best} is {at}, and it has {len(texts)} {name}, counted from 0")
    messages, notes = _messages(row)
    return [ranking(messages, texts, [int(i != at) for i in range(len(texts))], notes=notes)]


def _of_objects(row: Mapping[str, Any]) -> bool:
    value = next((row[name] for name in (*_OBJECTS, "answers") if name in row), None)
    keys = {k for one in value if isinstance(one, Mapping) for k in one} if isinstance(value, list) else set()
    return bool(keys & {*_ITEM_SCORES, "rank"}) or (bool(keys) and not keys & {"role", "from"})


def _samples(row: Mapping[str, Any]) -> list[Row]:
    name = first_of(row, _SAMPLES)
    assert name is not None
    answers = [answer(a, name) for a in listed(row[name], name)]
    by_rank, by_score = first_of(row, RANKS), first_of(row, SCORES)
    if by_rank or by_score:
        return _ranked(ChainMap({"responses": row[name]}, row))  # type: ignore[arg-type]  # row is only read
    return [unranked(_messages(row)[0], answers)]


_BOTH = (*RANKS, *SCORES)

RANKINGS: dict[str, Format] = {
    "tab-separated ranking": Format(
        columns="responses best first, no header",
        required=(CELLS,),
        read=_cells,
        example={CELLS: ["The Ebro.", "A river.", "Rain."]},
        note="a tab-separated file without a header, if the recipe says so",
    ),
    "ranked answers": Format(
        columns="prompt, responses (best first)",
        required=("responses",),
        optional=("prompt", *_BOTH, *BEFORE, "finished"),
        read=_ranked,
        fits=lambda row: not _of_objects(row),
        in_order=True,
        example={"prompt": "Name a river.", "responses": ["Rain.", "The Ebro."], "rewards": [0.1, 0.9]},
        note="with ranks or rank (lowest is best) or scores, rewards or ratings (highest is best) in their order",
    ),
    "ranked answers to a question": Format(
        columns="question, responses (best first)",
        required=(QUESTION[1:], "responses"),
        optional=("input", *_BOTH, *BEFORE, "finished"),
        read=_ranked,
        fits=lambda row: not _of_objects(row),
        in_order=True,
        example={"instruction": "Name a river.", "responses": ["The Ebro.", "Rain."], "rank": [1, 2]},
        note="or instruction (with input) or query",
    ),
    "scored answers": Format(
        columns="prompt, answers: [{text, score}]",
        required=(QUESTION, "answers"),
        optional=("input", "turns", "num_responses", "good_natured", *BEFORE),
        kept=("good_natured",),
        read=_answers,
        fits=_of_objects,
        example={
            "prompt": "Name a river.",
            "answers": [
                {"answer": "The Ebro.", "model": "m", "rank": 1.0},
                {"answer": "Rain.", "model": "n", "rank": 2.0},
            ],
        },
        note="Nectar's form too: text or answer, score or rank",
    ),
    "UltraFeedback": Format(
        columns="instruction, completions: [{response, overall_score}]",
        required=(QUESTION, _OBJECTS),
        optional=("input", "models", "correct_answers", "incorrect_answers", *BEFORE),
        kept=("correct_answers", "incorrect_answers"),
        read=_completions,
        fits=_of_objects,
        example={
            "instruction": "Name a river.",
            "completions": [
                {"model": "m", "response": "The Ebro.", "overall_score": 8.0},
                {"model": "n", "response": "Rain.", "overall_score": 3.0},
            ],
        },
    ),
    "responses and annotations": Format(
        columns="instruction, responses: [{model, response}], annotations: [{model, rating}]",
        required=(QUESTION, "responses", "annotations"),
        optional=("input", *BEFORE, "preference", "converted_preference"),
        kept=("preference", "converted_preference"),
        read=_annotated,
        fits=_of_objects,
        example={
            "instruction": "Name a river.",
            "responses": [{"model": "m", "response": "Rain."}, {"model": "n", "response": "The Ebro."}],
            "annotations": [{"model": "n", "rating": "5", "rationale": "Right."}, {"model": "m", "rating": "1"}],
        },
        note="CodeUltraFeedback's form, whose preference names what was rated",
    ),
    "responses and the best": Format(
        columns="prompt, responses, best_index (from 0) or best_response",
        required=(QUESTION, LISTS, _BEST),
        optional=("input", *BEFORE),
        fits=lambda row: not _of_objects(row),
        read=_best_of,
        example={"prompt": "Name a river.", "responses": ["Rain.", "The Ebro."], "best_index": 1},
        note="one response is better than the others, which tie",
    ),
    "several samples": Format(
        columns="prompt, completions: [...]",
        required=(QUESTION, _SAMPLES),
        optional=("input", *_BOTH, *BEFORE, "finished", "rationales", "generation_models"),
        read=_samples,
        fits=lambda row: not _of_objects(row) and not isinstance(row[first_of(row, _SAMPLES) or ""], Mapping),
        example={"prompt": "Name a river.", "completions": ["Rain.", "The Ebro."], "scores": [0.1, 0.9]},
        note="without scores or ranks nothing says which is better",
    ),
}
