"""Rankings that teach nothing or contradict each other, and judgements that look like mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

import regex

from data.doctor.entry import MAX_PLACES, Entry, Finding, Places, asked_of
from data.doctor.sampling import Earliest, Seats
from data.records import normalise
from data.storage.digests import digest
from data.storage.number_rows import NumberRows, same, several

ENOUGH = 10  # rankings below which a share says nothing
REPEATED_ANSWER = 0.2

REFUSAL = regex.compile(
    r"\s*(i['’]?m (very |so )?sorry|sorry[,.]|i (can(no|['’])t|can ?not|am (unable|not able)|won['’]t)\b|as an ai\b|"
    r"i apologi[sz]e|unfortunately, i|对不起|抱歉|很抱歉|作为(一个|一名)?(ai|人工智能)|申し訳|죄송|"
    r"lo siento|je suis désolé|es tut mir leid|извините|к сожалению|عذر|मुझे खेद)",
    regex.IGNORECASE,
)
"""How refusals begin, in a few languages."""
_ENDS = regex.compile(r"[\p{Sentence_Terminal}\p{Pe}\p{Pf}\p{Po}\p{S}\p{Extended_Pictographic}`\d]\s*\Z")
_SENTENCE = regex.compile(r"\p{Sentence_Terminal}")
CUT_FROM = 200
"""Characters from which an answer that ends inside a sentence is taken for cut off."""


class Rankings:
    """Empty, equal, contradictory and cyclic rankings; one answer that is always the worse one; repeated judgements.

    Args:
        seats: numbers the entries, and knows their places.
    """

    def __init__(self, seats: Seats | None = None) -> None:
        self.count = 0
        self.empty_best, self.empty_worse, self.equal = Places(), Places(), Places()
        self._seats = Seats() if seats is None else seats
        self._pairs = NumberRows(4)  # prompt, better answer, worse answer, seat
        self._worse = NumberRows(1)  # once a ranking

    def add(self, entry: Entry) -> None:
        """Look at one ranking; what is none is left alone."""
        number = self._seats.take(entry.place)
        if len(entry.answers) < 2:
            return
        self.count += 1
        answers = [normalise(a) for a in entry.answers]
        pairs = entry.pairs
        self._empty_or_equal(entry.place, answers, pairs)
        keys = [digest(a) for a in answers]
        for key in {keys[j] for _, j in pairs}:
            self._worse.add(key)
        asked = asked_of(entry)
        for i, j in pairs:
            if keys[i] != keys[j]:
                self._pairs.add(asked, keys[i], keys[j], number)

    def merge(self, other: Rankings) -> None:
        """Take over what follows."""
        self.count += other.count
        self.empty_best.merge(other.empty_best)
        self.empty_worse.merge(other.empty_worse)
        self.equal.merge(other.equal)
        self._pairs.extend(other._pairs)
        self._worse.extend(other._worse)

    def _empty_or_equal(self, place: str, answers: list[str], pairs: list[tuple[int, int]]) -> None:
        if not all(answers):
            (self.empty_best if any(not answers[i] for i, _ in pairs) else self.empty_worse).add(place)
        if any(answers[i] == answers[j] and answers[i] for i, j in pairs):
            self.equal.add(place)

    def findings(self) -> Iterator[Finding]:
        """What is wrong, the surest first."""
        said = (
            (self.empty_best, "empty response preferred", "rankings prefer an empty response"),
            (self.empty_worse, "empty response", "rankings hold an empty response"),
            (self.equal, "equal responses", "rankings order responses that differ in white space, case or width alone"),
        )
        for places, kind, text in said:
            if places.count:
                yield places.finding(kind, f"{places.count:,} of {self.count:,} {text}")
        judged = _Judged()
        for rows in self._pairs.grouped():
            for start, end in zip(*several(rows), strict=True):
                judged.count(rows[start:end].tolist())
        yield from self._contradictions(judged)
        yield from self._circles(judged)
        yield from self._one_sided()

    def _contradictions(self, judged: _Judged) -> Iterator[Finding]:
        if not (n := judged.contradictory.count):
            return
        share = judged.otherwise / judged.again
        flips = f"; if judgements are wrong at random, about {_flipped(share):.0%} of them are" if share <= 0.5 else ""
        kept = judged.contradictory.kept
        first, against = map(self._seats.place, kept[0])
        text = (
            f"{n:,} of {self.count:,} rankings contradict one before; pairs judged again: {judged.again:,}, the other "
            f"way: {judged.otherwise:,}{flips}; the first is {first}, against {against}"
        )
        places = tuple(self._seats.place(number) for number, _ in kept)
        yield Finding(kind="contradiction", count=n, text=text, places=places)

    def _circles(self, judged: _Judged) -> Iterator[Finding]:
        if n := judged.circles.count:
            places = tuple(self._seats.place(number) for _, number in judged.circles.kept)
            where = f"; the first is {places[0]}" if places[0] else ""
            text = f"prompts whose responses are preferred in a circle: {n:,}{where}"
            yield Finding(kind="circle", count=n, text=text, places=places)

    def _one_sided(self) -> Iterator[Finding]:
        n = max(int((ends - starts).max(initial=0)) for starts, ends in map(same, self._worse.grouped()))
        if n >= ENOUGH and n >= REPEATED_ANSWER * self.count:
            text = f"one and the same response is the worse one in {n:,} of {self.count:,} rankings"
            yield Finding(kind="one-sided", count=n, text=f"{text}: telling it apart teaches nothing else")

    def facts(self) -> dict[str, Any]:
        """Nothing: lengths and turns are counted elsewhere."""
        return {}


class _Judged:
    """What the judgements of one prompt after the other say of each other."""

    def __init__(self) -> None:
        self.again = self.otherwise = 0
        self.contradictory = Earliest(MAX_PLACES)  # the seat, and that of the one before
        self.circles = Earliest(MAX_PLACES)  # the seat of the prompt's first, and that which closes the circle

    def count(self, judgements: list[list[int]]) -> None:
        """Look at all judgements of one prompt: its number, better and worse answer, and seat, in order."""
        graph: dict[tuple[int, int], int] = {}
        last = -1
        for _, a, b, seat in judgements:
            if (a, b) in graph or (b, a) in graph:
                self.again += 1
            if (b, a) in graph:
                self.otherwise += 1
                if seat != last:
                    self.contradictory.add(seat, graph[b, a])
                last = seat
                continue
            graph.setdefault((a, b), seat)
        if len(graph) > 2 and (found := _in_a_circle(graph)) is not None:
            self.circles.add(judgements[0][3], found)


def _flipped(share: float) -> float:
    """The error rate e of judgements of which this share of pairs disagrees: share = 2 e (1 - e)."""
    return (1 - (1 - 2 * share) ** 0.5) / 2


def _in_a_circle(pairs: dict[tuple[int, int], int]) -> int | None:
    """The last seat among those of a circle of preferences, or None where there is no circle."""
    worse: dict[int, set[int]] = {}
    for a, b in pairs:
        worse.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(worse).prepare()
    except CycleError as error:
        circle = error.args[1]
        edges = {pairs[b, a] for a, b in pairwise(circle)}
        return [seat for seat in pairs.values() if seat in edges][-1]
    return None


class Judgements:
    """Judgements that look like mistakes: a refusal, a cut-off answer or a copy of the prompt preferred; all alike."""

    def __init__(self) -> None:
        self.rankings = 0
        self.refusal, self.cut, self.copied = Places(), Places(), Places()
        self.liked, self.judged = 0, 0

    def add(self, entry: Entry) -> None:
        """Look at a ranking's best and worst answer, or at a judgement of one answer."""
        if entry.liked is not None:
            self.judged += 1
            self.liked += entry.liked
        if len(entry.answers) < 2 or len(set(entry.ranks)) < 2:
            return
        self.rankings += 1
        best = entry.answers[entry.ranks.index(min(entry.ranks))]
        worst = entry.answers[entry.ranks.index(max(entry.ranks))]
        if REFUSAL.match(best) and not REFUSAL.match(worst) and worst.strip():
            self.refusal.add(entry.place)
        if cut_off(best) and not cut_off(worst) and worst.strip():
            self.cut.add(entry.place)
        asked = entry.messages[-1].content.strip() if entry.messages else ""
        if asked and best.strip() == asked and worst.strip() != asked:
            self.copied.add(entry.place)

    def merge(self, other: Judgements) -> None:
        """Take over what follows."""
        self.rankings, self.liked, self.judged = (
            self.rankings + other.rankings,
            self.liked + other.liked,
            self.judged + other.judged,
        )
        self.refusal.merge(other.refusal)
        self.cut.merge(other.cut)
        self.copied.merge(other.copied)

    def findings(self) -> Iterator[Finding]:
        """Suspicions, each with what it rests on."""
        said = (
            (self.refusal, "prefer a response that begins like a refusal to one that does not"),
            (self.cut, "prefer a response that ends inside a sentence to one that does not"),
            (self.copied, "prefer a response that repeats the prompt"),
        )
        for places, text in said:
            if places.count:
                n, of = places.count, self.rankings
                yield places.finding(
                    "suspected label noise", f"{n:,} of {of:,} rankings {text}: label noise is suspected"
                )
        if self.judged >= ENOUGH and self.liked in (0, self.judged):
            what = "liked" if self.liked else "not liked"
            text = f"all {self.judged:,} judgements say {what}: no ranking can be made of them"
            yield Finding(kind="one-sided", count=self.judged, text=text)

    def facts(self) -> dict[str, Any]:
        """Thumbs up and down, where there are any."""
        return {"liked": self.liked, "not liked": self.judged - self.liked} if self.judged else {}


def cut_off(answer: str) -> bool:
    """Whether a long answer in words ends inside a sentence; of scripts without sentence ends nobody can say."""
    text = answer.rstrip()
    return len(text) >= CUT_FROM and not _ENDS.search(text[-2:]) and _SENTENCE.search(text) is not None
