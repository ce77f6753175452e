"""Rankings that teach nothing or contradict each other: empty, equal but for white space, contradictory, cyclic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from data.records import RankedAnswers, group_of, normalise


@dataclass(frozen=True, slots=True)
class Finding:
    """Something doubtful: its kind, and where."""

    kind: str
    place: str
    text: str


def ranking_findings(rankings: Iterable[RankedAnswers]) -> list[Finding]:
    """Every doubtful ranking, and every prompt whose rankings prefer responses in a circle."""
    found: list[Finding] = []
    worse: dict[str, dict[str, set[str]]] = {}
    first: dict[tuple[str, str, str], str] = {}
    for ranking in rankings:
        place, answers = ranking.prompt.source, [normalise(a) for a in ranking.answers]
        if not all(answers):
            found.append(Finding("empty response", place, "a response is empty"))
        group = group_of(ranking.prompt.messages, ranking.answers)
        for i, j in ranking.pairs:
            a, b = answers[i], answers[j]
            if a == b:
                found.append(Finding("equal responses", place, "two responses differ in white space or case alone"))
                continue
            if (other := first.get((group, b, a))) is not None:
                found.append(Finding("contradiction", place, f"it prefers the response that {other} ranks lower"))
                continue
            first.setdefault((group, a, b), place)
            worse.setdefault(group, {}).setdefault(a, set()).add(b)
    for group, graph in worse.items():
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1]
            place = first.get((group, circle[1], circle[0])) or first.get((group, circle[0], circle[1]), "")
            found.append(Finding("circle", place, f"{len(circle) - 1} responses are preferred in a circle"))
    return found


def preference_for_length(rankings: Iterable[RankedAnswers]) -> float | None:
    """Share of ordered pairs of unlike length, in characters, whose better response is the longer one."""
    longer = [
        len(r.answers[i]) > len(r.answers[j])
        for r in rankings
        for i, j in r.pairs
        if len(r.answers[i]) != len(r.answers[j])
    ]
    return sum(longer) / len(longer) if longer else None
