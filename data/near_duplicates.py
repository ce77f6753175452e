"""Texts that say the same but for a few characters, by MinHash of character shingles and locality-sensitive hashing.

Shingles are of four characters, or of two in scripts that put no spaces between words, where two characters carry about
as much. Knows nothing of files.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from data.records import normalise
from data.storage.digests import digest

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE, SHINGLE_UNSPACED, THRESHOLD, PERMUTATIONS = 4, 2, 0.8, 64
CANDIDATES = 0.55
"""Estimated likeness from which on two texts are compared, so low that few beyond ``THRESHOLD`` are missed."""
LONGEST = 10_000
"""Characters of a text that are looked at."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc"
_WORDS = regex.compile(r"[\w\p{M}]+|\p{S}")
_INVISIBLE = regex.compile(r"\p{Cf}+")
_BETWEEN_UNSPACED = regex.compile(rf"(?<=[{_UNSPACED}]) (?=[{_UNSPACED}])")
_ASCII = str.maketrans(
    {c: " " for c in string.punctuation if c not in "$+<=>^`|~_"} | {c: f" {c} " for c in "$+<=>^`|~"}
)
"""What the expressions above do to ASCII text, many times as fast."""
_UNSPACED_LETTER = regex.compile(rf"[{_UNSPACED}]")


def plain(text: str) -> str:
    """Words and symbols alone: without case, width, punctuation, invisible characters and the white space between."""
    if text.isascii():
        return " ".join(text[:LONGEST].lower().translate(_ASCII).split())
    words = " ".join(_WORDS.findall(_INVISIBLE.sub("", normalise(text[:LONGEST]))))
    return _BETWEEN_UNSPACED.sub("", words)


def shingles(words: str) -> np.ndarray:
    """Hashes (uint64, sorted, each once) of all runs of two or four characters of a plain text."""
    unspaced = len(_UNSPACED_LETTER.findall(words))
    size = SHINGLE_UNSPACED if 2 * unspaced > len(words) else SHINGLE
    points = np.frombuffer(words.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    if len(points) <= size:
        return np.array([digest(words)], dtype=np.uint64)
    mixed = np.zeros(len(points) - size + 1, dtype=np.uint64)
    for i in range(size):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + points[i : len(points) - size + 1 + i]
    return np.unique(mixed ^ (mixed >> np.uint64(31)))


class NearIndex:
    """Texts by place, asked which of them a text nearly equals.

    Of more texts than ``limit`` it takes a sample, one in ``2 ** halvings``. A text's smallest shingle decides, which
    texts that are nearly equal mostly share: so they are in the sample, or not, together.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.halvings = limit, 0
        self._clear()

    def _clear(self) -> None:
        from datasketch import MinHashLSH

        self._index: Any = MinHashLSH(threshold=CANDIDATES, num_perm=PERMUTATIONS)
        self._places: list[str] = []
        self._shingles: list[np.ndarray] = []
        self._words: list[int] = []
        self._exact: dict[int, int] = {}

    def _in_sample(self, own: np.ndarray) -> bool:
        return not int(own[0]) & ((1 << self.halvings) - 1)

    def _halve(self) -> None:
        """Keep about half of the texts, the same ones whatever their order."""
        self.halvings += 1
        known = list(zip(self._places, self._words, self._shingles, strict=True))
        self._clear()
        for place, words, own in known:
            if self._in_sample(own):
                self._add(place, words, own, _sketch(own))

    @property
    def sampled(self) -> str:
        """``a sample of one text in 4``; empty where all are compared."""
        return f"a sample of one text in {1 << self.halvings:,}" if self.halvings else ""

    def __len__(self) -> int:
        return len(self._places)

    def add(self, place: str, text: str) -> None:
        """Remember a text; one without any word is no duplicate of anything."""
        if words := plain(text):
            own = shingles(words)
            self._add(place, digest(words), own, _sketch(own))

    def find(self, text: str) -> str | None:
        """The place of the first text that this one equals, or nearly so."""
        if not (words := plain(text)):
            return None
        if (same := self._exact.get(digest(words))) is not None:
            return self._places[same]
        own = shingles(words)
        return self._near(own, _sketch(own))

    def find_or_add(self, place: str, text: str) -> str | None:
        """The place of the one before; where there is none the text is remembered."""
        if not (words := plain(text)):
            return None
        if (same := self._exact.get(digest(words))) is not None:
            return self._places[same]
        own = shingles(words)
        if not self._in_sample(own):
            return None
        sketch = _sketch(own)
        found = self._near(own, sketch)
        if found is None:
            self._add(place, digest(words), own, sketch)
            if self.limit is not None and len(self) > self.limit:
                self._halve()
        return found

    def _add(self, place: str, words: int, own: np.ndarray, sketch: MinHash) -> None:
        key = len(self._places)
        if self._exact.setdefault(words, key) != key:
            return
        self._places.append(place)
        self._words.append(words)
        self._shingles.append(own)
        self._index.insert(key, sketch)

    def _near(self, own: np.ndarray, sketch: MinHash) -> str | None:
        near = [k for k in self._index.query(sketch) if _jaccard(own, self._shingles[k]) >= THRESHOLD]
        return self._places[min(near)] if near else None


def near_duplicates(
    texts: Iterable[tuple[str, str]], known: Iterable[tuple[str, str]] = ()
) -> Iterator[tuple[str, str]]:
    """Yield (place, place of the one before) of texts that equal one before, or nearly so.

    Args:
        texts: (place, text); each is compared with ``known`` alone where there is any, else with those before it.
        known: (place, text) of the other side.
    """
    index, alone = NearIndex(), True
    for place, text in known:
        index.add(place, text)
        alone = False
    for place, text in texts:
        found = index.find_or_add(place, text) if alone else index.find(text)
        if found is not None:
            yield place, found


@cache
def _empty() -> MinHash:
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)


def _sketch(own: np.ndarray) -> MinHash:
    made = _empty().copy()  # drawing its permutations takes longer than all else
    made.update_batch((own & np.uint64(0xFFFFFFFF)).tolist())
    return made


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)
