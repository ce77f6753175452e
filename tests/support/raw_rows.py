"""Rows of public files as plain JSON, and what trivet makes of them, without trivet's own readers."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.derive import KINDS
from data.formats import Reject, Row, assembled, parse
from data.judgements import gathered
from data.parsed_rows import Parsed


def raw_rows(path: Path) -> list[Any]:
    """Rows of a JSON, JSON lines or CSV file; lists inside one object are its rows."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    try:
        found = json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(found, dict) and isinstance(found.get("data"), list):
        return found["data"]
    if isinstance(found, dict) and "features" in found and "rows" in found:
        return [one["row"] for one in found["rows"]]
    if isinstance(found, dict) and len(found) > 50:
        return list(found.values())
    return found if isinstance(found, list) else [found]


def understood(rows: Iterable[Any], **how: Any) -> list[Parsed]:
    """Every row as it was parsed, or why it was not."""
    out = []
    for place, row in assembled((str(i), row) for i, row in enumerate(rows)):
        try:
            name, found = parse(row, place, **how)
        except Reject as error:
            out.append(Parsed(place, reason=str(error), error=error))
            continue
        out += [Parsed(place, name, one) for one in found]
    return out


def records(found: Iterable[Parsed], kind: str) -> list[Any]:
    """The records of a kind that the rows make."""
    out: list[Any] = []
    for one in gathered(found, kind):
        if one.row is not None:
            try:
                out += KINDS[kind](one.row)
            except Reject:
                continue
    return out


def summary(found: list[Parsed]) -> dict[str, Any]:
    """Counts of formats, roles, ties, records of each kind, and reasons."""
    rows: list[Row] = [one.row for one in found if one.row is not None]
    roles = Counter(m.role for row in rows for m in row.messages)
    return {
        "formats": dict(sorted(Counter(one.format for one in found if one.row is not None).items())),
        "roles": dict(sorted(roles.items())),
        "answers": sum(len(row.answers) for row in rows),
        "ties": sum(len(row.answers) > 1 and len(set(row.ranks)) < len(row.ranks) for row in rows),
        **{kind: len(records(found, kind)) for kind in KINDS},
        "refused": dict(sorted(Counter(one.reason for one in found if one.row is None).items())),
    }


def turns_of(messages: Iterable[Any]) -> str:
    """Turns in short: ``u:Hello|a:Hi``."""
    return "|".join(f"{m.role[0]}:{m.content}" for m in messages)
