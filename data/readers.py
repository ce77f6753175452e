"""Files to raw rows: jsonl, json, csv, tsv, parquet and text, each also gzipped.

Every row comes with its place (``file:line``); a line that cannot be read is a ``BadLine`` with the reason, and a file
that cannot be read at all is an error. Knows nothing of formats and records.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.common.errors import UserError
from data.formats import CELLS, names_a_format

TextUnit = Literal["auto", "paragraph", "line", "file"]

SMALL_UNPACKED, MAX_UNPACKED = 64 * 2**20, 200
"""A gzip file may always hold so many bytes, and otherwise so many times its own size."""
MAX_CELLS = 2_000_000_000

LISTS = frozenset({"messages", "conversations", "responses", "answers", "instances", "history", "scores", "ranks"})
"""Columns that hold lists, which a table can only hold as JSON."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that could not be read."""

    reason: str


Raw = tuple[str, dict[str, Any] | BadLine]


def read_file(path: Path, name: str, text_unit: TextUnit = "auto") -> Iterator[Raw]:
    """Yield (place, row) of a file; ``name`` is what places call it.

    Raises:
        UserError: unknown extension, empty file, or content that is not what the extension says.
    """
    suffix = extension(path)
    if suffix not in READERS and suffix not in (".txt", ".text", ".md", ".parquet"):
        raise UserError(f"{name}: files of type '{suffix or 'none'}' cannot be read; known are {', '.join(EXTENSIONS)}")
    if path.stat().st_size == 0:
        raise UserError(f"{name} is empty")
    if suffix == ".parquet":
        return _parquet(path, name)
    content = _bytes(path, name)
    if not content.strip():
        raise UserError(f"{name} is empty")
    if suffix in READERS:
        return READERS[suffix](content, name)
    return _text(content, name, text_unit)


def extension(path: Path) -> str:
    """The last extension that is not ``.gz``, in lower case."""
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _bytes(path: Path, name: str) -> bytes:
    """Content without a byte-order mark, as UTF-8."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = _unpacked(path, name)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{name} is not a whole gzip file ({error}); fetch it again or drop the .gz") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            content = content.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise UserError(f"{name} starts like UTF-16 but is not; save it as UTF-8") from error
    return content.removeprefix(b"\xef\xbb\xbf")


def _unpacked(path: Path, name: str) -> bytes:
    """A gzip file's content; a small file that unpacks to a huge one is refused before memory is gone."""
    limit = max(SMALL_UNPACKED, path.stat().st_size * MAX_UNPACKED)
    with gzip.open(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(
            f"{name} unpacks to more than {limit:,} bytes, {MAX_UNPACKED} times its size: unpack it yourself if you "
            "trust it, and name the file that comes out"
        )
    return content


def _lines(content: bytes, name: str) -> Iterator[tuple[str, str | BadLine]]:
    """Yield (place, line) of every line that is not blank; only line feeds end a line."""
    for number, raw in enumerate(content.split(b"\n"), start=1):
        if not raw.strip():
            continue
        place = f"{name}:{number}"
        try:
            line = raw.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            yield place, BadLine(f"not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start})")
            continue
        yield place, BadLine("it holds a NUL character") if "\x00" in line else line


def _object(line: str) -> dict[str, Any] | BadLine:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            what = error.msg
        else:
            what = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return BadLine(f"not JSON: {what}{column}")
    return row if isinstance(row, dict) else BadLine(f"JSON, but {type(row).__name__} instead of an object")


def _jsonl(content: bytes, name: str) -> Iterator[Raw]:
    for place, line in _lines(content, name):
        yield place, line if isinstance(line, BadLine) else _object(line)


def _json(content: bytes, name: str) -> Iterator[Raw]:
    """A list of objects, an object that holds one such list (``{"data": [...]}``), one object, or JSON lines."""
    text = _whole(content, name)
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        rows = list(_jsonl(content, name))
        if any(not isinstance(row, BadLine) for _, row in rows) and len(rows) > 1:
            yield from rows
            return
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{name}{line} is not JSON: {getattr(error, 'msg', error)}") from error
    if isinstance(loaded, dict):
        lists = [v for v in loaded.values() if isinstance(v, list) and v and all(isinstance(r, dict) for r in v)]
        loaded = lists[0] if len(lists) == 1 and len(loaded) <= 3 and "data" in loaded else [loaded]
    if not isinstance(loaded, list):
        raise UserError(f"{name} holds {type(loaded).__name__}; expected a list of objects")
    lines = _item_lines(text, len(loaded)) if text.lstrip().startswith("[") else []
    for number, row in enumerate(loaded, start=1):
        place = f"{name}:{lines[number - 1]}" if lines else f"{name}, item {number}"
        yield place, row if isinstance(row, dict) else BadLine("not an object")


def _item_lines(text: str, count: int) -> list[int]:
    """The line on which each item of a valid JSON list begins; nothing if they share one line."""
    decoder, lines, line, at = json.JSONDecoder(), [], 1, 0
    end = text.index("[") + 1
    for _ in range(count):
        start = end
        while text[start] in " \t\r\n,":
            start += 1
        line, at = line + text.count("\n", at, start), start
        lines.append(line)
        end = decoder.raw_decode(text, start)[1]
    return lines if len(set(lines)) == len(lines) else []


def _whole(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}:{line} is not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from error


def _csv(content: bytes, name: str) -> Iterator[Raw]:
    """With a header; cells that hold JSON lists or objects are read as such."""
    csv.field_size_limit(sys.maxsize)
    lines = (line + "\n" for line in _whole(content, name).split("\n"))
    reader = csv.reader(lines)
    try:
        header = [cell.strip() for cell in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{name}:1: the header line is not CSV ({error})") from error
    if not any(header):
        raise UserError(f"{name} has no header line with column names")
    if twice := [h for i, h in enumerate(header) if h and h in header[:i]]:
        raise UserError(f"{name}: the header names column {twice[0]!r} twice; rename one")
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield f"{name}:{line}", BadLine(f"not CSV: {error}")
            continue
        if cells is None:
            return
        if any(cells):
            yield f"{name}:{line}", _record(header, [c.removesuffix("\r") for c in cells])


def _record(header: list[str], cells: list[str]) -> dict[str, Any] | BadLine:
    if len(cells) != len(header):
        return BadLine(f"it has {len(cells)} cells, the header {len(header)}")
    return {key: _cell(key, cell) for key, cell in zip(header, cells, strict=True)}


def _cell(key: str, cell: str) -> Any:
    """Text, save for lists of turns and the columns that are lists by nature."""
    if cell[:1] not in ("[", "{"):
        return cell
    try:
        loaded = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    turns = isinstance(loaded, list) and loaded and all(isinstance(x, dict) for x in loaded)
    return loaded if turns or key in LISTS else cell


def _is_header(cells: list[str]) -> bool:
    return len(set(cells)) == len(cells) and names_a_format(cells)


def _tsv(content: bytes, name: str) -> Iterator[Raw]:
    """Rankings, best first, or with a header a table; no quoting: a quotation mark is one."""
    header: list[str] | None = None
    for number, (place, line) in enumerate(_lines(content, name)):
        if isinstance(line, BadLine):
            yield place, line
            continue
        cells = line.split("\t")
        if number == 0 and _is_header([cell.strip() for cell in cells]):
            header = [cell.strip() for cell in cells]
        else:
            yield place, {CELLS: cells} if header is None else _record(header, cells)


def _parquet(path: Path, name: str) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        meta = pq.read_metadata(path)
        size = path.stat().st_size
        if meta.num_rows * max(1, meta.num_columns) > max(MAX_CELLS // 1000, size * 10_000):
            raise UserError(f"{name} says that it holds {meta.num_rows:,} rows in {size:,} bytes; it is not read")
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{name} is not a parquet file: {(str(error).splitlines() or [''])[0]}") from error
    if twice := [c for i, c in enumerate(table.column_names) if c in table.column_names[:i]]:
        raise UserError(f"{name}: names column {twice[0]!r} twice; rename one")
    if not table.num_rows:
        raise UserError(f"{name} is empty")
    number = 0
    for batch in table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            number += 1
            yield f"{name}, row {number}", row


def _text(content: bytes, name: str, unit: TextUnit) -> Iterator[Raw]:
    """Paragraphs between blank lines where there are any, else lines (``auto``)."""
    if unit == "file":
        yield f"{name}:1", {"text": _whole(content, name).replace("\r\n", "\n").strip()}
        return
    if unit == "auto":
        blank = any(not line.strip() for line in content.strip().split(b"\n"))
        unit = "paragraph" if blank else "line"
    if unit == "line":
        for place, line in _lines(content, name):
            yield place, line if isinstance(line, BadLine) else {"text": line}
        return
    yield from _paragraphs(_lines(content, name))


def _paragraphs(lines: Iterable[tuple[str, str | BadLine]]) -> Iterator[Raw]:
    start, last, collected = "", -1, []  # type: ignore[var-annotated]
    for place, line in lines:
        number = int(place.rpartition(":")[2])
        if collected and (number != last + 1 or isinstance(line, BadLine)):
            yield start, {"text": "\n".join(collected)}
            collected = []
        if isinstance(line, BadLine):
            yield place, line
            continue
        start = start if collected else place
        collected.append(line)
        last = number
    if collected:
        yield start, {"text": "\n".join(collected)}


READERS: dict[str, Callable[[bytes, str], Iterator[Raw]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}
EXTENSIONS = (*READERS, ".parquet", ".txt", "and .gz of each")
