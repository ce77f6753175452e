"""What a row of a data file becomes, and why it may not: ``Row``, ``Reject`` and the entry of a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.records import Message

DUPLICATE = "repeated responses dropped"
MERGED = "neighbouring turns of one role joined"
UNRANKED = "responses of which nothing says which is better: read as a tie"
TIED = "pairs of equal scores: read as a tie"
BOTH_BAD = "pairs of which both are said to be bad: read as a tie, and never as demonstrations"
NO_PROMPT = "rows whose prompt is null or blank: read as responses without one"
REASONING = "reasoning put before its response, between <think> and </think>"
NO_ANSWER = "pairs whose chosen response is empty"
SAME = "pairs whose responses differ in white space alone"
DELETED = "deleted messages left out"
CLOSED = "marks that close a turn, such as </s> or <|im_end|>, taken off ends of turns: a template sets its own"
REVIEWED = "messages that a review turned down left out"
SECOND = "scores next to a label, which decides: kept for functions"


def numbered(name: str) -> str:
    """The note of a row whose verdict is a number, by which it names a side."""
    return f"verdicts that are a number of {name}: read as naming the better response"


class Reject(Exception):
    """This row cannot be used; the message says why."""


class Doubtful(Reject):
    """A value that its row cannot mean, by which like values of other rows may mean something else than they say.

    ``note`` is that of rows which were read by such a value: where a file has some, all of it is refused.
    """

    def __init__(self, message: str, note: str) -> None:
        super().__init__(message)
        self.note = note


class Unlabelled(Reject):
    """A row whose judgement is blank; ``format`` and ``rows`` are what it is where no row of its file has one.

    ``column`` is what would rank its responses, and empty where a label is missing.
    """

    def __init__(self, message: str, format: str, rows: list[Row], column: str = "") -> None:
        super().__init__(message)
        self.format, self.rows, self.column = format, rows, column


class Unread(Reject):
    """A row with columns that its format does not read.

    ``columns`` are their names, ``format`` is what reads the others, ``paste`` is the line for the recipe, and ``row``
    the row by our names.
    """

    def __init__(
        self, message: str, columns: tuple[str, ...], format: str, paste: str, row: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.columns, self.format, self.paste, self.row = columns, format, paste, row or {}


class NoFormat(Reject):
    """A row that no format fits; ``near`` are those that nearly do, the nearest first, ``row`` it is by our names."""

    def __init__(self, message: str, near: tuple[Near, ...] = (), row: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.near, self.row = near, row or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """A format that nearly fits.

    ``missing`` are its columns that the row lacks, ``extra`` those of the row that it does not read, ``columns`` (our
    name -> theirs) and ``ignore`` are what makes it fit.
    """

    format: str
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    columns: Mapping[str, str]
    ignore: tuple[str, ...] = ()

    @property
    def paste(self) -> str:
        """The line for the recipe."""
        mapping = ", ".join(f"{quoted(our)}: {quoted(their)}" for our, their in self.columns.items())
        parts = [f"columns: {{{mapping}}}"] if mapping else []
        parts += [f"ignore: [{', '.join(map(quoted, self.ignore))}]"] if self.ignore else []
        return ", ".join(parts)


def quoted(name: str) -> str:
    """A column's name as YAML takes it inside a flow mapping."""
    plain = name.replace("_", "a").replace("-", "a").replace(" ", "a").isalnum() and name[0].isalpha()
    taken = name.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    return name if plain and not taken else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, whatever it was: a plain text, or turns with 0, 1 or more responses, best first where they are ranked.

    ``judged`` says that its one response was judged alone (``label``: liked or not, ``score``: a number), with the
    judgement in ``scores``; responses to the same prompt then make a ranking (``data.judgements``). ``ended`` says of
    each response of a ranking whether it is whole.
    """

    messages: tuple[Message, ...] = ()
    answers: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    scores: tuple[float, ...] | None = None
    finished: bool = True
    ended: tuple[bool, ...] = ()
    judged: str = ""
    text: str = ""
    notes: tuple[str, ...] = ()
    group: str = ""
    source: str = ""
    category: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def placed(self, group: str, source: str, category: str, columns: Mapping[str, Any]) -> Row:
        """The same row with what a format does not know of it; ``dataclasses.replace`` takes three times as long."""
        return Row(
            messages=self.messages,
            answers=self.answers,
            ranks=self.ranks,
            scores=self.scores,
            finished=self.finished,
            ended=self.ended,
            judged=self.judged,
            text=self.text,
            notes=self.notes,
            group=group,
            source=source,
            category=category,
            columns=columns,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format.

    ``columns`` is what messages show. ``required`` are the columns that it needs; a group in brackets is one of
    several names, the first that is there. ``optional`` are those that it reads where they are there, ``kept``
    those of them that judge and decide nothing: functions are given them. ``fits`` looks at values where keys do
    not decide; with ``fits`` alone a format reads every column of its rows. ``finds`` gives the columns that it
    reads of a row's in place of both lists, where they are known by a pattern. ``example`` is a row, shown in the
    reference and read by a test; ``note`` says what becomes of it. ``in_order`` says that ``responses`` stand best
    first, unless ranks or scores say another order.
    """

    columns: str
    read: Callable[[Mapping[str, Any]], list[Row]]
    fits: Callable[[Mapping[str, Any]], bool] | None = None
    required: tuple[str | tuple[str, ...], ...] = ()
    optional: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    finds: Callable[[frozenset[str]], frozenset[str] | None] | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    in_order: bool = False

    def reads(self, names: frozenset[str]) -> frozenset[str] | None:
        """Those of the names that it reads, or None where a required one is missing."""
        if self.finds is not None:
            return self.finds(names)
        if not self.required:
            return names
        found = set(self.optional) & names
        for one in self.required:
            spelled = (one,) if isinstance(one, str) else one
            first = next((name for name in spelled if name in names), None)
            if first is None:
                return None
            found.add(first)
        return frozenset(found)
