"""Why a source is refused: columns that nothing reads, or no row that can be used, with what to write instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.formats import NoFormat, Reject, Unread, known_formats
from data.formats.parsing import why_not
from data.formats.rows import quoted
from data.formats.values import blank

SHAPES = 1000


@dataclass(slots=True)
class Lost:
    """What a source's formats cannot read.

    ``columns`` would be lost, in so many rows; ``first`` is the first refusal of each kind. ``row`` has a value of each
    column that refused rows have, of at most ``SHAPES`` sets of columns.
    """

    columns: Counter[str] = field(default_factory=Counter)
    first: dict[tuple[str, ...], tuple[str, str]] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)
    shapes: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, place: str, error: Reject) -> None:
        """Note a refusal if it is for columns that would be lost, or for want of a format."""
        if isinstance(error, Unread | NoFormat) and len(self.shapes) < SHAPES:
            self.shapes.add(tuple(error.row))
            for name, value in error.row.items():
                if blank(self.row.get(name)):
                    self.row[name] = value
        if isinstance(error, Unread):
            self.columns.update(error.columns)
            self.first.setdefault(error.columns, (place, str(error)))

    def why(self, known: Collection[str] = (), form: str | None = None) -> str:
        """Why a row with all columns of those that were refused is not read, where they have several sets of them."""
        return why_not(self.row, known, form) if len(self.shapes) > 1 else ""

    def message(self, source: str, known: Collection[str] = (), form: str | None = None) -> str:
        """What stands in the error: every column once, with lines that hold for all rows."""
        counts = ", ".join(f"{name} ({n:,} row{'s' * (n > 1)})" for name, n in self.columns.most_common(10))
        place, why = next(iter(self.first.values()))
        if len(self.first) > 1:
            line = f"ignore: [{', '.join(quoted(name) for name in self.columns)}]"
            why = self.why(known, form) or f"to leave them out, write `{line}`"
            place = f"{place} and others"
        return f"{source}: columns that nothing reads: {counts}. {place}: {why}"


def nothing_usable(
    source: str,
    kind: str,
    rejected: Iterable[tuple[str, str]],
    columns: Mapping[str, int],
    cure: str = "",
    rows: int | None = None,
    why: str = "",
) -> str:
    """Why none of a source's rows is of the kind.

    Args:
        rejected: places and reasons.
        columns: those found.
        cure: what to write instead, in words.
        rows: those of the source; default: those that were rejected.
        why: the reason to name; default: the most frequent one.
    """
    found = list(rejected)
    reasons = Counter(reason for _, reason in found).most_common(1)
    if reasons:
        first = next(place for place, reason in found if reason == reasons[0][0])
        why = f"; most often: {why or reasons[0][0]} ({first})"
    shown = list(columns)[:30]
    names = ", ".join(shown) + (f" and {len(columns) - 30} more" if len(columns) > 30 else "") or "none"
    count = len(found) if rows is None else rows
    return (
        f"{source}: none of its {count} rows can be used as {kind}{why}{cure}. Columns found: {names}. "
        f"Known: {known_formats()}"
    )
