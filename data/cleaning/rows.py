"""Rows, cleaned: their texts mended, and those left out that are too long, in another language, or there before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from data.cleaning.settings import CleanConfig
from data.cleaning.texts import TextCleaner
from data.formats.rows import Row
from data.languages import language_of
from data.near_duplicates import NearIndex
from data.records import Message, group_of
from data.storage.digests import digest
from data.storage.first_places import Firsts

NEAR_LIMIT = 200_000
"""Rows of a part that are compared for near duplicates, of more a sample; they take about 5 kB of memory each."""


@dataclass(slots=True)
class Tally:
    """What cleaning did: rows by what was changed, and by why they were dropped, with the first place of each."""

    changed_rows: int = 0
    dropped_rows: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    near_sample: str = ""  # among which near duplicates were looked for, where it is not all rows

    def note(self, place: str, done: set[str], why: str) -> None:
        """Count one row."""
        for name in sorted(done):
            self.first.setdefault(name, place)
        self.changed.update(done)
        self.changed_rows += bool(done)
        if why:
            self.first.setdefault(why, place)
            self.dropped[why] += 1
            self.dropped_rows += 1

    def as_dict(self) -> dict[str, int | str]:
        """Rows by what was changed, ``dropped: why``, and the sample of near duplicates where there was one."""
        counts: dict[str, int | str] = {**self.changed, **{f"dropped: {why}": n for why, n in self.dropped.items()}}
        return counts | ({"near duplicates of": self.near_sample} if self.near_sample else {})

    def lines(self) -> list[str]:
        """One line for each kind of change and each reason, with the first place."""
        kinds = [(n, name, name) for name, n in self.changed.most_common()]
        kinds += [(n, f"dropped: {why}", why) for why, n in self.dropped.most_common()]
        said = [f"{n:,} rows {what}; the first is {self.first[key]}" for n, what, key in kinds]
        return [*said, f"near duplicates were looked for in {self.near_sample}"] if self.near_sample else said


class RowCleaner:
    """Cleans the rows of one part; what came before is remembered over all its sources.

    Raises:
        UserError: a library that a setting needs is not installed.
    """

    def __init__(self, config: CleanConfig) -> None:
        self.config, self.text = config, TextCleaner(config)
        self._seen = Firsts()
        self._near = NearIndex(NEAR_LIMIT) if config.duplicates == "near" else None

    def row(self, row: Row) -> tuple[Row, set[str]]:
        """The row with clean texts, and what was done to them."""
        messages, of_messages = self._messages(row.messages)
        answers, of_answers = self.text.everywhere(row.answers)
        text, of_text = self.text(row.text)
        columns, _ = self.text.everywhere(dict(row.columns))
        done = {*of_messages, *of_answers, *of_text}
        if not done and columns == row.columns:
            return row, set()
        own = group_of(row.messages, row.answers or (row.text,))
        group = group_of(messages, answers or (text,)) if row.group == own else row.group
        return replace(row, messages=messages, answers=answers, text=text, columns=columns, group=group), done

    def _messages(self, turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], list[str]]:
        out, names = [], []
        for turn in turns:
            content, done = self.text(turn.content)
            calls, more = turn.tool_calls, tuple[str, ...]()
            if calls:
                cleaned, more = self.text.everywhere(json.loads(calls))
                calls = json.dumps(cleaned, ensure_ascii=False) if more else calls
            out.append(replace(turn, content=content, tool_calls=calls) if done or more else turn)
            names += [*done, *more]
        return tuple(out), names

    def why_dropped(self, row: Row, before: Row | None = None) -> str:
        """Why a clean row is left out; empty where it stays.

        Args:
            before: the row as it was.
        """
        said = row.answers or ((row.messages[-1].content,) if row.messages else (row.text,))
        if before is not None and _says_nothing(before, row):
            return "nothing is left of a text"
        lengths = [len(text) for text in said]
        if (low := self.config.min_characters) is not None and min(lengths) < low:
            return f"shorter than min_characters {low:,}"
        if (high := self.config.max_characters) is not None and max(lengths) > high:
            return f"longer than max_characters {high:,}"
        if self.config.languages:
            language = language_of("\n".join(said))
            if language is not None and language not in self.config.languages:
                return f"in the language {language}"
        return ""

    def same_before(self, row: Row, place: str) -> tuple[str, str]:
        """Why a row is a duplicate and the place of the first; both empty where it is none. Remembers it."""
        if self.config.duplicates is None:
            return "", ""
        turns = [(m.role, m.content, m.tool_calls) for m in row.messages]
        first = self._seen.of(digest(repr((turns, row.answers, row.ranks, row.scores, row.text))), place)
        if first != place:
            return "the same as one before", first
        if self._near is None:
            return "", ""
        near = self._near.find_or_add(place, "\n".join((*(m.content for m in row.messages), *row.answers, row.text)))
        return ("nearly the same as one before", near) if near is not None else ("", "")

    @property
    def near_sample(self) -> str:
        """The sample that is compared for near duplicates; empty where it is all rows, or none."""
        return "" if self._near is None else self._near.sampled

    def clean(self, row: Row, place: str, tally: Tally) -> Iterator[Row]:
        """Yield the clean row unless it is left out, and count."""
        clean, done = self.row(row)
        why = self.why_dropped(clean, row) or self.same_before(clean, place)[0]
        tally.note(place, done, why)
        tally.near_sample = self.near_sample
        if not why:
            yield clean


def _says_nothing(before: Row, row: Row) -> bool:
    """Whether a text that said something says nothing any more."""
    texts = [(m.content, n.content) for m, n in zip(before.messages, row.messages, strict=True)]
    texts += [*zip(before.answers, row.answers, strict=True), (before.text, row.text)]
    return any(old.strip() and not new.strip() for old, new in texts)
