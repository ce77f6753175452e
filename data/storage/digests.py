"""Texts as numbers of 64 bits, and which of many are equal: what a split remembers of a row instead of its text.

Two of 10 million different texts share a number with a probability of about 3e-6.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

_HEX = re.compile(r"[0-9a-f]{16}")
_PARTS = 8  # a search goes through so many ranges of numbers in turn, so that what it copies stays small


def digest(text: str) -> int:
    """The number of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def group_digest(group: str) -> int:
    """The number of a group: a hash that names a group is that number, so that numbers sort as their names do."""
    return int(group, 16) if _HEX.fullmatch(group) else digest(group)


def is_hash(group: str) -> bool:
    """Whether a group's name can be made of its number."""
    return _HEX.fullmatch(group) is not None


def as_digests(numbers: array[int]) -> Digests:
    """An array of type ``Q`` as numpy has it, without a copy."""
    return np.frombuffer(numbers, dtype=np.uint64) if len(numbers) else np.empty(0, np.uint64)


def firsts(numbers: Digests) -> Places:
    """Places of the first of each number, in order."""
    first = np.zeros(len(numbers), dtype=bool)
    for places in _ranges(numbers):
        part = numbers[places]
        order = np.argsort(part, kind="stable")
        ordered = part[order]
        new = np.ones(len(ordered), dtype=bool)
        new[1:] = ordered[1:] != ordered[:-1]
        first[places[order[new]]] = True
    return np.flatnonzero(first)


def together(numbers: Digests) -> Iterator[Places]:
    """The places of each number, in the order in which the numbers first come."""
    if not len(numbers):
        return
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], numbers[order][1:] != numbers[order][:-1]]))
    ends = np.append(starts[1:], len(order))
    for at in np.argsort(order[starts], kind="stable"):
        yield order[starts[at] : ends[at]]


def first_of_each(codes: npt.NDArray[np.uint32], kinds: int) -> list[int]:
    """Of small numbers below ``kinds`` the first place of each, the length where it does not come."""
    first = np.full(kinds, len(codes))
    step = 1 << 16
    for start in range((len(codes) - 1) // step * step, -1, -step):
        part = codes[start : start + step]
        first[part[::-1]] = np.arange(start + len(part) - 1, start - 1, -1)  # the last that is written stays
    return first.tolist()


def compact(places: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Places in 32 bits, where they fit."""
    return places.astype(np.uint32) if not len(places) or places.max() < 2**32 else places


def repeated(numbers: Digests) -> Digests:
    """The numbers that come more than once, sorted."""
    found = [np.empty(0, np.uint64)]
    for places in _ranges(numbers):
        part = np.sort(numbers[places])
        found.append(np.unique(part[1:][part[1:] == part[:-1]]))
    return np.sort(np.concatenate(found))


def among(numbers: Digests, known: Digests) -> npt.NDArray[np.bool_]:
    """Whether each number is one of ``known``, which is sorted."""
    out = np.zeros(len(numbers), dtype=bool)
    if not len(known):
        return out
    step = 1 << 20
    for start in range(0, len(numbers), step):
        part = numbers[start : start + step]
        at = np.minimum(np.searchsorted(known, part), len(known) - 1)
        out[start : start + step] = known[at] == part
    return out


def _ranges(numbers: Digests) -> Iterable[Places]:
    """Places of the numbers of one range after the other."""
    if len(numbers) < 1 << 16:
        yield np.arange(len(numbers))
        return
    parts = (numbers >> np.uint64(61)).astype(np.uint8)
    for part in range(_PARTS):
        yield np.flatnonzero(parts == part)
