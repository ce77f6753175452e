"""Files, hub data sets and the built-in demo task to records.

Bad rows are collected with their place and reason; a source of which no row can be used is an error that names the
columns found and the formats known. Knows nothing of splits, tokenizers or models.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from data.blocks import Made, Making, made_by_helpers
from data.cleaning.rows import RowCleaner
from data.common.errors import UserError, nearest
from data.common.patience import each
from data.formats import FORMATS, Reject, Unread, hint
from data.formats.columns import named_by
from data.formats.parsing import used_as, why_not
from data.formats.rows import Doubtful, Unlabelled
from data.hub import read_hub
from data.judgements import JudgedBy, gathered, waiting_rows
from data.local_files import local_rows
from data.parsed_rows import Parsed, Reading, flat, parsed_rows, records_of
from data.readers.files import read_file
from data.readers.rows import CELLS, Raw, ReadOptions, Remark, TextUnit
from data.refusals import Lost, nothing_usable
from data.sampling import Sample, sampled
from data.source_counts import Loaded, Rejected, SourceCount
from data.source_settings import DataConfig, Source, as_source
from data.storage.collected import Collected
from data.storage.store import Store
from data.where import where

__all__ = ["DataConfig", "Loaded", "Rejected", "Source", "SourceCount", "load_records", "parse_file", "read_source"]

DEMO_TASK = "demo-task"
DEMO_ROWS = {"demonstrations": 1500, "prompts": 4000, "documents": 12_000}
"""Rows of the demo task where the source does not say (``demo-task?rows=500``)."""

MAX_DEMO_ROWS = 1_000_000
SHAPES = 1000  # sets of column names that are counted at a time


def load_records(
    sources: Iterable[str | Source],
    kind: str,
    config: DataConfig,
    *,
    seed: int,
    base_dir: Path,
    known: Collection[str] | None = None,
    into: Collected | None = None,
) -> Loaded:
    """Return the records of ``kind`` (``demonstrations``, ``rankings``, ``prompts`` or ``documents``) of all sources.

    Args:
        known: columns that a user's functions read, ``*`` for all of them, which counts for prompts alone. Where
            nobody says, those of prompts are all read, since they are what functions are given.
        into: what collects the records.

    Raises:
        UserError: a source is not there, cannot be read, has no row that can be used, or columns that nothing reads.
    """
    if known is None:
        known = ("*",) if kind == "prompts" else ()
    reading = Reading(
        group_by=config.group_by,
        ignore=config.ignore,
        known=tuple(name for name in known if name != "*" or kind == "prompts"),
    )
    loaded, into = Loaded(), Collected(kind) if into is None else into
    cleaner = RowCleaner(config.clean) if config.clean.active else None
    for entry in sources:
        source = as_source(entry)
        if source.path.partition("?")[0] == DEMO_TASK:
            records = sampled(_demo_task(source.path, kind, seed), source.weight, source.limit, seed)
            into.add(records)
            into.end_source(name=source.path)
            used = SourceCount(part=kind, source=source.path, read=len(records), used=len(records))
            loaded.add(Loaded(counts=[used], read=len(records)))
            continue
        remarks: list[str] = []
        raws = _without_remarks(read_source(source, base_dir, _unit(kind, config), config.group_by), remarks)
        loaded.add(_of_kind(raws, kind, source, reading, seed, into, cleaner))
        loaded.remarks += remarks
    loaded.records = into.records()
    return loaded


def _unit(kind: str, config: DataConfig) -> TextUnit:
    return "line" if kind == "prompts" and config.text_unit == "auto" else config.text_unit


def read_source(
    entry: str | Source, base_dir: Path, text_unit: TextUnit = "auto", group_by: str | None = None
) -> Iterator[Raw]:
    """Yield (place, raw row) of a path, a folder, a path with ``*`` or a hub id.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    source = as_source(entry)
    found = (
        None if source.path.startswith("hub:") else local_rows(source, base_dir, source.options(text_unit, group_by))
    )
    return read_hub(source) if found is None else found


def _without_remarks(raws: Iterable[Raw], remarks: list[str]) -> Iterator[tuple[str, Any]]:
    """Rows and bad lines; what was found out about files goes to ``remarks``."""
    for place, raw in raws:
        if isinstance(raw, Remark):
            remarks.append(f"{place}: {raw.text}")
        else:
            yield place, raw


def _demo_task(source: str, kind: str, seed: int) -> list[Any]:
    from data.demo import task as demo_task

    options = dict(parse_qsl(source.partition("?")[2], keep_blank_values=True))
    unknown = set(options) - {"rows", "seed"}
    wrong = [f"{k}={v[:20]}" for k, v in options.items() if not re.fullmatch("[0-9]{1,18}", v)]
    if unknown or wrong:
        raise UserError(f"{source}: {', '.join(unknown or wrong)} is wrong; write e.g. '{DEMO_TASK}?rows=500&seed=1'")
    if kind not in DEMO_ROWS:
        raise UserError(
            f"data.{kind}: {DEMO_TASK} has none ready; add the stage `rankings`, which samples and ranks responses"
        )
    if int(options.get("rows", 0)) > MAX_DEMO_ROWS:
        raise UserError(f"{source}: rows={options['rows']} is too many (at most {MAX_DEMO_ROWS:,})")
    rows, seed = int(options.get("rows", DEMO_ROWS[kind])), int(options.get("seed", seed))
    return list(getattr(demo_task, kind)(rows, seed))


def parse_file(
    path: Path,
    name: str,
    *,
    group_by: str | None = None,
    text_unit: TextUnit = "auto",
    source: Source | None = None,
    remarks: list[str] | None = None,
) -> Iterator[Parsed]:
    """Yield every row of a file as it was understood, for checks.

    Args:
        source: settings of how it is read, its path aside.
        remarks: where what was found out about the file goes.

    Raises:
        UserError: it cannot be read, or one of its rows makes doubtful what others say.
    """
    options = ReadOptions(text_unit=text_unit) if source is None else source.options(text_unit, group_by)
    raws = _without_remarks(read_file(path, name, options), [] if remarks is None else remarks)
    reading = Reading(group_by=group_by)
    doubtful: dict[str, Rejected] = {}
    notes: Counter[str] = Counter()
    for parsed in _labelled(parsed_rows(flat(raws), reading, source), JudgedBy()):
        notes.update(() if parsed.row is None else parsed.row.notes)
        if isinstance(parsed.error, Doubtful):
            doubtful.setdefault(parsed.error.note, Rejected(parsed.place, parsed.reason))
        lacking = _lacking(parsed, reading, source or as_source(name))
        yield replace(parsed, reason=LACKING.format(lacking)) if lacking else parsed
    for note in sorted(doubtful.keys() & notes.keys()):
        raise UserError(_in_doubt(name, doubtful[note], note, notes[note]))


LACKING = "nothing stands in its column {}, without which its other columns make no row"


def _lacking(parsed: Parsed, reading: Reading, source: Source) -> str:
    """The blank columns of a row that would be read whole with a value in them; empty where that does not help."""
    error = parsed.error
    if not isinstance(error, Unread):
        return ""
    ours = {their: our for our, their in source.columns.items()}
    ignored = (*source.ignore, *reading.ignore)
    missing = [k for k in parsed.columns if ours.get(k, k) not in error.row and not named_by(k, ignored)]
    for value in ("(some text)", error.row[error.columns[0]], 1) if missing else ():  # or what the other side holds
        whole = {**error.row, **{ours.get(k, k): value for k in missing}}
        if not why_not(whole, reading.known, source.format):
            return ", ".join(map(repr, missing))
    return ""


def _of_kind(
    raws: Iterable[tuple[str, Any]],
    kind: str,
    source: Source,
    reading: Reading,
    seed: int,
    into: Collected,
    cleaner: RowCleaner | None = None,
) -> Loaded:
    loaded, count = Loaded(), SourceCount(part=kind, source=source.path)
    reading = replace(reading, kind=kind)
    lost, other = Lost(), None
    doubtful: dict[str, Rejected] = {}  # the first of each note
    alone: list[tuple[str, Reject]] = []  # rows that lack a value, and not a reader of their columns
    used, seen = Sample(source.weight, source.limit, seed), JudgedBy()
    reasons: dict[str, str] = {}  # one string for all rows of a reason
    raws = _kept(each(raws, f"reading {source.path}"), source, count, loaded.columns)
    if cleaner is None and not used.is_partial:
        raws = _with_helpers(raws, kind, source, reading, used, into, seen)
    rows = _labelled(parsed_rows(raws, reading, source), seen)
    if cleaner is not None:
        rows = _cleaned(rows, cleaner, count)
    for parsed in gathered(rows, kind):
        if parsed.row is None:
            lacking = _lacking(parsed, reading, source)
            reason = LACKING.format(lacking) if lacking else parsed.reason
            loaded.rejected.append(Rejected(parsed.place, reasons.setdefault(reason, reason)))
            if lacking and parsed.error is not None:
                alone.append((parsed.place, parsed.error))
            elif parsed.error is not None:
                lost.add(parsed.place, parsed.error)
            if isinstance(parsed.error, Doubtful):
                doubtful.setdefault(parsed.error.note, Rejected(parsed.place, reason))
            continue
        try:
            records = records_of(parsed.row, kind)
        except Reject as error:
            reason = str(error)
            loaded.rejected.append(Rejected(parsed.place, reasons.setdefault(reason, reason)))
            other = other or parsed.row
            continue
        used.add(parsed.place, parsed.row, (parsed.format, parsed.row.notes), len(records))
        into.add(records)
    _check_names(source, loaded.columns)
    taken = used.taken()
    if not used.count(taken):
        for place, why in alone:
            lost.add(place, why)
    if lost.columns:
        raise UserError(lost.message(source.path, reading.known, source.format))
    into.end_source(used.records_of(taken), source.path)
    count.rejected = used.others(r.source for r in loaded.rejected)
    count.used, count.not_sampled = used.places(taken), used.places(~taken, but=taken)
    for (name, notes), number in used.kinds(taken):
        loaded.formats[name] += number
        loaded.notes.update({note: number * n for note, n in Counter(notes).items()})
    in_doubt = doubtful.keys() & loaded.notes.keys() if kind != "prompts" else ()  # prompts are what they are
    for note in sorted(in_doubt):
        raise UserError(_in_doubt(source.path, doubtful[note], note, loaded.notes[note]))
    loaded.counts.append(count)
    loaded.read = count.read
    if not used.count(taken):
        cure = hint(other, kind) if other else used_as(lost.row, kind, reading.known) if lost.row else ""
        raise UserError(_nothing(loaded, kind, source, cure, lost.why(reading.known, source.format)))
    return loaded


def _labelled(rows: Iterable[Parsed], seen: JudgedBy) -> Iterator[Parsed]:
    """The rows as they come; those without a judgement behind them, as they are where no row of the file has one.

    Args:
        seen: by what rows are judged that others read; those that come here are added.
    """
    waiting = defaultdict[str, Store[Any]](waiting_rows)
    for parsed in rows:
        error = parsed.error
        if not isinstance(error, Unlabelled):
            if parsed.row is not None:
                seen.add(parsed.row, parsed.columns)
            yield parsed
        elif seen.has(error.column):
            yield parsed
        else:
            for row in error.rows:
                waiting[error.column].append(replace(parsed, format=error.format, row=row, error=None))
    for column, kept in waiting.items():
        for parsed in kept:
            yield replace(parsed, row=None, format="") if seen.has(column) else replace(parsed, reason="")


def _in_doubt(path: str, first: Rejected, note: str, count: int) -> str:
    """Why a file is refused of which one row makes doubtful how others were to be read."""
    return (
        f"{path}: {count:,} {note}; but {first.source}: {first.reason}. If only such rows are wrong, leave them out by "
        "`where`"
    )


def _with_helpers(
    raws: Iterator[tuple[str, Any]],
    kind: str,
    source: Source,
    reading: Reading,
    used: Sample,
    into: Collected,
    seen: JudgedBy,
) -> Iterator[tuple[str, Any]]:
    """The rows that are read here; of many, helper processes make records of nearly all."""

    def take(made: Made) -> None:
        for place, of, records in made.rows:
            used.add(place, None, of, records)
        into.extend(made.records, made.numbers)
        seen.update(made.judged)

    making = Making(
        kind=kind,
        parsed=partial(parsed_rows, reading=reading, source=source),
        records=partial(records_of, kind=kind),
        index=None if into.index is None else into.index.empty(),
        formats=tuple(FORMATS),
    )
    return made_by_helpers(raws, making, take)


def _cleaned(rows: Iterable[Parsed], cleaner: RowCleaner, count: SourceCount) -> Iterator[Parsed]:
    """The rows that cleaning leaves, mended; lines of which it leaves nothing are counted as dropped."""
    for place, same in groupby(rows, key=lambda parsed: parsed.place):
        left = 0
        for parsed in same:
            if parsed.row is None:
                left += 1
                yield parsed
                continue
            for row in cleaner.clean(parsed.row, place, count.cleaning):
                left += 1
                yield replace(parsed, row=row)
        count.dropped += not left
    count.changed = count.cleaning.changed_rows


def _kept(
    raws: Iterable[tuple[str, Any]], source: Source, count: SourceCount, columns: Counter[str]
) -> Iterator[tuple[str, Any]]:
    """The rows that ``where`` lets through, counting all, and their columns."""
    test = where(source.where) if source.where else None
    shapes: Counter[tuple[Any, ...]] = Counter()  # a source has few

    def add_shapes() -> None:
        for names, rows in shapes.items():
            columns.update({str(name): rows for name in names})
        shapes.clear()

    try:
        for place, raw in raws:
            count.read += 1
            left = 0
            for _, one in flat([(place, raw)]):
                if isinstance(one, Mapping):
                    shapes[tuple(one)] += 1
                    if len(shapes) > SHAPES:
                        add_shapes()
                    if test is not None and not test(one):
                        continue
                left += 1
                yield place, one
            count.where += not left
    finally:
        add_shapes()


def _check_names(source: Source, columns: Counter[str]) -> None:
    """Refuse columns that the recipe names and no row has.

    Raises:
        UserError: there is such a column.
    """
    asked = {f"columns.{ours}": theirs for ours, theirs in source.columns.items()}
    asked |= {f"where ({name})": name for name in where(source.where).columns} if source.where else {}
    for setting, name in asked.items():
        if columns and name not in columns and name.partition(".")[0] not in columns:
            hint = nearest(name, columns)
            raise UserError(
                f"{source.path}: {setting}: no row has a column {name!r}.{hint} Columns found: {', '.join(columns)}"
            )
    check_ignored(f"{source.path}: ignore", source.ignore, columns)


def check_ignored(setting: str, patterns: Collection[str], columns: Collection[str]) -> None:
    """Refuse patterns of columns to leave out that no column matches, where there are columns.

    Raises:
        UserError: it names the pattern and the column nearest to it.
    """
    for pattern in patterns:
        if columns and not any(named_by(name, (pattern,)) for name in columns):
            hint = nearest(pattern, columns)
            raise UserError(f"{setting}: no row has a column {pattern!r}.{hint} Columns found: {', '.join(columns)}")


def _nothing(loaded: Loaded, kind: str, source: Source, cure: str, why: str = "") -> str:
    count = loaded.counts[0]
    if count.dropped:
        cure = f"; {count.dropped:,} are dropped by data.clean ({'; '.join(count.cleaning.lines())}){cure}"
    if count.where:
        cure = f"; {count.where:,} are left out by where: {source.where}{cure}"
    if Path(source.path).suffix.lower() in (".tsv", ".tab") and source.header is True and CELLS not in loaded.columns:
        cure += (
            ". If its first line is no header, and each line holds responses, best first, write "
            f"{{path: {source.path}, header: false}}"
        )
    rejected = ((r.source, r.reason) for r in loaded.rejected)
    return nothing_usable(source.path, kind, rejected, loaded.columns, cure, rows=count.read, why=why)
