"""xlsx: every sheet a table with a header line; values as they are shown, not formulas."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from typing import Any

from data.common.errors import UserError
from data.readers.cells import cell
from data.readers.named_splits import chosen
from data.readers.packed import MAX_UNPACKED, SMALL_UNPACKED, Content, in_memory
from data.readers.rows import CELLS, BadLine, Raw, ReadOptions
from data.readers.table import header_of


def read_xlsx(content: Content, options: ReadOptions) -> Iterator[Raw]:
    """Yield (place, row) of all sheets, or of the one that ``split`` names.

    Raises:
        UserError: it is no workbook, unpacks to far more than its size, or has no such sheet.
    """
    import openpyxl

    stream = in_memory(content)
    try:
        with zipfile.ZipFile(stream) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > max(SMALL_UNPACKED, len(stream.getbuffer()) * MAX_UNPACKED):
            raise UserError(f"{content.name} unpacks to {size:,} bytes, more than {MAX_UNPACKED} times its size")
        book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, TypeError) as error:
        raise UserError(f"{content.name} is not an xlsx workbook ({error}); save it again as .xlsx or .csv") from error
    names = book.sheetnames
    if options.split is not None and options.split not in names:
        raise UserError(f"{content.name} has no sheet {options.split!r}; its sheets are {', '.join(names)}")
    for sheet in [options.split] if options.split else chosen(names, None, content.name, "sheet"):
        rows = book[sheet].iter_rows(values_only=True)
        yield from _sheet(rows, f"{content.name}, sheet {sheet}" if len(names) > 1 else content.name, options)


def _sheet(rows: Any, name: str, options: ReadOptions) -> Iterator[Raw]:
    names = list(options.header) if isinstance(options.header, tuple) else None
    for number, values in enumerate(rows, start=1):
        cells = [_plain(v) for v in values]
        if not any(c not in (None, "") for c in cells):
            continue
        place = f"{name}, row {number}"
        if names is None and options.header is True:
            while cells and cells[-1] in (None, ""):
                cells.pop()
            names = header_of(["" if c is None else str(c) for c in cells], place, name, options.names)
            continue
        if names is None:
            yield place, {CELLS: ["" if c is None else str(c) for c in cells]}
            continue
        if extra := [c for c in cells[len(names) :] if c not in (None, "")]:
            yield place, BadLine(f"it has {len(names) + len(extra)} cells, the header {len(names)}")
            continue
        yield place, {k: cell(k, c) if isinstance(c, str) else c for k, c in zip(names, cells, strict=False)}


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value
