"""Texts that say the same but for a few characters: candidates by MinHash of character shingles, each then compared.

Shingles are of four characters, or of two in scripts that put no spaces between words, where two characters carry about
as much. What makes a copy are its words (characters in such scripts), small ones such as articles aside: in a short
text all of them in their order, but for misspellings and endings; in a long one (``LONG`` words) nearly all of them, in
any order. So two fillings of one template, which share most shingles, are no copies. Knows nothing of files.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from data.records import normalise
from data.storage.digests import digest

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE, SHINGLE_UNSPACED, THRESHOLD, PERMUTATIONS = 4, 2, 0.8, 64
CANDIDATES = 0.55
"""Estimated likeness from which on two texts are compared, so low that few copies are missed."""
LONG = 40
"""Words of a long text, and how many of its words may be others: one in this many."""
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
_SMALL = """
a an the of to in on at for is are do does it this that and please kindly
der das den dem ein eine einen im zu und bitte le la les un une du des de et el los las una en y
il lo gli di e os um uma da do het een van ال و في من का के की है हैं में को कृपया
的 了 吗 呢 吧 啊 请 嗎 請 の は が を ね よ か
"""
SMALL = frozenset(_SMALL.split())
"""Words (characters of Chinese and Japanese) by which copies may differ."""
_CONTENT = regex.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_HANGUL = regex.compile(r"\p{Hangul}+")
_MARKS = regex.compile(r"\p{M}*")
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


def content(words: str) -> tuple[str, ...]:
    """The words of a plain text, or characters of a script without spaces, small ones aside where others are left."""
    found = _CONTENT.findall(words)
    kept = tuple(word for word in found if word not in SMALL)
    return kept if len(kept) > 1 else tuple(found)


class Words:
    """The words of a text that make copies of it, in their order; of a long one also each once, and each pair once."""

    def __init__(self, inner: tuple[str, ...]) -> None:
        self.inner, self.may_differ = inner, len(inner) // LONG
        self.once = frozenset(inner if self.may_differ else ())
        self.pairs = frozenset(pairwise(inner) if self.may_differ else ())

    def is_copy_of(self, other: Words) -> bool:
        """Whether one text is a copy of the other: what that is, is said above."""
        one, two = self.inner, other.inner
        if len(one) == len(two) and all(a == b or _is_variant(a, b) for a, b in zip(one, two, strict=True)):
            return True
        may_differ = min(self.may_differ, other.may_differ)
        if not may_differ or abs(len(one) - len(two)) > may_differ:
            return False
        gone, new = self.once - other.once, set(other.once - self.once)
        if max(len(gone), len(new)) * 10 > len(self.once):
            return False
        unknown = 0
        for word in gone:
            found = next((b for b in new if _is_variant(word, b)), None)
            unknown += found is None
            new -= {found}
        return max(unknown, len(new)) <= may_differ and 2 * len(self.pairs & other.pairs) > len(self.pairs)


def _is_variant(a: str, b: str) -> bool:
    """Whether a word is another one misspelt by one character, or with another ending; numbers never are."""
    if not (a.isalpha() or _MARKS.search(a)) or any(c.isdigit() for c in a + b):
        return False
    long = max(len(a), len(b))
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[same:], b[same:]
    if _HANGUL.fullmatch(a):
        return same >= 2 and same >= 0.6 * long
    if same >= 3 and _MARKS.fullmatch(rest_a) and _MARKS.fullmatch(rest_b):
        return True
    if same >= 4 and same >= 0.7 * long:
        return True
    return long >= 6 and same >= 1 and _one_edit(rest_a, rest_b)


def _one_edit(a: str, b: str) -> bool:
    """Whether two texts that begin differently are one insertion, removal, exchange or swap of characters apart."""
    swapped = a[1:2] + a[:1] == b[:2] and a[2:] == b[2:]
    return swapped or a[1:] == b[1:] or a == b[1:] or a[1:] == b


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
        self._contents: list[Words] = []
        self._exact: dict[int, int] = {}

    def _in_sample(self, own: np.ndarray) -> bool:
        return not int(own[0]) & ((1 << self.halvings) - 1)

    def _halve(self) -> None:
        """Keep about half of the texts, the same ones whatever their order."""
        self.halvings += 1
        known = list(zip(self._places, self._contents, self._shingles, strict=True))
        self._clear()
        for place, words, own in known:
            if self._in_sample(own):
                self._add(place, words.inner, own, _sketch(own))

    @property
    def sampled(self) -> str:
        """``a sample of one text in 4``; empty where all are compared."""
        return f"a sample of one text in {1 << self.halvings:,}" if self.halvings else ""

    def __len__(self) -> int:
        return len(self._places)

    def add(self, place: str, text: str) -> None:
        """Remember a text; one without any word is no duplicate of anything."""
        if words := plain(text):
            own, inner = shingles(words), content(words)
            self._add(place, inner, own, _sketch(own))

    def find(self, text: str) -> str | None:
        """The place of the first text that this one equals, or nearly so."""
        return self._find("", text, add=False)

    def find_or_add(self, place: str, text: str) -> str | None:
        """The place of the one before; where there is none the text is remembered."""
        return self._find(place, text, add=True)

    def _find(self, place: str, text: str, add: bool) -> str | None:
        if not (words := plain(text)):
            return None
        inner = content(words)
        if (same := self._exact.get(_digest(inner))) is not None:
            return self._places[same]
        own = shingles(words)
        if not self._in_sample(own):
            return None
        sketch = _sketch(own)
        found = self._near(inner, own, sketch)
        if found is None and add:
            self._add(place, inner, own, sketch)
            if self.limit is not None and len(self) > self.limit:
                self._halve()
        return found

    def _add(self, place: str, inner: tuple[str, ...], own: np.ndarray, sketch: MinHash) -> None:
        key = len(self._places)
        if self._exact.setdefault(_digest(inner), key) != key:
            return
        self._places.append(place)
        self._shingles.append(own)
        self._contents.append(Words(inner))
        self._index.insert(key, sketch)

    def _near(self, inner: tuple[str, ...], own: np.ndarray, sketch: MinHash) -> str | None:
        words = Words(inner)
        near = [k for k in self._index.query(sketch) if self._is_near(k, words, own)]
        return self._places[min(near)] if near else None

    def _is_near(self, key: int, words: Words, own: np.ndarray) -> bool:
        if not words.is_copy_of(self._contents[key]):
            return False
        return not words.may_differ or _jaccard(own, self._shingles[key]) >= THRESHOLD


def _digest(inner: tuple[str, ...]) -> int:
    return digest("\x1f".join(inner))


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
