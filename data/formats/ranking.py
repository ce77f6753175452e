"""Responses to one prompt in their order: of ranks, scores, two conversations, or two sides and a winner."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from data.formats.columns import plain
from data.formats.rows import (
    BOTH_BAD,
    DUPLICATE,
    NO_ANSWER,
    NO_PROMPT,
    SAME,
    TIED,
    UNRANKED,
    Doubtful,
    Reject,
    Row,
    numbered,
    quoted,
)
from data.formats.turns import answer, check, conversation, message
from data.formats.values import blank, number, parsed, string, words
from data.records import Message, ranks_from_scores

MAX_ANSWERS = 1000
"""Responses of one ranking; pairs grow with their square."""

Side = tuple[tuple[Message, ...], str, tuple[str, ...]]
"""What comes before a response, the response, and notes."""

PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_reward", "rejected_reward"),
    ("reward_chosen", "reward_rejected"),
)
_SCORED = frozenset(("margin", *(name for names in PAIR_SCORES for name in names)))
_TIES = words("tie tied draw equal same both bothbad neither")
_NEITHER = words("neither none")
_COMPARING = words(
    "better best preferred prefer preference preferable stronger superior worse worst weaker inferior bad wins won "
    "winner loses lost loser"
)
"""Words by which "neither" compares the two and does not say that both are bad."""
_TURNING = words(
    "not no never worse worst weaker inferior bad poor lose loses loser lost losing reject rejects rejected disagree "
    "dislike disliked less lower isn doesn wasn cannot against wrong incorrect"
)
"""Words with which a verdict that names one side may speak for the other."""


def ranking(
    messages: tuple[Message, ...],
    answers: Sequence[str],
    ranks: Sequence[int],
    scores: Sequence[float] | None = None,
    notes: tuple[str, ...] = (),
    ended: Sequence[bool] = (),
) -> Row:
    """Best first, each text once (in its best place)."""
    if len(answers) > MAX_ANSWERS:
        raise Reject(f"it has {len(answers):,} responses; a ranking has at most {MAX_ANSWERS:,}")
    order = sorted(range(len(answers)), key=lambda i: ranks[i])
    first: dict[str, int] = {}
    for i in order:
        first.setdefault(answers[i], i)
    kept = list(first.values())
    if not kept:
        raise Reject("it has no responses")
    return Row(
        messages=messages,
        answers=tuple(answers[i] for i in kept),
        ranks=tuple(ranks[i] for i in kept),
        scores=tuple(scores[i] for i in kept) if scores is not None else None,
        ended=tuple(ended[i] for i in kept) if ended else (),
        notes=(DUPLICATE,) * (len(answers) - len(kept)) + notes,
    )


def unranked(messages: tuple[Message, ...], answers: Sequence[str]) -> Row:
    """Responses without an order: all tie."""
    return ranking(messages, answers, [0] * len(answers), notes=(UNRANKED,))


def scored(messages: tuple[Message, ...], answers: Sequence[str], scores: Sequence[float]) -> Row:
    """Responses by their scores, the higher the better; equal ones tie."""
    return ranking(messages, answers, ranks_from_scores(scores), scores)


def side(value: Any, name: str, messages: tuple[Message, ...]) -> Side:
    """A response, or a whole conversation that may repeat the prompt."""
    if not isinstance(value, list) or len(value) == 1:
        return messages, answer(value, name), ()
    whole = conversation([message(turn, name) for turn in value], name)
    if not whole.answers:
        raise Reject(f"{name} does not end with the assistant's turn")
    return _before(messages, whole.messages, name), whole.answers[0], whole.notes


def _before(asked: tuple[Message, ...], said: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """All turns before a response: those that are asked beside its conversation, and the conversation's own.

    Args:
        asked: a system message, earlier turns and a prompt that stand in columns of their own.
        said: the conversation, which repeats what is asked, goes on behind it, or begins with its answer.
        name: of the conversation's column, for messages.

    Raises:
        Reject: the conversation has another system message, or asks something else.
    """
    if not asked or asked == said:
        return said
    bare = tuple(replace(m, tools="") for m in asked)
    systems = [m for m in (*bare[:1], *said[:1]) if m.role == "system"]
    if len({_squashed(m) for m in systems}) > 1:
        raise Reject(f"{name} begins with another system message than the row's own; leave one of the two out")
    own, turns = (part[1:] if part[:1] and part[0].role == "system" else part for part in (bare, said))
    if own and turns[: len(own)] != own and not _repeats(turns, own):
        if turns and list(map(_squashed, own[-len(turns) :])) == list(map(_squashed, turns)):
            turns = own  # the conversation has the end of what is asked
        elif own[-1].role != "assistant" and turns and turns[0].role == "user":
            raise Reject(
                f"the row's question is neither the first nor the last one of {name}; leave one of the two out"
            )
        else:
            turns = own + turns
    whole = (*systems[:1], *turns)
    return (replace(whole[0], tools=asked[0].tools), *whole[1:]) if asked[0].tools else whole


def _repeats(turns: Sequence[Message], own: Sequence[Message]) -> bool:
    """Whether turns hold others, white space aside, in a row that has their first or their last question."""
    questions = [at for at, turn in enumerate(turns) if turn.role == "user"]
    if not questions:
        return False
    there, wanted = [_squashed(turn) for turn in turns], [_squashed(turn) for turn in own]
    starts = [at for at in range(len(turns) - len(own) + 1) if there[at : at + len(own)] == wanted]
    return any(start <= at < start + len(own) for start in starts for at in (questions[0], questions[-1]))


def _squashed(turn: Message) -> tuple[str, str, str]:
    """What two turns share that are equal but for white space."""
    return turn.role, " ".join(turn.content.split()), turn.tool_calls


def pair(
    both: Sequence[Side],
    row: Mapping[str, Any],
    names: Sequence[str] = ("chosen", "rejected"),
    finished: bool = True,
) -> Row:
    """Two responses to the same, the first chosen, unless equal scores say that they tie.

    Raises:
        Reject: they differ before their last turn or do not differ at all, or their scores contradict the choice.
    """
    (messages, chosen, notes), (others, rejected, _) = both
    if messages != others:
        raise Reject(f"{names[0]} and {names[1]} differ before their last turn")
    if chosen == rejected:
        raise Reject(f"{names[0]} and {names[1]} are the same")
    notes += (SAME,) * (chosen.split() == rejected.split()) + (NO_ANSWER,) * (not chosen.strip())
    if "prompt" in row and not messages:
        notes += (NO_PROMPT,)
    check_signed(row, names)
    scores, spelled = _pair_scores(row)
    if scores and scores[0] < scores[1]:
        raise Reject(f"{spelled} says {scores[0]:g} of {names[0]} and {scores[1]:g} of {names[1]}, against the choice")
    tied = scores is not None and scores[0] == scores[1]
    return Row(
        messages=messages,
        answers=(chosen, rejected),
        ranks=(0, 0) if tied else (0, 1),
        scores=scores,
        finished=finished,
        notes=notes + ((TIED,) if tied else ()),
    )


_SIGNED = re.compile(r"delta|diff|difference|gap")


@lru_cache(maxsize=4096)
def _is_signed(name: str) -> bool:
    return bool(_SIGNED.fullmatch(plain(name)))


def check_signed(row: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse a pair beside a number below 0 that may be by how much the chosen one is better.

    Raises:
        Reject: there is one.
    """
    for name in row:
        if not _is_signed(str(name)) or isinstance(row[name], bool | list | dict):
            continue
        try:
            found = number(row[name], name)
        except Reject:
            continue
        if found < 0:
            raise Reject(
                f"{name} is {found:g}, which may say that {names[1]} is better; if it says something else, write "
                f"`ignore: [{quoted(name)}]`"
            )


def _pair_scores(row: Mapping[str, Any]) -> tuple[tuple[float, float] | None, str]:
    if _SCORED.isdisjoint(row):
        return None, ""
    for one, other in PAIR_SCORES:
        if (one in row) != (other in row):
            raise Reject(f"it has {one if one in row else other} without {other if one in row else one}")
    found = [
        ((one, other), (number(row[one], one), number(row[other], other))) for one, other in PAIR_SCORES if one in row
    ]
    if "margin" in row:
        margin = number(row["margin"], "margin")
        found.insert(0, (("margin",), (margin, 0.0)))  # type: ignore[arg-type]
    if not found:
        return None, ""
    names, scores = found[0]
    for others, more in found[1:]:
        if (more[0] > more[1]) != (scores[0] > scores[1]) or (more[0] < more[1]) != (scores[0] < scores[1]):
            raise Reject(f"{' and '.join(names)} contradict {' and '.join(others)}")
    return scores, " and ".join(names)


def duel(
    messages: tuple[Message, ...],
    answers: Sequence[str],
    won: int | None,
    verdict: Any = "",
    notes: tuple[str, ...] = (),
) -> Row:
    """Two responses of which the first (0), the second (1) or neither (None) won; ``verdict`` says so in words."""
    if won is None:
        said = set(re.split(r"[^a-z]+", str(verdict).lower()))
        both_bad = "bothbad" in said or ("bad" in said and not _TIES.isdisjoint(said))
        both_bad = both_bad or ("bad" not in said and bool(said & _NEITHER) and said.isdisjoint(_COMPARING))
        return replace(ranking(messages, answers, (0, 0)), notes=(BOTH_BAD if both_bad else TIED, *notes))
    return ranking(messages, answers, (won, 1 - won), notes=notes)


def conversations(first: Any, second: Any, names: Sequence[str], row: Mapping[str, Any]) -> list[Side]:
    """Two whole conversations that may end differently."""
    both = [side(first, names[0], ()), side(second, names[1], ())]
    if both[0][0] != both[1][0]:
        raise Reject(f"{names[0]} and {names[1]} differ before their last turn: they are no responses to the same")
    return both


def winner(value: Any, name: str, low: int | None = None) -> int | None:
    """0 for the first, 1 for the second, None for a tie.

    Args:
        value: "a", "model_a", "a-is-better", "A", "tie (bothbad)" and the like, or a number.
        name: of the column, for messages.
        low: the number that stands for the first (0 or 1) where numbers are allowed; one between leans to a side.
    """
    if isinstance(value, bool):
        raise Reject(f"{name} is true or false, which names no side")
    word = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if low is not None and re.fullmatch(r"[0-9]+\.[0-9]+", word) and low <= float(word) <= low + 1:
        return None if float(word) == low + 0.5 else int(float(word) > low + 0.5)
    parts = [w for w in re.split(r"[^a-z0-9]+", word) if w]
    if low is not None and re.fullmatch(r"-?[0-9]+", word):
        if int(word) not in (low, low + 1):
            raise Doubtful(f"{name} is {word}; {low} stands for the first and {low + 1} for the second", numbered(name))
        return int(word) - low
    if parts and (set(parts) & _TIES):
        return None
    sides = {p for p in parts if p in ("a", "b")}
    if len(sides) == 1:
        check_plain(parts, name, word)
        return 0 if sides == {"a"} else 1
    raise Reject(f"{name} is {word[:60]!r}, which names neither side nor a tie")


def is_number(value: Any) -> bool:
    """Whether a verdict is a number, and no word."""
    return re.fullmatch(r"\s*-?[0-9]+(\.[0-9]+)?\s*", str(value)) is not None


def check_plain(parts: Collection[str], name: str, word: str) -> None:
    """Refuse a verdict that names a side and may mean the other: "B is worse", "not A".

    Raises:
        Reject: one of its words may turn it around.
    """
    if turning := sorted(_TURNING.intersection(parts)):
        raise Reject(
            f"{name} is {word[:60]!r}: by {turning[0]!r} it may speak for either side; name the better one alone"
        )


def texts_of(value: Any, name: str) -> list[str]:
    """One text, or several that a table holds as a JSON list (turns of one side)."""
    if isinstance(value, str) and value[:1] == "[":
        value = parsed(value, name)
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found or any(not isinstance(v, str) for v in found):
        raise Reject(f"{name} holds no texts")
    return [string(v, name) for v in found]


def turn_about(asked: Sequence[str], said: Sequence[str], name: str) -> tuple[tuple[Message, ...], str]:
    """Questions and answers in turn; the last answer stands alone."""
    if len(asked) != len(said):
        raise Reject(f"{name} has {len(said)} turns, the prompt {len(asked)}")
    out: list[Message] = []
    for question, reply in zip(asked, said, strict=True):
        out += [Message(role="user", content=question), Message(role="assistant", content=reply)]
    check(out[:-1], name)
    return tuple(out[:-1]), out[-1].content


def has(row: Mapping[str, Any], name: str) -> bool:
    return not blank(row.get(name))
