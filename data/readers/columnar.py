"""parquet, arrow and feather: rows in batches, and a row whose text is not UTF-8 named alone; parquet written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
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

    number = 0
    try:
        batches = _arrow_batches(content)
        first = next(batches, None)
        for batch in () if first is None else chain([first], batches):
            batch.validate()
            if not number:
                _check(batch.schema.names, 1, content.name)
            for begin in range(0, batch.num_rows, BATCH):
                part = batch.slice(begin, BATCH)
                yield from _batch(part, content.name, number)
                number += part.num_rows
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if number:  # what was read stays; how many rows the damage costs nobody can say
            yield f"{content.name}, row {number + 1}", BadLine(f"the file is damaged from here on: {_first(error)}")
            return
        raise UserError(f"{content.name} is not an arrow file: {_first(error)}") from error
    _check([], number, content.name)


def _arrow_batches(content: Content) -> Iterator[Any]:
    """Record batches, one at a time out of a file that is mapped into memory; of a packed one it is unpacked whole."""
    import pyarrow as pa
    from pyarrow import feather

    packed = content.member or content.path.suffix.lower() not in (".arrow", ".feather")
    data = pa.BufferReader(content.bytes()) if packed else pa.memory_map(str(content.path))
    try:
        file = pa.ipc.open_file(data)
    except pa.ArrowInvalid:
        data.seek(0)
        try:
            stream = pa.ipc.open_stream(data)
        except pa.ArrowInvalid:
            data.seek(0)
            yield from feather.read_table(data).to_batches()
            return
        yield from stream
        return
    for number in range(file.num_record_batches):
        yield file.get_batch(number)


def parquet_schema(path: Path) -> Any:
    """The columns of a parquet file and their types."""
    import pyarrow.parquet as pq

    return pq.read_schema(path)


class ParquetCopy(AbstractContextManager["ParquetCopy"]):
    """A parquet file that is written in parts; without a schema the first part's is taken."""

    def __init__(self, path: Path, schema: Any = None) -> None:
        self._path, self._schema = path, schema
        self._writer: Any = None

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows.

        Raises:
            UserError: a row has a column that the schema has not, or a value of another type.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pa.Table.from_pylist([dict(row) for row in rows], schema=self._schema)
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise UserError(f"--out: rows do not fit one table ({_first(error)}); write .jsonl") from error
        named = set(table.column_names)
        if extra := sorted({str(name) for row in rows for name in row} - named):
            raise UserError(f"--out: a row has columns that the first has not ({', '.join(extra)}); write .jsonl")
        self._schema = table.schema
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


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
