"""Parts of the data that were read before: their records and numbers as they lie in the cache.

A part is found by the bytes of its files, hashed each time, so that a changed file is noticed whatever its size and
times say; and by its settings and the code that reads it. Kept are local files of some megabytes; small ones are read
again.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from data.cleaning.rows import Tally
from data.common.errors import UserError
from data.leaks import Keys
from data.local_files import files_of
from data.parts import Part
from data.source_counts import Loaded, Rejected, SourceCount, rejected_rows
from data.source_settings import DataConfig, Source, as_source
from data.sources import DEMO_TASK
from data.storage.collected import CLASSES
from data.storage.kept import Stamp, find, key_of, publish, sha256_of, stamp_of
from data.storage.store import Store
from data.storage.views import View

LARGE = 4 * 2**20
"""Bytes of all files from which on parts are kept."""

NUMBERS, REJECTED = "numbers.safetensors", "rejected.arrow"
PARTS = {"documents", "demonstrations", "rankings", "prompts"}
ARRAYS = ("group", "held", "origin", "said", "shape")
KEYS = ("asked", "loose", "texts")


@dataclass(frozen=True, slots=True)
class PartKey:
    """The name of a part in the cache, and the stamps of its files when they were hashed."""

    name: str
    stamps: dict[Path, Stamp]

    def unchanged(self) -> bool:
        """Whether no file was written since."""
        try:
            return all(stamp_of(path) == stamp for path, stamp in self.stamps.items())
        except OSError:
            return False


def files(sources: Sequence[str | Source], base_dir: Path) -> list[tuple[Source, list[Path]]] | None:
    """The files of each source; None where one is no local file."""
    out = []
    for entry in sources:
        source = as_source(entry)
        found = None if source.path.partition("?")[0] == DEMO_TASK else files_of(source, base_dir)
        if found is None:
            return None
        out.append((source, found))
    return out


def is_large(config: DataConfig, base_dir: Path) -> bool:
    """Whether the files of all parts together are large enough to be kept."""
    entries = [entry for part in sorted(PARTS) for entry in getattr(config, part)]
    try:
        found = [path for entry in entries for _, own in files((entry,), base_dir) or () for path in own]
        return sum(path.stat().st_size for path in found) >= LARGE
    except (UserError, OSError):
        return False  # reading it says what is wrong


def part_key(
    kind: str, sources: Sequence[str | Source], base_dir: Path, config: DataConfig, **more: Any
) -> PartKey | None:
    """The key of a part; None where it cannot be known by files alone."""
    found = files(sources, base_dir)
    if found is None:
        return None
    try:
        stamps = {path: stamp_of(path) for _, own in found for path in own}
        hashed = {path: sha256_of(path) for path in stamps}
    except OSError:
        return None  # reading it says what is wrong
    described = {
        "kind": kind,
        "sources": [[source.model_dump(mode="json"), [[str(p), hashed[p]] for p in own]] for source, own in found],
        "config": config.model_dump(mode="json", exclude=PARTS),
        **more,
    }
    return PartKey(key_of(described), stamps)


# ---- to the cache and back -------------------------------------------------------------------------------------------


def keep(key: PartKey, part: Part, loaded: Loaded) -> None:
    """Put a part into the cache, if it lies on disk and all of it can be written."""
    store = part.records.base if isinstance(part.records, View) else part.records
    if not isinstance(store, Store) or store.file is None or store.unwritten or not key.unchanged():
        return
    store.seal()
    arrays = {name: getattr(part, name) for name in ARRAYS} | {name: getattr(part.keys, name) for name in KEYS}
    if part.keys.asked is part.group:
        del arrays["asked"]
    if isinstance(part.records, View):
        arrays["places"] = part.records.places
    file, many = store.file, loaded.rejected.file

    def write(folder: Path) -> None:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / NUMBERS)
        _link(file, folder / "records.arrow")
        if many is not None:
            loaded.rejected.seal()
            _link(many, folder / REJECTED)

    meta = {
        "records": len(store),
        "sources": store.sources,
        "shapes": [list(shape) for shape in part.shapes],
        "all_hashes": part.all_hashes,
        "read": loaded.read,
        "rejected": [[r.source, r.reason] for r in loaded.rejected] if many is None else len(loaded.rejected),
        "notes": dict(loaded.notes),
        "counts": [_plain(count) for count in loaded.counts],
        "remarks": loaded.remarks,
        "columns": dict(loaded.columns),
    }
    publish(key.name, meta, write)


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)


def _rejected(stored: int | list[list[str]], file: Path) -> Store[Rejected]:
    if isinstance(stored, int):
        return rejected_rows(file, stored)
    few = rejected_rows()
    few.extend(Rejected(*one) for one in stored)
    return few


def kept(key: PartKey, kind: str) -> tuple[Part, Loaded] | None:
    """A part from the cache, with what was found out about its sources; None where it is not there."""
    found = find(key.name)
    if found is None:
        return None
    folder, meta = found
    arrays: dict[str, Any] = load_file(folder / NUMBERS)
    store: Store[Any] = Store.opened(CLASSES[kind], folder / "records.arrow", meta["records"])
    store.sources = [(int(end), str(name)) for end, name in meta["sources"]]
    part = Part(
        records=View(store, arrays["places"]) if "places" in arrays else store,
        keys=Keys(arrays.get("asked", arrays["group"]), arrays["loose"], arrays["texts"]),
        shapes=[tuple(shape) for shape in meta["shapes"]],
        all_hashes=meta["all_hashes"],
        **{name: arrays[name] for name in ARRAYS},
    )
    loaded = Loaded(
        records=part.records,
        rejected=_rejected(meta["rejected"], folder / REJECTED),
        notes=Counter(meta["notes"]),
        counts=[_count(**count) for count in meta["counts"]],
        remarks=meta["remarks"],
        columns=Counter(meta["columns"]),
        read=meta["read"],
    )
    return part, loaded


def _plain(count: SourceCount) -> dict[str, Any]:
    """The counts as plain values."""
    cleaning = {field.name: getattr(count.cleaning, field.name) for field in fields(Tally)}
    return {field.name: getattr(count, field.name) for field in fields(SourceCount)} | {"cleaning": cleaning}


def _count(cleaning: dict[str, Any], **counts: Any) -> SourceCount:
    """The counts that ``_plain`` wrote."""
    counted = {name: Counter(cleaning[name]) for name in ("changed", "dropped")}
    return SourceCount(**counts, cleaning=Tally(**{**cleaning, **counted}))
