"""A raw row to the rows in it, with its place, group, category and other columns."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from data.formats.columns import judges_each, named_by, number_lists, plain, rules_out
from data.formats.near import near_fits, near_inside
from data.formats.one_response import LABELS
from data.formats.public_sets import set_of
from data.formats.rankings import MARKS
from data.formats.reading import in_order, read, under_our_names
from data.formats.rows import CLOSED, Doubtful, Near, NoFormat, Reject, Row, Unlabelled, Unread, quoted
from data.formats.transcripts import unclosed
from data.formats.values import blank, encodable, string
from data.readers.rows import CELLS
from data.records import group_of

ASKED = frozenset({CELLS, "prompt", "messages", "conversations", "text"})  # the others go to a user's functions


def as_object(row: Any) -> Mapping[str, Any]:
    """A row that is no object as one: a list of turns or of texts in turn is a conversation, a text a document.

    Raises:
        Reject: it is neither.
    """
    if isinstance(row, Mapping):
        return row
    if isinstance(row, str):
        return _written(row) or {"text": row}
    if isinstance(row, list) and row and all(isinstance(t, Mapping) and ("role" in t or "from" in t) for t in row):
        return {"messages": row}
    if isinstance(row, list) and len(row) > 1 and all(isinstance(text, str) for text in row):
        return {"conversation": row}
    raise Reject(f"JSON, but {type(row).__name__} instead of an object")


def _written(text: str) -> Mapping[str, Any] | None:
    """The object that a text is the JSON of."""
    if text.lstrip()[:1] != "{":
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value else None


def parse(
    row: Any,
    source: str = "",
    group_by: str | None = None,
    *,
    columns: Mapping[str, str] = MappingProxyType({}),
    ignore: Collection[str] = (),
    format: str | None = None,
    known: Collection[str] = (),
) -> tuple[str, list[Row]]:
    """Return the format's name and the rows in it (self-instruct has several in one).

    Args:
        row: a row as a reader gives it: an object, a list of turns, or a text.
        source: its place, ``file:line``.
        group_by: the column that names the row's group.
        columns: our name -> the column that is read by it (``{"prompt": "question"}``).
        ignore: columns, or patterns of their names, that are no part of prompts and responses.
        format: the name of the format that reads it, whatever else would fit.
        known: columns, or patterns of their names, that a user's functions read.

    Raises:
        NoFormat: no format fits.
        Unread: a column would be lost.
        Unlabelled: its one response has a column for a label, or its several one for what ranks them, and nothing
            stands there.
        Reject: the row is wrong.
        UserError: there is no such format.
    """
    row = as_object(row)
    given: Mapping[str, Any] = under_our_names(row, columns, ignore)
    known = known if group_by is None else (*known, group_by)
    public = set_of(row, ignore) if not columns and format is None else None
    if public is not None:
        if public.refused:
            raise Reject(public.refused)
        given = under_our_names(given, public.columns, public.ignore)
    try:
        name, rows, lost, given = _understood(given, row, format, known)
    except NoFormat:
        raise
    except Doubtful as error:
        raise Doubtful(f"{error}{_inside(given, known)}", error.note) from None
    except Reject as error:
        raise Reject(f"{error}{_inside(given, known)}") from None
    if lost:
        raise _unread(given, name, lost, known)
    group = ""
    if group_by is not None:
        named = row if row.get(group_by) is not None else given
        if group_by not in named:
            raise Reject(f"it has no column '{group_by}' to group by, or nothing stands there")
        if blank(named[group_by]):
            raise Reject(f"nothing stands in its column '{group_by}' to group by")
        group = f"{group_by}={string(named[group_by], group_by)}"
    category = _category(given, name)
    others = {k: v for k, v in (under_our_names(row, columns) if ignore or public else given).items() if k not in ASKED}
    whole = map(_unclosed, rows)
    placed = [r.placed(group or group_of(r.messages, r.answers or (r.text,)), source, category, others) for r in whole]
    if column := _blank_label(row, given, placed, columns, (*ignore, *known), format):
        raise Unlabelled(
            f"its {column} is blank, and other rows have one: liked or not liked, nobody knows; to read all without, "
            f"write `ignore: [{quoted(column)}]`",
            name,
            placed,
        )
    if in_order(given, name) > 1 and (column := _blank_mark(row, columns, (*ignore, *known))):
        raise Unlabelled(
            f"its {column} is blank, and other rows have one: which of its responses is better, nobody knows; to take "
            f"all in the order in which they stand, best first, write `ignore: [{quoted(column)}]`",
            name,
            placed,
            column,
        )
    return name, placed


def _blank_mark(row: Mapping[str, Any], columns: Mapping[str, str], known: Collection[str]) -> str:
    """The blank column that would rank a row's responses; empty where there is none."""
    ours = {their: our for our, their in columns.items()}
    blanks = (str(k) for k, v in row.items() if blank(v) and plain(ours.get(str(k), str(k))) in MARKS)
    return next((column for column in blanks if not named_by(column, known)), "")


def _blank_label(
    row: Mapping[str, Any],
    given: Mapping[str, Any],
    rows: list[Row],
    columns: Mapping[str, str],
    known: Collection[str],
    form: str | None,
) -> str:
    """The blank column that would say whether a row's one response is liked; empty where there is none."""
    if len(rows) != 1 or len(rows[0].answers) != 1 or rows[0].judged:
        return ""
    blanks = [str(k) for k, v in row.items() if v is None or v == ""]
    ours = {their: our for our, their in columns.items()} if blanks else {}
    for column in blanks:
        our = ours.get(column, column)
        if plain(our) not in LABELS or named_by(column, known):
            continue
        try:
            _, with_label, lost, _ = _understood({**given, our: True}, row, form, known)
        except Reject:
            continue
        if not lost and with_label[0].judged == "label":
            return column
    return ""


def _unclosed(row: Row) -> Row:
    """Turns without a template's marks behind them: the run's own template would set them twice."""
    answers = tuple(map(unclosed, row.answers))
    said = [unclosed(m.content) for m in row.messages]
    before = (*row.answers, *(m.content for m in row.messages))
    changed = sum(a != b for a, b in zip((*answers, *said), before, strict=True))
    if not changed:
        return row
    messages = tuple(replace(m, content=text) for m, text in zip(row.messages, said, strict=True))
    return replace(row, messages=messages, answers=answers, notes=(*row.notes, *(CLOSED,) * changed))


Understood = tuple[str, list[Row], tuple[str, ...], Mapping[str, Any]]


def _understood(
    given: Mapping[str, Any], row: Mapping[str, Any], form: str | None, known: Collection[str]
) -> Understood:
    """The format's name, the rows, columns that would be lost, and the row as it was read.

    Names are read as they stand, and where that loses something in small letters with ``_`` between their words.

    Raises:
        Reject: no format fits, or the row is wrong.
    """
    failed: NoFormat | None = None
    first: Understood | None = None
    doubtful: Doubtful | None = None
    try:
        name, rows, lost = read(given, form, known)
        first = (name, rows, lost, given)
        if not lost:
            return first
    except NoFormat as error:
        failed = error
    for spell in (_small, plain):
        theirs = {spell(str(k)): k for k in given}
        if len(theirs) < len(given) or theirs.keys() == given.keys():
            continue
        small = {our: given[their] for our, their in theirs.items()}
        try:
            name, rows, lost = read(small, form, [*known, *map(spell, known)], theirs)
        except Reject as error:
            doubtful = error if isinstance(error, Doubtful) else doubtful
            continue
        if not lost:
            return name, rows, (), small
        if first is None or len(lost) < len(first[2]):
            first = (name, rows, tuple(str(theirs.get(column, column)) for column in lost), given)
    if first is None and doubtful is not None:
        raise doubtful
    if first is None:
        raise _no_format(str(failed), given, row, known) from None
    return first


def _inside(given: Mapping[str, Any], known: Collection[str]) -> str:
    """What a recipe may take out of objects of a row that its format cannot read, in words."""
    if not any(isinstance(v, Mapping) or (isinstance(v, list) and v and isinstance(v[0], str)) for v in given.values()):
        return ""
    near = near_inside(given, known)
    return f". Nearest: {'; '.join(map(said, near))}" if near else ""


def _small(name: str) -> str:
    return re.sub(r"[\s.-]+", "_", name.strip()).lower()


def _category(given: Mapping[str, Any], name: str) -> str:
    value = given.get("category")
    if name == "labelled text":
        value = str(given.get("label", given.get("labels")))
    return value if isinstance(value, str) and encodable(value) else ""


USED_AS = {
    "demonstrations": ("prompt and completion", "messages"),
    "rankings": ("two sides", "preference", "ranked answers", "responses and the best", "scored completions", "thumbs"),
    "prompts": ("prompts",),
    "documents": ("text",),
}
"""Formats that make records of a kind."""


def hint(row: Row, kind: str) -> str:
    """What to write so that a row of another kind can be used as this one, in words; empty where nothing helps."""
    given = dict(row.columns)
    if row.messages:
        given["prompt"] = row.messages[-1].content
    elif row.text:
        given["text"] = row.text
    return used_as(given, kind)


def used_as(row: Mapping[str, Any], kind: str, known: Collection[str] = ()) -> str:
    """What to write so that rows like this one can be used as a kind, in words; empty where nothing helps."""
    near = near_fits(row, known, USED_AS[kind])
    return f". To use them as {kind}: {'; '.join(map(said, near))}" if near else ""


def why_not(row: Mapping[str, Any], known: Collection[str] = (), form: str | None = None) -> str:
    """Why a row by our names cannot be read, with the lines that help; empty where it can."""
    try:
        name, _, lost, given = _understood(row, row, form, known)
    except Reject as error:
        return str(error)
    return str(_unread(given, name, lost, known)) if lost else ""


def said(near: Near) -> str:
    """One suggestion in words."""
    lacks = f"lacks {', '.join(near.missing)}" if near.missing else "has all it needs"
    over = f", has {', '.join(near.extra)} besides" if near.extra else ""
    return f"{near.format!r} ({lacks}{over}): `{near.paste}`"


def _no_format(message: str, given: Mapping[str, Any], row: Mapping[str, Any], known: Collection[str]) -> NoFormat:
    near = near_fits(given, known)
    nulls = [str(k) for k, v in row.items() if v is None]
    message += f" (null: {', '.join(nulls[:8])})" if nulls else ""
    message += f". Nearest: {'; '.join(map(said, near))}" if near else ""
    return NoFormat(message, near, given)


def _unread(given: Mapping[str, Any], name: str, lost: tuple[str, ...], known: Collection[str]) -> Unread:
    shown = ", ".join(f"{column!r} ({_shown(given[column])})" for column in lost[:5])
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    paste = f"ignore: [{', '.join(quoted(str(c)) for c in lost)}]"
    message = f"format {name!r} reads no column {shown}{more}; to leave it out, write `{paste}`"
    if switches := [column for column in lost if rules_out(column, given[column])]:
        kept = (f"{c if c.isidentifier() else f'row[{c!r}]'} != {given[c]!r}" for c in switches)
        message += f", and to leave such rows out `where: {' and '.join(kept)}`"
    count = in_order(given, name)
    if count > 1 and (judging := [column for column in lost if judges_each(column, given[column], count)]):
        path = next((path for column in judging for path in number_lists(column, given[column])), None)
        message += ", by which responses are ranked as they stand, best first; if it judges them, "
        message += (
            "give `scores` with a number of each in its place"
            if path is None
            else (
                f"write `columns: {{scores: {quoted(path)}}}` where the highest is best, or `ranks` where the lowest is"
            )
        )
    others = [near for near in near_fits(given, known) if set(near.columns.values()) & set(lost)]
    message += f", or name what it is: {'; '.join(map(said, others))}" if others else ""
    return Unread(message, tuple(map(str, lost)), name, paste, given)


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return repr(text[:40] + ("..." if len(text) > 40 else "")) if not blank(value) else "blank"
