"""Rows of token ids on disk: what stages train on, written as they are rendered and read as they are asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from data.storage.codec import Codec, Encoded
from data.storage.store import Store
from data.supervision import Encoded as Labelled


def ids_bytes(ids: Sequence[int]) -> bytes:
    """Ids as 32-bit numbers."""
    return np.asarray(ids, dtype=np.int32).tobytes()


def ids_of(stored: bytes) -> list[int]:
    """The ids that ``ids_bytes`` wrote."""
    return np.frombuffer(stored, dtype=np.int32).tolist()


def row_store() -> Store[list[int]]:
    """A store of rows of ids."""
    return Store(list, Codec(lambda row: Encoded(ids_bytes(row), b"", b""), lambda one: ids_of(one.content)))


def labelled_store() -> Store[Labelled]:
    """A store of conversations with labels; what was counted of them is not kept."""
    return Store(Labelled, Codec(_encode, _decode))


def _encode(row: Labelled) -> Encoded:
    return Encoded(ids_bytes(row.ids), ids_bytes(row.labels), json.dumps(row.cut).encode())


def _decode(stored: Encoded) -> Labelled:
    return Labelled(ids=ids_of(stored.content), labels=ids_of(stored.source), cut=json.loads(stored.rest))
