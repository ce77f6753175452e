"""Why a source is refused: columns that nothing reads, or no row that can be used, with what to write instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data.formats import Reject, Unread, known_formats


@dataclass(slots=True)
class Lost:
    """Columns that a source's formats would lose: how many rows have each, and the first refusal of each kind."""

    columns: Counter[str] = field(default_factory=Counter)
    first: dict[tuple[str, ...], tuple[str, str]] = field(default_factory=dict)

    def add(self, place: str, error: Reject) -> None:
        """Note a refusal if it is for columns that would be lost."""
        if isinstance(error, Unread):
            self.columns.update(error.columns)
            self.first.setdefault(error.columns, (place, str(error)))

    def message(self, source: str) -> str:
        """What stands in the error: every column once, with the line to paste."""
        counts = ", ".join(f"{name} ({n:,} row{'s' * (n > 1)})" for name, n in self.columns.most_common(10))
        place, why = next(iter(self.first.values()))
        more = f". In all {len(self.columns)} such columns: {counts}" if len(self.first) > 1 else ""
        return f"{source}: columns that nothing reads: {counts}. {place}: {why}{more}"


def nothing_usable(
    source: str,
    kind: str,
    rejected: Iterable[tuple[str, str]],
    columns: Mapping[str, int],
    cure: str = "",
    rows: int | None = None,
) -> str:
    """Why none of a source's rows is of the kind.

    Args:
        rejected: places and reasons.
        columns: those found.
        cure: what to write instead, in words.
        rows: those of the source; default: those that were rejected.
    """
    found = list(rejected)
    reasons = Counter(reason for _, reason in found).most_common(1)
    why = ""
    if reasons:
        first = next(place for place, reason in found if reason == reasons[0][0])
        why = f"; most often: {reasons[0][0]} ({first})"
    shown = list(columns)[:30]
    names = ", ".join(shown) + (f" and {len(columns) - 30} more" if len(columns) > 30 else "") or "none"
    count = len(found) if rows is None else rows
    return (
        f"{source}: none of its {count} rows can be used as {kind}{why}{cure}. Columns found: {names}. "
        f"Known: {known_formats()}"
    )
