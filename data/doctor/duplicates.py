"""Texts that say the same but for a few characters, by MinHash of character shingles and locality-sensitive hashing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from data.records import normalise

SHINGLE, THRESHOLD, PERMUTATIONS = 4, 0.8, 64


def plain(text: str) -> str:
    """Words alone: without case, punctuation and white space between the characters that differ."""
    return " ".join(re.findall(r"\w+", normalise(text)))


def near_duplicates(
    texts: Iterable[tuple[str, str]], known: Iterable[tuple[str, str]] = ()
) -> Iterator[tuple[str, str]]:
    """Yield (place, place of the one before) of texts that equal one before, or nearly so.

    Args:
        texts: (place, text); each is compared with ``known`` alone where there is any, else with those before it.
        known: (place, text) of the other side.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    exact: dict[str, str] = {}
    sets: dict[str, frozenset[str]] = {}
    places: dict[str, str] = {}

    def sketch(words: str) -> tuple[MinHash, frozenset[str]]:
        shingles = frozenset(words[i : i + SHINGLE] for i in range(max(1, len(words) - SHINGLE + 1)))
        made = MinHash(num_perm=PERMUTATIONS, seed=1)
        made.update_batch([s.encode() for s in shingles])
        return made, shingles

    def add(place: str, words: str, made: MinHash, shingles: frozenset[str]) -> None:
        key = str(len(sets))
        exact[words], sets[key], places[key] = place, shingles, place
        index.insert(key, made)

    other = list(known)
    for place, text in other:
        if (words := plain(text)) and words not in exact:
            add(place, words, *sketch(words))
    for place, text in texts:
        words = plain(text)
        if not words:
            continue
        if words in exact:
            yield place, exact[words]
            continue
        made, shingles = sketch(words)
        found = [k for k in index.query(made) if _jaccard(shingles, sets[k]) >= THRESHOLD]
        if found:
            yield place, places[min(found, key=int)]
        elif not other:
            add(place, words, made, shingles)


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)
