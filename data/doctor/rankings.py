"""Rankings that teach nothing or contradict each other, and judgements that look like mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

import regex

from data.doctor.entry import Entry, Finding, Places, asked_of
from data.doctor.sampling import Frequent, HashSample
from data.records import normalise
from data.storage.digests import digest

PROMPTS = 100_000
"""Prompts whose judgements are remembered; of more, those of a share of them."""
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
    """Empty, equal, contradictory and cyclic rankings; one answer that is always the worse one; repeated judgements."""

    def __init__(self, prompts: int = PROMPTS) -> None:
        self.count = 0
        self.empty_best, self.empty_worse, self.equal = Places(), Places(), Places()
        self.contradictory, self.cyclic = Places(), Places()
        self._other: dict[str, str] = {}
        self._graphs: HashSample[dict[tuple[int, int], str]] = HashSample(prompts)
        self._worse = Frequent()
        self._judged_again = self._judged_otherwise = 0

    def add(self, entry: Entry) -> None:
        """Look at one ranking; what is none is left alone."""
        if len(entry.answers) < 2:
            return
        self.count += 1
        answers = [normalise(a) for a in entry.answers]
        pairs = entry.pairs
        self._empty_or_equal(entry.place, answers, pairs)
        keys = [digest(a) for a in answers]
        for key in {keys[j] for _, j in pairs}:
            self._worse.add(key)
        self._against_those_before(entry, keys, pairs)

    def _empty_or_equal(self, place: str, answers: list[str], pairs: list[tuple[int, int]]) -> None:
        if any(not answers[i] for i, _ in pairs):
            self.empty_best.add(place)
        elif not all(answers):
            self.empty_worse.add(place)
        if any(answers[i] == answers[j] and answers[i] for i, j in pairs):
            self.equal.add(place)

    def _against_those_before(self, entry: Entry, keys: list[int], pairs: list[tuple[int, int]]) -> None:
        asked = asked_of(entry)
        if not self._graphs.admits(asked):
            return
        graph = self._graphs.items.get(asked, {})
        against = None
        for i, j in pairs:
            a, b = keys[i], keys[j]
            if a == b:
                continue
            if (a, b) in graph or (b, a) in graph:
                self._judged_again += 1
            if (b, a) in graph:
                self._judged_otherwise += 1
                against = against or graph[b, a]
                continue
            graph.setdefault((a, b), entry.place)
        if against is not None:
            if not self.contradictory.count:
                self._other["contradictory"] = against
            self.contradictory.add(entry.place)
        if graph:
            self._graphs.put(asked, graph)

    def findings(self) -> Iterator[Finding]:
        """What is wrong, the surest first."""
        said = (
            (self.empty_best, "empty answer preferred", "rankings prefer an empty answer"),
            (self.empty_worse, "empty answer", "rankings hold an empty answer"),
            (self.equal, "equal answers", "rankings order answers that differ in white space, case or width alone"),
        )
        for places, kind, text in said:
            if places.count:
                yield places.finding(kind, f"{places.count:,} of {self.count:,} {text}")
        yield from self._contradictions()
        yield from self._circles()
        yield from self._one_sided()

    def _contradictions(self) -> Iterator[Finding]:
        if not (n := self.contradictory.count):
            return
        again, otherwise, sampled = self._judged_again, self._judged_otherwise, self._graphs.sampled
        share = otherwise / again
        flips = f"; if judgements are wrong at random, about {_flipped(share):.0%} of them are" if share <= 0.5 else ""
        text = (
            f"{n:,} of {self.count:,} rankings contradict one before{_in(sampled)}; pairs judged again: {again:,}, the "
            f"other way: {otherwise:,}{flips}; the first is {self.contradictory.first[0]}, against "
            f"{self._other['contradictory']}"
        )
        yield Finding(kind="contradiction", count=n, text=text, places=tuple(self.contradictory.first))

    def _circles(self) -> Iterator[Finding]:
        places = Places()
        for pairs in self._graphs.items.values():
            if len(pairs) > 2 and (place := _in_a_circle(pairs)) is not None:
                places.add(place)
        if places.count:
            text = f"prompts whose answers are preferred in a circle: {places.count:,}{_in(self._graphs.sampled)}"
            yield places.finding("circle", text)

    def _one_sided(self) -> Iterator[Finding]:
        for _, n in self._worse.counts.most_common(1):
            if n >= ENOUGH and n >= REPEATED_ANSWER * self.count:
                text = f"one and the same answer is the worse one in {n:,} of {self.count:,} rankings"
                yield Finding(kind="one-sided", count=n, text=f"{text}: telling it apart teaches nothing else")

    def facts(self) -> dict[str, Any]:
        """Nothing: lengths and turns are counted elsewhere."""
        return {}


def _flipped(share: float) -> float:
    """The error rate e of judgements of which this share of pairs disagrees: share = 2 e (1 - e)."""
    return (1 - (1 - 2 * share) ** 0.5) / 2


def _in(sampled: str) -> str:
    return f" ({sampled} of the prompts)" if sampled else ""


def _in_a_circle(pairs: dict[tuple[int, int], str]) -> str | None:
    """The last place among those of a circle of preferences, or None where there is no circle."""
    worse: dict[int, set[int]] = {}
    for a, b in pairs:
        worse.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(worse).prepare()
    except CycleError as error:
        circle = error.args[1]
        edges = {pairs[b, a] for a, b in pairwise(circle)}
        return [place for place in pairs.values() if place in edges][-1]
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

    def findings(self) -> Iterator[Finding]:
        """Suspicions, each with what it rests on."""
        said = (
            (self.refusal, "prefer an answer that begins like a refusal to one that does not"),
            (self.cut, "prefer an answer that ends inside a sentence to one that does not"),
            (self.copied, "prefer an answer that repeats the prompt"),
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
