"""Which prompts a result was trained on, those of the results that it started from included.

A finished stage keeps the numbers of its training prompts in a file of its own, so that a later run that is given the
result can tell whether its own held-out prompts are among them. The number is that of the split: of the first user
message without case and spacing, and of the text where a record has no prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.common.errors import UserError
from data.records import group_of, normalise
from data.storage.codec import prompt_of
from data.storage.collected import texts_of
from data.storage.digests import Digests, among, digest
from models.backbone.artifacts import read_artifact

FILE = "training_prompts.u64"
_ON_DISK = np.dtype("<u8")


def numbers_of(record: Any) -> list[int]:
    """The numbers of a record: of its prompt, or of each of its texts where it has none."""
    prompt = prompt_of(record)
    if prompt is not None and prompt.messages:
        return [int(group_of(prompt.messages), 16)]
    return [digest(normalise(text)) for text in texts_of(record)]


def note(out: Path, records: Iterable[Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write the numbers of training records, and of those of the results taken, into a stage's folder.

    Returns:
        For the manifest: how many different ``prompts``, and which results taken are ``unknown`` in this respect.
    """
    found = [np.fromiter((n for record in records for n in numbers_of(record)), np.uint64)]
    unknown = [name for name, folder in inputs.items() if not is_known(folder)]
    found += [own for folder in inputs.values() if (own := numbers_in(folder)) is not None]
    numbers = np.unique(np.concatenate(found))
    (out / FILE).write_bytes(numbers.astype(_ON_DISK).tobytes())
    return {"prompts": len(numbers), "unknown": sorted(unknown)}


def numbers_in(folder: Path) -> Digests | None:
    """The numbers that a result keeps, sorted; None where it keeps none.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    held = file.read_bytes()
    if len(held) % _ON_DISK.itemsize:
        raise UserError(f"{file}: damaged, {len(held):,} bytes are no numbers of 8 bytes each; run that stage again")
    return np.unique(np.frombuffer(held, dtype=_ON_DISK).astype(np.uint64))


def is_known(folder: Path) -> bool:
    """Whether all that a result was trained on is known, whatever it started from."""
    found = read_artifact(folder)
    lineage = None if found is None else found.manifest.get("lineage")
    return isinstance(lineage, Mapping) and not lineage.get("unknown") and (folder / FILE).is_file()


def seen(folder: Path, records: Sequence[Any]) -> list[int]:
    """Places of the records that a result was trained on, as far as it keeps them."""
    known = numbers_in(folder)
    if known is None:
        return []
    return [i for i, record in enumerate(records) if among(np.array(numbers_of(record), np.uint64), known).any()]
