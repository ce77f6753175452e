"""What texts are: their roles and turns, lengths, languages and scripts, and characters that nobody meant to write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from data.counting import MANY
from data.doctor.entry import Entry, Finding, Places
from data.doctor.sampling import Histogram, Sample
from data.languages import language_of, script_of
from data.odd_characters import invisible, markup

Count = Callable[[list[str]], list[int]]
"""Tokens of each of several texts."""

BATCH = 1000
LANGUAGE_SAMPLE = 500
ONE_SIDED = 0.8
ENOUGH = 20  # below so many pairs a share says nothing


class Turns:
    """How many messages of each role there are, how many turns a conversation has, and answers a row."""

    def __init__(self) -> None:
        self.roles: Counter[str] = Counter()
        self.turns: Counter[int] = Counter()
        self.answers: Counter[int] = Counter()

    def add(self, entry: Entry) -> None:
        """Count one row; its answers are the assistant's, and all together one turn."""
        for message in entry.messages:
            self.roles[message.role] += 1
        if entry.answers:
            self.roles["assistant"] += len(entry.answers)
            self.answers[len(entry.answers)] += 1
        if turns := len(entry.messages) + bool(entry.answers):
            self.turns[turns] += 1

    def merge(self, other: Turns) -> None:
        """Take over what follows."""
        self.roles.update(other.roles)
        self.turns.update(other.turns)
        self.answers.update(other.answers)

    def findings(self) -> Iterator[Finding]:
        """Nothing: any number is right."""
        yield from ()

    def facts(self) -> dict[str, Any]:
        """Roles, turns and answers, each with its count."""
        return {
            "roles": dict(self.roles.most_common()),
            "turns": {str(n): count for n, count in sorted(self.turns.items())},
            "answers": {str(n): count for n, count in sorted(self.answers.items())},
        }


class Lengths:
    """Characters of prompts, answers and texts, and tokens where somebody counts them; which answers are preferred.

    Args:
        count_tokens: counts the tokens of texts.
        sample: rows whose tokens are counted; default: all.
        start: the number of the first row.
    """

    def __init__(self, count_tokens: Count | None = None, sample: int | None = None, start: int = 0) -> None:
        self.characters: dict[str, Histogram] = {}
        self.tokens: dict[str, Histogram] = {}
        self.longer = self.shorter = self.longer_in_tokens = self.shorter_in_tokens = 0
        self._count_tokens = count_tokens
        self._waiting: list[Entry] = []
        self.sample: Sample[Entry] | None = None if sample is None else Sample(sample)
        self._number = start

    def add(self, entry: Entry) -> None:
        """Measure one row."""
        self._number += 1
        for name, text in _named_texts(entry):
            if (histogram := self.characters.get(name)) is None:
                histogram = self.characters[name] = Histogram()
            histogram.add(len(text))
        longer, shorter = _preferred(entry, [len(a) for a in entry.answers])
        self.longer, self.shorter = self.longer + longer, self.shorter + shorter
        if self.sample is not None:
            self.sample.add(self._number, lambda: entry)
        elif self._count_tokens is not None:
            self._waiting.append(entry)
            if len(self._waiting) >= BATCH:
                self._count()

    def merge(self, other: Lengths) -> None:
        """Take over what follows, of which tokens are counted in a sample alone."""
        for name, found in other.characters.items():
            self.characters.setdefault(name, Histogram()).merge(found)
        self.longer, self.shorter = self.longer + other.longer, self.shorter + other.shorter
        if self.sample is not None and other.sample is not None:
            self.sample.merge(other.sample)

    def _count(self) -> None:
        entries, self._waiting = self._waiting, []
        if self.sample is not None and not self.tokens:
            entries = self.sample.kept
        if self._count_tokens is None or not entries:
            return
        counts = iter(self._count_tokens([text for e in entries for _, text in _named_texts(e)]))
        for entry in entries:
            names = [name for name, _ in _named_texts(entry)]
            lengths = list(islice(counts, len(names)))
            for name, length in zip(names, lengths, strict=True):
                self.tokens.setdefault(name, Histogram()).add(length)
            answers = [length for name, length in zip(names, lengths, strict=True) if name == "answer"]
            longer, shorter = _preferred(entry, answers)
            self.longer_in_tokens, self.shorter_in_tokens = (
                self.longer_in_tokens + longer,
                self.shorter_in_tokens + shorter,
            )

    @property
    def longer_is_better(self) -> float | None:
        """Share of the ordered pairs of unlike length, in characters, whose better answer is the longer one."""
        return _share(self.longer, self.shorter)

    @property
    def longer_is_better_in_tokens(self) -> float | None:
        """The same in tokens; None where they are not counted."""
        self._count()
        return _share(self.longer_in_tokens, self.shorter_in_tokens)

    def findings(self) -> Iterator[Finding]:
        """A preference for long or short answers, in the unit that it was measured in."""
        self._count()
        in_tokens = self._count_tokens is not None
        longer, shorter = (self.longer_in_tokens, self.shorter_in_tokens) if in_tokens else (self.longer, self.shorter)
        share, unit = _share(longer, shorter), "tokens" if in_tokens else "characters"
        if share is None or longer + shorter < ENOUGH or 1 - ONE_SIDED < share < ONE_SIDED:
            return
        what, part, n = ("longer", share, longer) if share >= 0.5 else ("shorter", 1 - share, shorter)
        sample = f" ({self.sample.of('rankings')})" if in_tokens and self.sample is not None else ""
        of = f"{longer + shorter:,} ranked pairs of unlike length, in {unit}{sample}"
        text = f"{part:.0%} of the {of}, prefer the {what} response: a reward model may learn length alone"
        yield Finding(kind="length preference", count=n, text=text)

    def facts(self) -> dict[str, Any]:
        """Statistics by unit and by kind of text."""
        self._count()
        sampled = {"tokens of": self.sample.of("rows")} if self.sample is not None and self.tokens else {}
        return {
            "characters": {name: found.as_dict() for name, found in self.characters.items()},
            "tokens": {name: found.as_dict() for name, found in self.tokens.items()},
            **sampled,
        }


def _named_texts(entry: Entry) -> list[tuple[str, str]]:
    named = [("prompt", "\n".join(m.content for m in entry.messages))] if entry.messages else []
    return named + [("answer", a) for a in entry.answers] + ([("text", entry.text)] if entry.text else [])


def _preferred(entry: Entry, lengths: Sequence[int]) -> tuple[int, int]:
    """How many ordered pairs of unlike length prefer the longer answer, and the shorter."""
    if len(entry.answers) < 2:
        return 0, 0
    unlike = [lengths[i] > lengths[j] for i, j in entry.pairs if lengths[i] != lengths[j]]
    return sum(unlike), len(unlike) - sum(unlike)


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None


class Languages:
    """Languages and scripts of a sample, and answers in another language than their prompt."""

    def __init__(self, size: int = LANGUAGE_SAMPLE, start: int = 0) -> None:
        self.sample: Sample[Entry] = Sample(size)
        self._number = start

    def add(self, entry: Entry) -> None:
        """Perhaps take this row into the sample."""
        self._number += 1
        if entry.messages or entry.answers or entry.text:
            self.sample.add(self._number, lambda: entry)

    def merge(self, other: Languages) -> None:
        """Take over what follows."""
        self.sample.merge(other.sample)

    def findings(self) -> Iterator[Finding]:
        """Answers in another language, where they are more than a few."""
        other, compared = Places(), 0
        for entry in self.sample.kept:
            if not (entry.messages and entry.answers):
                continue
            asked, said = entry.messages[-1].content, entry.answers[0]
            compared += 1
            if script_of(asked) != script_of(said) and _unlike(language_of(asked), language_of(said)):
                other.add(entry.place)
        if other.count > MANY * max(compared, ENOUGH):
            of = f"{other.count:,} of {compared:,} responses compared"
            text = f"{of} are in another language and script than their prompt"
            yield other.finding("language", text)

    def facts(self) -> dict[str, Any]:
        """Rows of the sample by language and by script, the most frequent first."""
        texts = ["\n".join(entry.texts) for entry in self.sample.kept]
        return {
            "languages": dict(Counter(language_of(t) or "too short to tell" for t in texts).most_common()),
            "scripts": dict(Counter(map(script_of, texts)).most_common()),
            "languages of": self.sample.of("rows"),
        }


def _unlike(asked: str | None, said: str | None) -> bool:
    return asked is not None and said is not None and asked != said


class Characters:
    """Rows with characters that are not seen, that were lost, or that are markup."""

    def __init__(self) -> None:
        self.invisible, self.lost, self.markup = Places(), Places(), Places()

    def add(self, entry: Entry) -> None:
        """Look at all texts of a row."""
        texts = entry.texts
        if any(map(invisible, texts)):
            self.invisible.add(entry.place)
        if any("\ufffd" in text for text in texts):
            self.lost.add(entry.place)
        if any(map(markup, texts)):
            self.markup.add(entry.place)

    def merge(self, other: Characters) -> None:
        """Take over what follows."""
        self.invisible.merge(other.invisible)
        self.lost.merge(other.lost)
        self.markup.merge(other.markup)

    def findings(self) -> Iterator[Finding]:
        """What of it there is, with the setting that cleans it."""
        said: Mapping[str, tuple[Places, str]] = {
            "invisible characters": (
                self.invisible,
                "control or zero-width characters; data.clean.control removes them",
            ),
            "lost characters": (self.lost, "the mark of a lost character (U+FFFD); their encoding was misread before"),
            "markup": (self.markup, "HTML; where it is no part of the task, data.clean.markup removes it"),
        }
        for kind, (places, text) in said.items():
            if places.count:
                yield places.finding(kind, f"{places.count:,} rows hold {text}")

    def facts(self) -> dict[str, Any]:
        """Nothing besides."""
        return {}
