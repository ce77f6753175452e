"""A cleaned copy of a data file, with a list of what was changed and what was dropped.

Rows keep their own columns. The copy and its list appear together and whole, or not at all.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from data.cleaning.rows import RowCleaner, Tally
from data.cleaning.settings import CleanConfig
from data.common.errors import UserError
from data.formats import Reject, parse
from data.local_files import why_absent
from data.readers.columnar import ParquetCopy, parquet_schema
from data.readers.files import extension, read_file
from data.readers.rows import CELLS, BadLine, ReadOptions, Remark
from data.source_settings import Source

WRITTEN = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
BATCH = 1000  # rows of a parquet file that are written at a time
LIST = ".changes.jsonl"
DEFAULT = CleanConfig(unicode="nfc", control=True, duplicates="exact")
"""What is done where nobody says: what changes no text to the eye."""


def usual_copy(file: Path) -> Path:
    """Where a copy goes if nobody says: beside the file, as parquet of parquet, csv of csv, else jsonl."""
    suffix = extension(file)
    name = file.name[: file.name.lower().rindex(suffix)] if suffix else file.name
    return file.with_name(f"{name}.fixed{suffix if suffix in ('.parquet', '.csv') else '.jsonl'}")


@dataclass(slots=True)
class Fixed:
    """What became of the rows of a file. ``bad`` rows could not be read as data and are not in the copy."""

    out: Path
    changes: Path
    read: int = 0
    written: int = 0
    bad: int = 0
    tally: Tally = field(default_factory=Tally)
    remarks: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Rows that are not in the copy."""
        return self.read - self.written


def fix_file(
    file: Path, out: Path, config: CleanConfig = DEFAULT, *, reading: Source | None = None, overwrite: bool = False
) -> Fixed:
    """Write a cleaned copy of a file, and beside it ``OUT.changes.jsonl``: one line for each row changed or dropped.

    Args:
        file: any file of one kind of rows that trivet reads.
        out: the copy; its suffix says how it is written.
        config: what is done.
        reading: how the file is read, its path aside.
        overwrite: whether a copy or list that is there may be replaced.

    Raises:
        UserError: the file cannot be read, or the copy must not or cannot be written; nothing is left half-written.
    """
    if not file.is_file():
        raise UserError(f"{file} {why_absent(file)}")
    changes = out.with_name(out.name + LIST)
    _check_place(file, out, changes, overwrite)
    fixed = Fixed(out=out, changes=changes)
    cleaner = RowCleaner(config)
    try:
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            copy, listed = Path(folder, "copy"), Path(folder, "changes")
            with listed.open("w", encoding="utf-8") as stream:
                rows = _fixed_rows(file, cleaner, fixed, stream, reading)
                if out.suffix.lower() == ".parquet":
                    _write_parquet(rows, copy, file)
                else:
                    _write(rows, copy, out.suffix.lower())
            if not fixed.read:
                raise UserError(f"{file}: holds no row, only a header or blank lines")
            if not fixed.written:
                raise UserError(f"{file}: none of its {fixed.read:,} rows is left; {'; '.join(_why(fixed))}")
            os.replace(listed, changes)
            os.replace(copy, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    return fixed


def _check_place(file: Path, out: Path, changes: Path, overwrite: bool) -> None:
    if out.suffix.lower() not in WRITTEN:
        raise UserError(f"--out {out}: a copy is written as {', '.join(WRITTEN)}; give it one of these suffixes")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    for path in (out, changes):
        if path.exists() and (path.samefile(file) or path.is_dir()):
            raise UserError(f"--out {out}: {path} is {'a folder' if path.is_dir() else 'the file itself'}")
        if os.path.lexists(path) and not overwrite:
            raise UserError(f"--out {out}: {path} is there already; choose another name, or add --overwrite")


def _fixed_rows(
    file: Path, cleaner: RowCleaner, fixed: Fixed, listed: IO[str], reading: Source | None
) -> Iterator[Any]:
    """Clean raw rows that stay; all else is listed."""

    def note(place: str, **what: Any) -> None:
        listed.write(json.dumps({"place": place} | what, ensure_ascii=False) + "\n")

    options = ReadOptions() if reading is None else reading.options()
    for place, raw in read_file(file, str(file), options):
        if isinstance(raw, Remark):
            fixed.remarks.append(f"{place}: {raw.text}")
            continue
        fixed.read += 1
        if isinstance(raw, BadLine):
            fixed.bad += 1
            note(place, dropped=f"it cannot be read: {raw.reason}")
            continue
        clean, done = cleaner.text.everywhere(raw)
        why, of = _why_dropped(raw, clean, place, cleaner, reading)
        fixed.bad += why.startswith(NO_DATA)
        fixed.tally.note(place, set(done), "" if why.startswith(NO_DATA) else why)
        if why:
            note(place, dropped=why, **({"first": of} if of else {}))
            continue
        if done:
            note(place, changed=dict(Counter(done)), before=_unlike(raw, clean), after=_unlike(clean, raw))
        fixed.written += 1
        yield clean


NO_DATA = "it is no row of data: "


def _why_dropped(raw: Any, clean: Any, place: str, cleaner: RowCleaner, reading: Source | None) -> tuple[str, str]:
    """Why a raw row is left out, and the place of the one that it repeats; a row that holds several stays with one."""
    try:
        before, after = _parsed(raw, place, reading), _parsed(clean, place, reading)
    except Reject as error:
        return f"{NO_DATA}{error}", ""
    pairs = zip(before, after, strict=False)
    if reasons := [cleaner.why_dropped(new, old) for old, new in pairs]:
        if all(reasons):
            return reasons[0], ""
        same = [cleaner.same_before(new, place) for new in after]
        if all(why for why, _ in same):
            return same[0]
    return "", ""


def _parsed(raw: Any, place: str, reading: Source | None) -> list[Any]:
    """The rows in a raw row; columns that no format reads stay in the copy, so none is lost."""
    if reading is None:
        return parse(raw, place, known=("*",))[1]
    how = {"columns": reading.columns, "ignore": reading.ignore, "format": reading.format}
    return parse(raw, place, known=("*",), **how)[1]  # type: ignore[arg-type]


def _unlike(one: Any, other: Any) -> Any:
    """The parts of a row that differ from the other's."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return {key: _unlike(value, other.get(key)) for key, value in one.items() if value != other.get(key)}
    return one


def _why(fixed: Fixed) -> list[str]:
    bad = [f"{fixed.bad:,} are no row of data; `trivet data check` names each"] if fixed.bad else []
    return bad + [line for line in fixed.tally.lines() if " dropped: " in line]


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(rows: Iterator[Any], path: Path, suffix: str) -> None:
    with path.open("w", encoding="utf-8", newline="" if suffix in (".csv", ".tsv") else "\n") as stream:
        if suffix == ".jsonl":
            stream.writelines(json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows)
        elif suffix == ".json":
            for i, row in enumerate(rows):
                stream.write(("[\n" if not i else ",\n") + json.dumps(row, ensure_ascii=False, default=_plain))
            stream.write("\n]\n")
        elif suffix == ".txt":
            _write_text(rows, stream)
        else:
            _write_table(rows, stream, "\t" if suffix == ".tsv" else ",")


def _write_parquet(rows: Iterator[Any], path: Path, file: Path) -> None:
    """A parquet file with the columns and types of the one read, or, of another file, those of the first rows."""
    schema = parquet_schema(file) if file.suffix.lower() == ".parquet" else None
    with ParquetCopy(path, schema) as copy:
        for some in iter(lambda: list(islice(rows, BATCH)), []):
            given = [{"text": row} if isinstance(row, str) else row for row in some]
            if not all(isinstance(row, Mapping) and CELLS not in row for row in given):
                raise UserError("--out: a row without column names fits no parquet file; write .jsonl")
            copy.write(given)


def _write_text(rows: Iterator[Any], stream: IO[str]) -> None:
    for row in rows:
        text = row if isinstance(row, str) else row.get("text") if isinstance(row, Mapping) and len(row) == 1 else None
        if not isinstance(text, str):
            raise UserError("--out: a .txt holds texts alone, and a row has other columns; write .jsonl")
        stream.write(text + ("\n\n" if isinstance(row, Mapping) else "\n"))


def _write_table(rows: Iterator[Any], stream: IO[str], delimiter: str) -> None:
    """A table with the columns of the first row; cells that are no text are JSON."""
    writer, names = csv.writer(stream, delimiter=delimiter, lineterminator="\n"), None
    for row in rows:
        given = {"text": row} if isinstance(row, str) else row
        if not isinstance(given, Mapping):
            raise UserError("--out: a row that is a list fits no table; write .jsonl")
        if CELLS in given:
            writer.writerow(given[CELLS])
            continue
        if names is None:
            names = list(given)
            writer.writerow(names)
        if extra := set(given) - set(names):
            names_of = ", ".join(sorted(extra))
            raise UserError(f"--out: a row has columns that the first has not ({names_of}); write .jsonl")
        writer.writerow([_cell(given.get(name)) for name in names])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.date | datetime.time):
        return str(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    """A value of a typed table that JSON has no type for (a time, a decimal number) as text.

    Raises:
        UserError: bytes, which no text stands for.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        raise UserError("--out: a row holds bytes, which no text can; write .parquet")
    return str(value)
