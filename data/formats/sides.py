"""Two responses in columns whose names are opposites (accepted, rejected) or differ by a side (response_a, response_b).

The names need not be known one by one: what matters is the pair of words in which they differ. Who won is said by the
words, by a column with a verdict, or by a score of each side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from data.formats.columns import plain
from data.formats.instructions import instruction
from data.formats.one_response import finished_of
from data.formats.ranking import (
    Side,
    check_plain,
    check_signed,
    duel,
    is_number,
    pair,
    ranking,
    scored,
    side,
    texts_of,
    turn_about,
)
from data.formats.rows import Doubtful, Format, Reject, Row, numbered, quoted
from data.formats.turns import BEFORE, answer, asked, turns
from data.formats.values import kind, number, string, words
from data.records import Message, ranks_from_scores

ASKED = (
    *("prompt", "question", "query", "instruction", "context", "conversations", "messages", "history", "input"),
    *("inputs", "problem", "post", "user", "user_prompt", "user_input", "user_query", "prompt_text", "question_text"),
    *("question_body", "instructions", "request", "task_prompt", "input_text", "source_text"),
    *("frage", "pregunta", "pergunta", "domanda"),
)
"""Names of what is asked, the likeliest first."""

OPPOSITES = (
    *(("chosen", "rejected"), ("accepted", "rejected"), ("preferred", "rejected"), ("selected", "rejected")),
    *(("preferred", "dispreferred"), ("preferred", "unpreferred"), ("preferred", "nonpreferred")),
    *(("better", "worse"), ("best", "worst"), ("good", "bad"), ("winner", "loser"), ("winning", "losing")),
    *(("win", "lose"), ("win", "loss"), ("won", "lost"), ("positive", "negative"), ("pos", "neg")),
    *(("liked", "disliked"), ("desirable", "undesirable"), ("desired", "undesired"), ("accept", "reject")),
    *(("chosen", "reject"), ("safe", "unsafe"), ("helpful", "unhelpful")),
)
SIDES = (
    *(("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second"), ("one", "two")),
    *(("i", "j"), ("x", "y")),
)
SPOKEN = (("a", "b"), ("left", "right"), ("first", "second"))
"""Words for the two that verdicts have whatever the columns are called."""

TEXT = words(
    "response responses answer answers completion completions output outputs text resp reply candidate generation "
    "antwort respuesta resposta risposta réponse summary body content message messages conversation sample "
    "result option assistant generated"
)
"""Words that may stand in the name of a response besides those that tell it from the other."""

OF_A_MODEL = words("model assistant system")
GRADE = words("score scores rating ratings reward rewards grade overall quality avg average mean")
VERDICTS = (
    *("preference", "winner", "preferred", "better", "label", "choice", "verdict", "vote", "human_preference"),
    *("better_response", "preferred_response", "preferred_answer", "preferred_output", "better_answer"),
    *("better_response_id", "best", "best_response", "best_answer", "which_is_better", "winning_response", "judgment"),
    *("judgement", "human_label", "gold_label", "overall_preference", "selected", "chosen", "won", "rank_first"),
    *("which_response_is_better", "which_answer_is_better", "your_choice", "pick", "annotation", "pairwise"),
    *("comparison", "besser", "mejor", "melhor"),
)
INDICES = words("label choice gold_label human_label better_response_id annotation")
"""Verdicts whose numbers count from 0 in some files and from 1 in others."""

MIDDLES = {("0", "1"): "0.5", ("1", "2"): "1.5"}
"""Numbers that stand between two sides: a tie."""
_TIE = words("tie tied draw equal equally same both bothbad neither none c")
_LEANS = re.compile(r"([a-z0-9]+)\s*(>+|<+|=+|~)\s*([a-z0-9]+)")


@dataclass(frozen=True, slots=True)
class Found:
    """The columns of a pair: the two responses, what is asked, a verdict, scores of each, and what is read besides."""

    both: tuple[str, str]
    question: str
    tokens: tuple[str, str] = ("", "")
    verdict: str = ""
    grades: tuple[str, str] | None = None
    makers: tuple[str, str] | None = None
    more: frozenset[str] = field(default_factory=frozenset)

    @property
    def read(self) -> frozenset[str]:
        """All of them."""
        pairs = [*self.both, *(self.grades or ()), *(self.makers or ()), self.question, self.verdict]
        return frozenset(name for name in pairs if name) | self.more


@dataclass(frozen=True, slots=True)
class Series:
    """Columns of several responses, each with its rank or score, of responses without one, and of what is asked."""

    pairs: tuple[tuple[str, str], ...]
    unmarked: tuple[str, ...]
    question: str
    by_rank: bool
    more: frozenset[str]

    @property
    def read(self) -> frozenset[str]:
        """All of them."""
        return frozenset({name for pair_ in self.pairs for name in pair_} | {*self.unmarked, self.question}) | self.more


def _tokens(name: str) -> tuple[str, ...]:
    """The words of a name, digits at the end of a word apart."""
    return tuple(t for t in re.split(r"[^a-z0-9?]+|(?<=[a-z])(?=\d)|(?<=\d)(?=[a-z])", plain(name)) if t)


def _partners(names: Collection[str], pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, Any, Any]]:
    """Two names that differ in one word, with the two words and those that they share."""
    known = {_tokens(name): name for name in sorted(names)}
    for one, other in pairs:
        for tokens, name in known.items():
            for at, token in enumerate(tokens):
                partner = known.get((*tokens[:at], other, *tokens[at + 1 :])) if token == one else None
                if partner is not None:
                    yield name, partner, (one, other), (*tokens[:at], *tokens[at + 1 :])


def _named(names: frozenset[str], wanted: Sequence[str], taken: Collection[str]) -> str:
    """The first of the wanted names that a column has, however it is spelled."""
    free = {plain(name).strip("?_ "): name for name in sorted(names) if name not in taken}
    return next((free[name] for name in wanted if name in free), "")


def _more(names: frozenset[str], question: str) -> frozenset[str]:
    """Columns that are read besides: turns before, whether responses ended, and an instruction's input."""
    return names & {*BEFORE, "finished", *(("input",) if question == "instruction" else ())} - {question}


@lru_cache(maxsize=1024)
def opposites(names: frozenset[str]) -> Found | None:
    """A better and a worse response, with what is asked and their scores."""
    both, grades, tokens = None, None, ("", "")
    for name, partner, found, rest in _partners(names, OPPOSITES):
        if both is None and set(rest) <= TEXT:
            both, tokens = (name, partner), found
        if grades is None and rest and set(rest) <= GRADE:
            grades = (name, partner)
    question = _named(names, ASKED, both or ())
    if both is None or not question:
        return None
    return Found(both, question, tokens, grades=grades, more=_more(names, question))


@lru_cache(maxsize=1024)
def two_sides(names: frozenset[str]) -> Found | None:
    """Two responses that are told apart by a side, with what is asked and who won or what each scores."""
    both, grades, makers, tokens = None, None, None, ("", "")
    for name, partner, found, rest in _partners(names, SIDES):
        if both is None and (set(rest) <= TEXT or (set(rest) <= TEXT | OF_A_MODEL and set(rest) & TEXT)):
            if not rest and found == ("i", "j"):
                continue
            both, tokens = (name, partner), found
        if grades is None and set(rest) & GRADE and set(rest) <= GRADE | TEXT | OF_A_MODEL:
            grades = (name, partner)
        elif makers is None and rest and set(rest) <= OF_A_MODEL | words("name id generator"):
            makers = (name, partner)
    if both is None or (makers == both):
        return None
    question = _named(names, ASKED, both)
    verdict = _named(names, VERDICTS, (*both, question))
    if not question or not (verdict or grades):
        return None
    described = [(one, other) for one, other, _, rest in _partners(names, SIDES) if _describes(rest)]
    more = frozenset(name for pair_ in described for name in pair_) - set(both)
    return Found(both, question, tokens, verdict, grades, makers, _more(names, question) | more)


def _describes(rest: tuple[str, ...]) -> bool:
    """Whether a pair of columns says where two responses come from, or how long they are."""
    return bool(set(rest) & words("model source generator id length len tokens words num author version")) and not (
        set(rest) & GRADE
    )


@lru_cache(maxsize=1024)
def several_sides(names: frozenset[str]) -> Series | None:
    """Three or more responses in numbered or lettered columns, with a rank or a score of each; two with their ranks.

    Rows of a wide table may leave some of their responses out.
    """
    found: dict[tuple[Any, ...], dict[str, str]] = {}
    for name in sorted(names):
        tokens = _tokens(name)
        for at, token in enumerate(tokens):
            if re.fullmatch(r"\d{1,2}|[a-z]", token):
                found.setdefault((*tokens[:at], "#", *tokens[at + 1 :]), {})[token] = name
    texts = [columns for key, columns in found.items() if len(columns) > 1 and _is_text(set(key))]
    for key, columns in found.items():
        rest = set(key) - {"#"}
        by_rank = bool(rest & words("rank ranking")) and rest <= TEXT | words("rank ranking")
        own = max((one for one in texts if columns.keys() <= one.keys()), key=len, default={})
        question = _named(names, ASKED, own.values())
        if not (by_rank or (rest & GRADE and rest <= GRADE | TEXT)) or len(columns) < 2 or not own or not question:
            continue
        if len(own) == 2 and not by_rank and two_sides(names) is not None:
            continue
        pairs = tuple((own[token], columns[token]) for token in own if token in columns)
        unmarked = tuple(name for token, name in own.items() if token not in columns)
        more = frozenset(name for other, its in found.items() if _describes(other) for name in its.values())
        return Series(pairs, unmarked, question, by_rank, _more(names, question) | more)
    return None


def _is_text(key: set[Any]) -> bool:
    """Whether columns that share these words, and # for what tells them apart, hold responses."""
    rest = key - {"#"}
    return rest <= TEXT or bool(rest <= TEXT | OF_A_MODEL and rest & TEXT)


def _several(row: Mapping[str, Any]) -> list[Row]:
    found = several_sides(frozenset(row))
    assert found is not None
    if alone := next((name for name in found.unmarked if row[name] != ""), None):
        raise Reject(f"{alone} has no {'rank' if found.by_rank else 'score'}")
    given = [(text, mark) for text, mark in found.pairs if (row[text], row[mark]) != ("", "")]
    texts = [answer(row[text], text) for text, _ in given]
    marks = [number(row[mark], mark) for _, mark in given]
    messages = _asked(row, found.question)
    if not found.by_rank:
        return [scored(messages, texts, marks)]
    if any(not mark.is_integer() or mark < 0 for mark in marks):
        raise Reject("ranks must be whole numbers, the lowest is best")
    return [ranking(messages, texts, [int(mark) for mark in marks])]


def _asked(row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    if name == "instruction":
        return asked(row, None, instruction(row[name], row.get("input", "")))
    if name == "history":  # the prompt itself, not turns before one
        return asked({k: v for k, v in row.items() if k != name}, None, turns(row[name], name))
    return asked(row, name)


def _opposites(row: Mapping[str, Any]) -> list[Row]:
    found = opposites(frozenset(row))
    assert found is not None
    messages = _asked(row, found.question)
    both = [side(row[name], name, messages) for name in found.both]
    check_signed(row, found.both)
    scores = {"score_chosen": row[found.grades[0]], "score_rejected": row[found.grades[1]]} if found.grades else {}
    return [pair(both, scores, found.both, finished_of(row))]


def _sides(row: Mapping[str, Any]) -> list[Row]:
    found = two_sides(frozenset(row))
    assert found is not None
    (before, first, _), (others, second, _) = _whole_turns(row, found) or _both(row, found)
    if before != others:
        raise Reject(f"{found.both[0]} and {found.both[1]} differ before their last turn")
    if first == second:
        raise Reject("its two responses are the same")
    verdict = row[found.verdict] if found.verdict else ""
    if found.grades is None:
        notes = (numbered(found.verdict),) if is_number(verdict) and verdict not in (first, second) else ()
        return [duel(before, (first, second), _won(row, found, (first, second)), verdict, notes)]
    scores = tuple(number(row[name], name) for name in found.grades)
    ranks = ranks_from_scores(scores)
    won = None if ranks[0] == ranks[1] else int(ranks[1] < ranks[0])
    if found.verdict and _won(row, found, (first, second)) != won:
        raise Reject(f"{found.verdict} contradicts {found.grades[0]} and {found.grades[1]}")
    made = duel(before, (first, second), won, verdict)
    order = scores if won != 1 else scores[::-1]
    return [Row(messages=made.messages, answers=made.answers, ranks=made.ranks, scores=order, notes=made.notes)]


def _both(row: Mapping[str, Any], found: Found) -> list[Side]:
    messages = _asked(row, found.question)
    return [side(row[name], name, messages) for name in found.both]


def _whole_turns(row: Mapping[str, Any], found: Found) -> list[Side]:
    """Several turns of each side, where all three columns hold them as JSON lists of texts in a cell; or nothing."""
    names = (found.question, *found.both)
    if not all(isinstance(row[name], str) and row[name].startswith('["') for name in names):
        return []
    asked_for, *said = (texts_of(row[name], name) for name in names)
    turns = [turn_about(asked_for, texts, name) for texts, name in zip(said, found.both, strict=True)]
    return [(messages, text, ()) for messages, text in turns]


def _won(row: Mapping[str, Any], found: Found, texts: tuple[str, str]) -> int | None:
    """0 for the first, 1 for the second, None for a tie.

    Raises:
        Reject: the verdict names neither, or its numbers may count from 0 or from 1.
    """
    name, value = found.verdict, row[found.verdict]
    if isinstance(value, str) and value.strip() and value in texts:
        return texts.index(value)
    if isinstance(value, dict | list):
        raise Reject(f"{name} is {kind(value)}, which names no side")
    if isinstance(value, bool):
        raise Reject(f"{name} is {value}, which names no side. {_by_where(found, value)}")
    word = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if re.fullmatch(r"-?\d+(\.\d+)?", word):
        if word in found.tokens and (found.tokens == ("0", "1") or plain(name) not in INDICES):
            return found.tokens.index(word)
        if word == MIDDLES.get(found.tokens):
            return None
        raise Doubtful(
            f"{name} is {word}, which may count from 0 or from 1, or be a score. {_by_where(found, value)}",
            numbered(name),
        )
    makers = [string(row[maker], maker) for maker in found.makers or ()]
    if makers.count(value) == 1:
        return makers.index(value)
    return _side_of(word, name, found.tokens)


def _side_of(word: str, name: str, tokens: tuple[str, str]) -> int | None:
    if leans := _LEANS.fullmatch(word.strip("[] ")):
        left, sign, right = leans.groups()
        if {left, right} == set(tokens):
            return None if sign[0] in "=~" else tokens.index(left if sign[0] == ">" else right)
    parts = {part for part in re.split(r"[^a-z0-9]+|(?<=[a-z])(?=\d)", word) if part}
    if parts & _TIE:
        return None
    named: list[int] = []
    for pair_ in (tokens, *SPOKEN):  # the columns' own words first
        named = named or [at for at, token in enumerate(pair_) if token in parts]
    if len(named) != 1:
        raise Reject(f"{name} is {word[:60]!r}, which names neither side nor a tie")
    check_plain(parts, name, word)
    return named[0]


def _by_where(found: Found, value: Any) -> str:
    """How a recipe says which value stands for which side: one source for each value."""
    column = found.verdict if found.verdict.isidentifier() else f"row[{found.verdict!r}]"
    middle = _middle(value)
    test = json.dumps(f"{column} == {value!r}" if middle is None else f"{column} > {middle}", ensure_ascii=False)
    lines = [f"`where: {test}, columns: {{chosen: {quoted(a)}, rejected: {quoted(b)}}}`" for a, b in _ways(found.both)]
    which = f"it stands for {found.both[0]}" if middle is None else f"more of it is for {found.both[0]}"
    other = "value" if middle is None else "side, the other with <"
    return f"Write {lines[0]} if {which}, {lines[1]} if not; one such source for each {other}"


def _middle(value: Any) -> float | int | None:
    """What parts the two sides on a scale from 0 to 1 or around 0; None of a number that may be an index."""
    found = number(value, "") if not isinstance(value, bool) else 0.0
    if found.is_integer() and found >= 0:
        return None
    return 0.5 if 0 < found < 1 else 0


def _ways(both: tuple[str, str]) -> tuple[tuple[str, str], tuple[str, str]]:
    return both, (both[1], both[0])


PAIRS: dict[str, Format] = {
    "better and worse": Format(
        columns="prompt, accepted, rejected (or other opposites)",
        finds=lambda names: found.read if (found := opposites(names)) else None,
        read=_opposites,
        example={"question": "Name a river.", "winning_response": "The Ebro.", "losing_response": "Rain."},
        note="two columns whose names differ in opposites: "
        + ", ".join(f"{one}/{other}" for one, other in OPPOSITES)
        + "; with a score of each, equal scores are a tie",
    ),
    "several sides": Format(
        columns="prompt, response_1, response_2, response_3, ... and a rank or a score of each",
        finds=lambda names: found.read if (found := several_sides(names)) else None,
        read=_several,
        example={
            "prompt": "Name a river.",
            "response_1": "Rain.",
            "response_2": "The Ebro.",
            "response_3": "Snow.",
            "rank_1": 2,
            "rank_2": 1,
            "rank_3": 3,
        },
        note="three or more, numbered or lettered, or fewer in a row; the lowest rank or the highest score is best",
    ),
    "two sides": Format(
        columns="prompt, response_a, response_b, and a verdict or a score of each",
        finds=lambda names: found.read if (found := two_sides(names)) else None,
        read=_sides,
        example={
            "prompt": "Name a river.",
            "response_a": "Rain.",
            "response_b": "The Ebro.",
            "model_a": "m",
            "model_b": "n",
            "verdict": "B>A",
        },
        note="two columns whose names differ in a side ("
        + ", ".join(f"{one}/{other}" for one, other in SIDES)
        + "); the verdict names a side, a column, a text or a model, or says that they tie",
    ),
}
