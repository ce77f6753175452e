"""Which format a row has, by all of its columns, and the rows that the format makes of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from data.common.errors import UserError, nearest
from data.formats.columns import check_pictures, is_metadata, judges, lost, may_be_missing, named_by
from data.formats.nested import lifted
from data.formats.rankings import RANKS, SCORES
from data.formats.rows import Format, NoFormat, Reject, Row
from data.formats.table import FORMATS
from data.formats.turns import BEFORE
from data.formats.values import listed

Candidates = tuple[tuple[str, frozenset[str]], ...]


def under_our_names(row: Mapping[str, Any], columns: Mapping[str, str], ignore: Collection[str] = ()) -> dict[str, Any]:
    """The row by our names, without what is missing (nulls, blank cells of judgements) and what is to be ignored.

    Args:
        row: by its own names.
        columns: our name -> theirs, or the path of a value inside one (``request.messages``). A column of theirs that
            has our name but gives way to another one (``prompt`` in ``{prompt: question}``) is there as
            ``prompt (theirs)``, so that it is not lost.
        ignore: names, or patterns of names, of the row's own.
    """
    paths = [their for their in columns.values() if "." in their and their not in row]
    row = lifted(row, paths) if paths else row
    if not columns and not ignore:
        return {k: v for k, v in row.items() if _there(k, v)}
    theirs = {their: our for our, their in columns.items()}
    own = {k: v for k, v in row.items() if _there(k, v) and not (ignore and named_by(str(k), ignore))}
    given_way = {our for our, their in columns.items() if our not in theirs and their in own}
    return {f"{k} (theirs)" if k in given_way else theirs.get(k, k): v for k, v in own.items()}


def _there(name: Any, value: Any) -> bool:
    """Whether a cell says anything: tables fill what is missing with null, or a score with blank text."""
    return value is not None and not (isinstance(value, str) and value == "" and may_be_missing(str(name)))


def choose(given: Mapping[str, Any], forced: str | None = None) -> tuple[str, frozenset[str]]:
    """The format's name and the columns that it does not read.

    Raises:
        NoFormat: none fits.
        UserError: no format is called ``forced``.
        Reject: the row has not what the forced one needs.
    """
    if forced is not None:
        return forced, _forced(given, forced)
    for name, unread in _candidates(tuple(given), tuple(FORMATS)):
        fits = FORMATS[name].fits
        if fits is None or fits(given):
            return name, unread
    names = list(map(str, given))
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise NoFormat(f"no known format has the columns {shown or '(none)'}")


def names_a_format(names: Collection[str]) -> bool:
    """Whether some format has its columns among these names: then they are a header."""
    return bool(_candidates(tuple(names), tuple(FORMATS)))


@lru_cache(maxsize=4096)
def _candidates(names: tuple[Any, ...], formats: tuple[str, ...]) -> Candidates:
    """Formats whose columns are all there, the one that leaves the fewest of the others unread first."""
    found = []
    present = frozenset(names)
    for place, name in enumerate(formats):
        reads = FORMATS[name].reads(present)
        if reads is not None:
            unread = present - reads
            count = sum(not is_metadata(str(column)) for column in unread)
            found.append((count, place, name, unread))
    return tuple((name, unread) for _, _, name, unread in sorted(found, key=lambda one: one[:2]))


def _forced(given: Mapping[str, Any], name: str) -> frozenset[str]:
    if name not in FORMATS:
        raise UserError(f"format {name!r} is unknown.{nearest(name, list(FORMATS))} Known: {', '.join(FORMATS)}")
    one = FORMATS[name]
    reads = one.reads(frozenset(given))
    if reads is None:
        need = [r if isinstance(r, str) else " or ".join(r) for r in one.required]
        raise Reject(f"format {name!r} needs {', '.join(need)}; it has {', '.join(map(str, given)) or 'no column'}")
    if one.fits is not None and not one.fits(given):
        raise Reject(f"its values are not those of the format {name!r} ({one.columns})")
    return frozenset(given) - reads


ACTING = frozenset({*BEFORE, "input"})
"""Columns that formats may have and that are part of what is asked: one that its format did not ask for is lost."""


def _acts(column: Any, format: Format) -> bool:
    """Whether a column is lost where its format may have it and did not ask for it: it is asked, or it judges."""
    if column in ACTING:
        return True
    return bool(format.required) and judges(str(column)) and column not in format.kept


class _Watched(Mapping[str, Any]):
    """A row that knows which of its columns were asked for."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row, self.asked = row, set[str]()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return self.row[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)

    def __contains__(self, name: object) -> bool:
        return name in self.row


def in_order(given: Mapping[str, Any], name: str) -> int:
    """How many responses a row has that its format ranks by their place alone; 0 where something else ranks them."""
    if not FORMATS[name].in_order or not given.keys().isdisjoint((*RANKS, *SCORES)):
        return 0
    return len(listed(given["responses"], "responses"))


def read(
    given: Mapping[str, Any],
    forced: str | None = None,
    known: Collection[str] = (),
    spelled: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, list[Row], tuple[str, ...]]:
    """Return the format's name, its rows, and the columns whose values would be lost.

    Args:
        given: a row by our names.
        forced: the format to read it by.
        known: columns, or patterns of their names, that somebody else reads.
        spelled: names as the file has them, where they are read in small letters.

    Raises:
        Reject: no format fits, or the row is wrong.
    """
    check_pictures(given)
    name, unread = choose(given, forced)
    acting = {column for column in given if _acts(column, FORMATS[name])} - unread
    row = _Watched(given) if acting else given
    rows = FORMATS[name].read(row)
    if isinstance(row, _Watched):
        unread |= acting - row.asked
    if not unread:
        return name, rows, ()
    answers = max((len(row.answers) or bool(row.text) for row in rows), default=0)
    left = tuple(column for column in given if column in unread and not named_by(str(column), known))
    return name, rows, tuple(lost(given, left, answers, spelled, in_order(given, name))) if left else ()
