"""A list of records that lies on disk from some thousands on: an Arrow file, read by batches as they are asked for."""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.common.errors import UserError
from data.storage.codec import Codec, Encoded, content_bytes, decode, encode
from data.storage.digests import compact
from data.storage.folders import new_file, scratch_folder
from data.storage.views import Lazy, View

T = TypeVar("T")
IN_MEMORY = 4096
"""So many records stay in memory, and no file is written."""

BATCH, KEPT = 256, 4
"""Records of a batch, which is what one read takes, and batches that stay unpacked."""


class Store(Lazy[T]):
    """Records of one kind: appended until the first is read, then unchanged.

    A record with a column that cannot be written stays in memory. ``sources`` are the names of what the records were
    read from, where somebody says so, each with the place behind its last record.

    Args:
        kind: the class of the records.
        codec: how they become bytes; None for those of ``data.records``.
    """

    def __init__(self, kind: type[T], codec: Codec | None = None) -> None:
        self.kind = kind
        self._codec = Codec(encode, partial(decode, kind)) if codec is None else codec
        self.file: Path | None = None
        self.unwritten: dict[int, T] = {}
        self.sources: list[tuple[int, str]] = []
        self._waiting: list[T] = []
        self._encoded: list[Encoded] = []
        self._count = 0
        self._writer: Any = None
        self._reader: Any = None
        self._contents: tuple[int, list[bytes]] = (-1, [])
        self._batches: OrderedDict[int, list[list[bytes]]] = OrderedDict()

    @classmethod
    def opened(cls, kind: type[T], file: Path, count: int, codec: Codec | None = None) -> Store[T]:
        """The records of a file that another store has written; it stays when the store goes."""
        import pyarrow as pa

        store = cls(kind, codec)
        store.file, store._count = file, count
        store._reader = pa.ipc.open_file(pa.OSFile(str(file)))
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the same file, which is sealed, and leaves it where it is."""
        if self.file is None:
            return _filled, (self.kind, self._codec, self._waiting)
        return _reopened, (self.kind, self._codec, self.file, self._count, self.unwritten)

    def append(self, record: T) -> None:
        """Add a record behind the others.

        Raises:
            UserError: the disk is full.
        """
        if self._reader is not None:
            raise RuntimeError("a store that was read takes no more records")
        self._count += 1
        if self._writer is None:
            self._waiting.append(record)
            if len(self._waiting) > IN_MEMORY:
                self._spill()
            return
        self._add(self._count - 1, record)

    def extend(self, records: Iterable[T]) -> None:
        """Add records behind the others."""
        for record in records:
            self.append(record)

    def extend_encoded(self, encoded: Sequence[Encoded]) -> None:
        """Add records that the codec has made bytes of already.

        Raises:
            UserError: the disk is full.
        """
        if self._reader is not None:
            raise RuntimeError("a store that was read takes no more records")
        if self._writer is None:
            self._spill()
        self._count += len(encoded)
        self._encoded += encoded
        self._write_whole()

    def _spill(self) -> None:
        import pyarrow as pa

        self.file = new_file("records.arrow")
        schema = pa.schema([(name, pa.binary()) for name in Encoded._fields])
        with written():
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writer = pa.ipc.new_file(str(self.file), schema, options=options)
        weakref.finalize(self, _remove, self.file, os.getpid())
        waiting, self._waiting = self._waiting, []
        for i, record in enumerate(waiting):
            self._add(i, record)

    def _add(self, place: int, record: T) -> None:
        try:
            self._encoded.append(self._codec.encode(record))
        except (TypeError, ValueError):
            self.unwritten[place] = record
            self._encoded.append(Encoded(b"", b"", b""))
        self._write_whole()

    def _write_whole(self) -> None:
        """Write the batches that are full."""
        while len(self._encoded) >= BATCH:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        if self._encoded and self._writer is not None:
            batch, self._encoded = self._encoded[:BATCH], self._encoded[BATCH:]
            columns = [pa.array(column, pa.binary()) for column in zip(*batch, strict=True)]
            with written():
                self._writer.write_batch(pa.record_batch(columns, names=list(Encoded._fields)))

    def _sealed(self) -> Any:
        import pyarrow as pa

        if self._reader is None:
            self._write()
            with written():
                self._writer.close()
            self._reader = pa.ipc.open_file(pa.OSFile(str(self.file)))
        return self._reader

    def seal(self) -> None:
        """Write what is still waiting: the file is whole then."""
        if self._writer is not None:
            self._sealed()

    # -- reading -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._count

    def at(self, place: int) -> T:
        if self.file is None:
            return self._waiting[place]
        if place in self.unwritten:
            return self.unwritten[place]
        return self._codec.decode(self._bytes(place))  # type: ignore[no-any-return]

    def origin(self, place: int) -> str:
        at = bisect_right(self.sources, place, key=itemgetter(0))
        return self.sources[at][1] if at < len(self.sources) else ""

    def content(self, place: int) -> bytes:
        """What fingerprints hash of a record."""
        if self.file is None or place in self.unwritten:
            return content_bytes(self.at(place))
        number, row = divmod(place, BATCH)
        if self._contents[0] != number:
            self._contents = number, _values(self._sealed().get_batch(number).column(0))
        return self._contents[1][row]

    def _bytes(self, place: int) -> Encoded:
        number, row = divmod(place, BATCH)
        batch = self._batches.get(number)
        if batch is None:
            read = self._sealed().get_batch(number)
            batch = self._batches[number] = [_values(column) for column in read.columns]
            if len(self._batches) > KEPT:
                self._batches.popitem(last=False)
        return Encoded(*(column[row] for column in batch))

    def __iter__(self) -> Iterator[T]:
        if self.file is None:
            yield from self._waiting
        else:
            yield from (self[i] for i in range(self._count))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} {self.kind.__name__})"


def _filled(kind: type[T], codec: Codec, records: list[T]) -> Store[T]:
    store = Store(kind, codec)
    store.extend(records)
    return store


def _reopened(kind: type[T], codec: Codec, file: Path, count: int, unwritten: dict[int, T]) -> Store[T]:
    store = _opened_once(file, count)
    store.kind, store._codec, store.unwritten = kind, codec, unwritten
    return store


@lru_cache(maxsize=2)
def _opened_once(file: Path, count: int) -> Store[Any]:
    return Store.opened(object, file, count)


def as_stored(records: Sequence[T]) -> View[T] | None:
    """The records as some of those of one store, without what a split changes of them; None where they are not."""
    if isinstance(records, Store):
        records.seal()
        return View(records, compact(np.arange(len(records))))
    if not isinstance(records, View) or (base := as_stored(records.base)) is None:
        return None
    return View(base.base, base.places[records.places])


def _values(column: Any) -> list[bytes]:
    """The values of a column of bytes; Arrow's own ``to_pylist`` takes ten times as long."""
    _, ends, data = column.buffers()
    if data is None:
        return [b""] * len(column)
    places = np.frombuffer(ends, np.int32)[column.offset : column.offset + len(column) + 1].tolist()
    whole = data.to_pybytes()
    return [whole[start:end] for start, end in pairwise(places)]


class written:
    """Turns what the disk refuses into a message."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise UserError(
                f"records cannot be written to {scratch_folder().path} ({error}); make room there, or name another "
                "folder in TRIVET_CACHE"
            ) from error


def _remove(file: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked process shares its parent's files
        file.unlink(missing_ok=True)
