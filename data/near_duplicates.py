"""Texts that say the same but for a few characters: found by MinHash of character shingles, then compared by words.

A copy has other punctuation, case, order, typing errors, or a few words more; two fillings of one template, in which a
noun, a number or a sign differs, are two texts. Shingles are of four characters, or of two in scripts that put no
spaces between words, where two characters carry about as much. Knows nothing of files.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import takewhile
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
COMPARED = 64
"""Candidates, the likeliest first, whose words are compared: fillings of one template are all candidates of another."""
WORDS_TO_ONE_OTHER = 100
"""Words of a long text for each one that may be replaced by quite another."""
WORDS_TO_ONE_MORE = 8
"""Words of a text for each one that it may have more, one in any case."""
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
_TOKENS = regex.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_EXACT = regex.compile(r"\p{N}|\p{S}")
MOST_UNLIKE = 200
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
    """Texts by place, asked which of them a text nearly equals."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._index: Any = MinHashLSH(threshold=CANDIDATES, num_perm=PERMUTATIONS)
        self._places: list[str] = []
        self._shingles: list[np.ndarray] = []
        self._words: list[bytes] = []
        self._sketches = np.empty((64, PERMUTATIONS), np.uint32)
        self._exact: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, place: str, text: str) -> None:
        """Remember a text; one without any word is no duplicate of anything."""
        if words := plain(text):
            own = shingles(words)
            self._add(place, words, own, _sketch(own))

    def find(self, text: str) -> str | None:
        """The place of the first text that this one equals, or nearly so."""
        if not (words := plain(text)):
            return None
        if (same := self._exact.get(digest(words))) is not None:
            return self._places[same]
        own = shingles(words)
        return self._near(words, own, _sketch(own))

    def find_or_add(self, place: str, text: str) -> str | None:
        """The place of the one before; where there is none the text is remembered."""
        if not (words := plain(text)):
            return None
        if (same := self._exact.get(digest(words))) is not None:
            return self._places[same]
        own = shingles(words)
        sketch = _sketch(own)
        found = self._near(words, own, sketch)
        if found is None:
            self._add(place, words, own, sketch)
        return found

    def _add(self, place: str, words: str, own: np.ndarray, sketch: MinHash) -> None:
        key = len(self._places)
        if self._exact.setdefault(digest(words), key) != key:
            return
        self._places.append(place)
        self._shingles.append(own)
        self._words.append(words.encode("utf-8", "surrogatepass"))
        if key == len(self._sketches):
            self._sketches = np.concatenate([self._sketches, np.empty_like(self._sketches)])
        self._sketches[key] = sketch.hashvalues
        self._index.insert(key, sketch)

    def _near(self, words: str, own: np.ndarray, sketch: MinHash) -> str | None:
        found = np.array(sorted(self._index.query(sketch)), np.int64)
        if len(found) > COMPARED:
            alike = (self._sketches[found] == sketch.hashvalues.astype(np.uint32)).sum(axis=1)
            found = np.sort(found[np.argsort(-alike, kind="stable")[:COMPARED]])
        for key in found:
            other = self._words[key].decode("utf-8", "surrogatepass")
            if _jaccard(own, self._shingles[key]) >= THRESHOLD and same_but_for_little(words, other):
                return self._places[key]
        return None


def same_but_for_little(one: str, other: str) -> bool:
    """Whether two plain texts have the same words in any order, but for typing errors and a few more on one side.

    Words with a digit and signs are the same on both sides. A word may stand for quite another only in a long text.
    """
    ours, theirs = (Counter(_TOKENS.findall(text)) for text in (one, other))
    size = min(ours.total(), theirs.total())
    left, right = list((ours - theirs).elements()), list((theirs - ours).elements())
    if len(left) + len(right) > 2 * MOST_UNLIKE or any(map(_EXACT.search, left + right)):
        return False
    _without_joined(left, right)
    for word in left[:]:
        if (like := next((w for w in right if _mistyped(word, w)), None)) is not None:
            left.remove(word)
            right.remove(like)
    replaced = min(len(left), len(right))
    more = abs(len(left) - len(right))
    return replaced <= size // WORDS_TO_ONE_OTHER and more <= max(1, size // WORDS_TO_ONE_MORE)


def _without_joined(left: list[str], right: list[str]) -> None:
    """Take out words that one side writes in two: `an other` and `another`, `don t` and `dont`."""
    for whole, parts in ((left, right), (right, left)):
        for word in whole[:]:
            pair = next(((a, b) for a in parts for b in parts if a is not b and a + b == word), None)
            if pair:
                whole.remove(word)
                for part in pair:
                    parts.remove(part)


def _mistyped(one: str, other: str) -> bool:
    """Whether a word is another with one letter more, two swapped, one replaced in a long word, or another ending."""
    if len(one) > len(other):
        one, other = other, one
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    if len(other) >= (6 if other.isascii() else 4) and same >= 0.7 * len(other) and len(other) - same <= 2:
        return True
    if len(other) - len(one) == 1:
        return len(other) >= 5 and any(other[:i] + other[i + 1 :] == one for i in range(len(other)))
    if len(one) != len(other):
        return False
    unlike = [i for i in range(len(one)) if one[i] != other[i]]
    if len(unlike) == 2 and unlike[1] == unlike[0] + 1 and len(one) >= 4:
        return one[unlike[0]] == other[unlike[1]] and one[unlike[1]] == other[unlike[0]]
    return len(unlike) == 1 and len(one) >= 8


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
