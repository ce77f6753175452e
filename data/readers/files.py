"""One file to raw rows, by its extension and by what is in it.

Every row comes with its place (``file:line``); a line that cannot be read is a ``BadLine`` with the reason, what was
found out about the file is a ``Remark``, and a file that cannot be read at all is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data.common.errors import UserError
from data.common.stand_ins import refuse_stand_in
from data.readers.columnar import read_arrow, read_parquet
from data.readers.decoding import encoding_of, lines_of
from data.readers.json_rows import holds_json, read_json
from data.readers.named_splits import chosen, is_of
from data.readers.packed import PACKED, Content, members
from data.readers.plain_text import read_text
from data.readers.rows import Raw, ReadOptions, Remark
from data.readers.spreadsheet import read_xlsx
from data.readers.table import read_table

JSON = (".jsonl", ".ndjson", ".json")
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
TEXT = (".txt", ".text", ".md")
BINARY = (".parquet", ".arrow", ".feather", ".xlsx")
KNOWN = (*JSON, *TABLES, *BINARY, *TEXT)
EXTENSIONS = (*JSON, *TABLES, *BINARY, ".txt", ".md", "each also packed as .gz, .bz2, .xz, .zst or in a .zip")
NOT_DATA = ("__MACOSX/", ".")


def extension(path: Path) -> str:
    """The last extension that says nothing of packing, in lower case."""
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_text(path: Path) -> bool:
    """Whether a file is plain text, without columns."""
    return extension(path) in TEXT


def read_file(path: Path, name: str, options: ReadOptions = ReadOptions()) -> Iterator[Raw]:  # noqa: B008
    """Yield (place, row) of a file; ``name`` is what places call it.

    Raises:
        UserError: unknown extension, empty file, or content that is not what the extension says.
    """
    suffix = extension(path)
    if suffix not in KNOWN and suffix != ".zip":
        raise UserError(f"{name}: files of type '{suffix or 'none'}' cannot be read; known are {', '.join(EXTENSIONS)}")
    if path.stat().st_size == 0:
        raise UserError(f"{name} is empty")
    if suffix not in TEXT:  # such a text may be data
        refuse_stand_in(path, name)
    return _zip(path, name, options) if suffix == ".zip" else _content(Content(path, name), suffix, options)


def _zip(path: Path, name: str, options: ReadOptions) -> Iterator[Raw]:
    inside = [m for m in members(path, name) if not m.filename.startswith(NOT_DATA)]
    data = [m for m in inside if extension(Path(m.filename)) in KNOWN and Path(m.filename).suffix not in PACKED]
    if len(data) > 1:
        data = [m for m in data if not Path(m.filename).stem.lower().startswith(("readme", "license"))]
    if not data:
        held = ", ".join(m.filename for m in inside[:6]) or "nothing"
        raise UserError(f"{name} holds no data file that can be read (it holds {held})")
    if left := [m.filename for m in inside if m not in data]:
        yield name, Remark(f"not read: {', '.join(left[:6])}{' and more' * (len(left) > 6)}")
    names = [m.filename for m in data]
    inner = all(extension(Path(one)) in (*JSON, ".xlsx") for one in names)  # lists or sheets of that name
    if options.split is None or not inner or any(is_of(one, options.split) for one in names):
        here = set(chosen(names, options.split, name, "member"))
        data, options = [m for m in data if m.filename in here], replace(options, split=None)
    if len(data) > 1:
        yield name, Remark(f"holds {len(data)} files: {', '.join(m.filename for m in data[:6])}")
    for member in data:
        content = Content(path, f"{name}/{member.filename}", member.filename)
        yield from _content(content, extension(Path(member.filename)), options)


def _content(content: Content, suffix: str, options: ReadOptions) -> Iterator[Raw]:
    if suffix == ".parquet":
        return read_parquet(content)
    if suffix in (".arrow", ".feather"):
        return read_arrow(content)
    if suffix == ".xlsx":
        return read_xlsx(content, options)
    encoding = encoding_of(content, options.encoding)
    if encoding.blank:
        raise UserError(f"{content.name} is empty")
    json = suffix in JSON or (options.text_unit != "file" and holds_json(lines_of(content, encoding)))
    rows = (
        read_json(content, encoding, options)
        if json
        else read_table(content, encoding, options, usual=TABLES[suffix])
        if suffix in TABLES
        else read_text(content, encoding, options.text_unit)
    )
    remarks = "; ".join(
        filter(None, (encoding.remarks, "read as JSON, which it holds" * (json and suffix not in JSON)))
    )
    return _with(content.name, remarks, rows)


def _with(name: str, remarks: str, rows: Iterator[Raw]) -> Iterator[Raw]:
    if remarks:
        yield name, Remark(remarks)
    yield from rows
