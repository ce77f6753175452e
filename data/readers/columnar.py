"""parquet, arrow and feather: rows in batches, and a row whose text is not UTF-8 named alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.common.errors import UserError
from data.readers.packed import Content, in_memory
from data.readers.rows import BadLine, Raw

MAX_CELLS = 2_000_000_000
BATCH = 1000


def read_parquet(content: Content) -> Iterator[Raw]:
    """Yield (place, row) of a parquet file, group by group: one that cannot be read costs its own rows alone.

    Raises:
        UserError: it is no parquet file, says that it holds impossibly many rows, or names a column twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name, packed = content.name, content.member or content.path.suffix.lower() != ".parquet"
    size = content.path.stat().st_size
    try:
        source: Any = in_memory(content) if packed else content.path
        file = pq.ParquetFile(source, page_checksum_verification=True)
        meta = file.metadata
        if meta.num_rows * max(1, meta.num_columns) > max(MAX_CELLS // 1000, size * 10_000):
            raise UserError(f"{name} says that it holds {meta.num_rows:,} rows in {size:,} bytes; it is not read")
        _check(file.schema_arrow.names, meta.num_rows, name)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{name} is not a parquet file: {_first(error)}") from error
    number = 0
    for group in range(meta.num_row_groups):
        end = number + meta.row_group(group).num_rows
        try:
            for batch in file.iter_batches(BATCH, row_groups=[group]):
                yield from _batch(batch, name, number)
                number += batch.num_rows
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            if meta.num_row_groups == 1 and number == 0:
                raise UserError(f"{name} is not a parquet file: {_first(error)}") from error
            for lost in range(number + 1, end + 1):
                yield f"{name}, row {lost}", BadLine(f"its part of the file is damaged: {_first(error)}")
        number = end


def read_arrow(content: Content) -> Iterator[Raw]:
    """Yield (place, row) of an arrow file or stream, or of a feather file.

    Raises:
        UserError: it is none of these, holds nothing, or names a column twice.
    """
    import pyarrow as pa
    from pyarrow import feather

    data = pa.py_buffer(content.bytes())
    try:
        try:
            table = pa.ipc.open_file(data).read_all()
        except pa.ArrowInvalid:
            try:
                table = pa.ipc.open_stream(data).read_all()
            except pa.ArrowInvalid:
                table = feather.read_table(pa.BufferReader(data))
        table.validate()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{content.name} is not an arrow file: {_first(error)}") from error
    _check(table.column_names, table.num_rows, content.name)
    number = 0
    for batch in table.to_batches(max_chunksize=BATCH):
        yield from _batch(batch, content.name, number)
        number += batch.num_rows


def _check(columns: list[str], rows: int, name: str) -> None:
    if twice := [c for i, c in enumerate(columns) if c in columns[:i]]:
        raise UserError(f"{name}: names column {twice[0]!r} twice; rename one")
    if not rows:
        raise UserError(f"{name} is empty")


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _batch(batch: Any, name: str, before: int) -> Iterator[Raw]:
    try:
        rows = batch.to_pylist()
    except (UnicodeDecodeError, ValueError, OverflowError):
        rows = [_one(batch, i) for i in range(batch.num_rows)]
    for number, row in enumerate(rows, start=before + 1):
        yield f"{name}, row {number}", row


def _one(batch: Any, index: int) -> dict[str, Any] | BadLine:
    row = {}
    for column in batch.schema.names:
        try:
            row[column] = batch.column(column)[index].as_py()
        except UnicodeDecodeError as error:
            return BadLine(f"{column} is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start})")
        except (ValueError, OverflowError) as error:
            return BadLine(f"{column} cannot be read: {_first(error)}")
    return row
