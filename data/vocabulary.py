"""More tokens for a tokenizer that is there, learnt from texts: byte-pair encoding that goes on where it ended.

Ids and rows of before stay as they are, and so does every text's first cut into words. Merges are learnt among the
tokens of before (Sennrich et al. 2016, algorithm 1, begun from those instead of characters), so that the tokenizer
applies the old ones first and finds each new token again. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.common.errors import UserError

SPACE = "\u2581"  # what SentencePiece writes for one
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
MIN_COUNT = 2  # a pair that occurs once is no pattern
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
KEY = "continued.added_vocabulary"


@dataclass(frozen=True, slots=True)
class Learnt:
    """Merges in the order in which they are applied, and the old tokens that each new token is made of."""

    merges: tuple[tuple[str, str], ...]
    parts: Mapping[str, tuple[str, ...]]


def learn_merges(words: Mapping[tuple[str, ...], int], count: int, known: Iterable[str] = ()) -> Learnt:
    """Merge the most frequent pair of neighbours, again and again, until there are ``count`` new tokens.

    Of pairs that are equally frequent the first in the order of characters is merged, so that the result hangs on the
    words alone and not on their order.

    Args:
        words: words as the tokens of before that they are made of, and how often each occurs.
        count: new tokens, at most: pairs that occur once are never merged.
        known: tokens that are there already; a merge that makes one of them makes no new token.
    """
    had, cut, times = set(known), [list(word) for word in words], list(words.values())
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = {}
    for i, word in enumerate(cut):
        for pair in pairwise(word):
            pairs[pair] += times[i]
            where.setdefault(pair, set()).add(i)
    parts: dict[str, tuple[str, ...]] = {}
    merges: list[tuple[str, str]] = []
    while len(parts) < count and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < MIN_COUNT:
            break
        merges.append(best)
        if (made := "".join(best)) not in had and made not in parts:
            parts[made] = tuple(part for side in best for part in parts.get(side, (side,)))
        for i in sorted(where[best]):
            for pair in pairwise(cut[i]):
                pairs[pair] -= times[i]
                where[pair].discard(i)
            cut[i] = _merged(cut[i], best)
            for pair in pairwise(cut[i]):
                pairs[pair] += times[i]
                where.setdefault(pair, set()).add(i)
        pairs = Counter({pair: n for pair, n in pairs.items() if n > 0})
    return Learnt(tuple(merges), parts)


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The word with every occurrence of the pair as one token, from the left."""
    out: list[str] = []
    i = 0
    while i < len(word):
        here = i + 1 < len(word) and (word[i], word[i + 1]) == pair
        out.append("".join(pair) if here else word[i])
        i += 2 if here else 1
    return out


def words_of(tokenizer: Any, texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    """The words of texts as the tokenizer cuts them, each as its tokens; those that it does not know are left out."""
    backend = tokenizer.backend_tokenizer
    found: Counter[str] = Counter()
    for text in texts:
        plain = backend.normalizer.normalize_str(text) if backend.normalizer else text
        cut = backend.pre_tokenizer.pre_tokenize_str(plain) if backend.pre_tokenizer else [(plain, None)]
        found.update(word for word, _ in cut)
    out: Counter[tuple[str, ...]] = Counter()
    for word, times in found.items():
        tokens = [token.value for token in backend.model.tokenize(word)]
        for part in _at_spaces(tokens):
            if tokenizer.unk_token not in part and not any(map(BYTE.fullmatch, part)):
                out[part] += times
    return out


def _at_spaces(tokens: list[str]) -> Iterable[tuple[str, ...]]:
    """Parts that begin where a word does: some tokenizers take a whole text for one word."""
    start = 0
    for i in range(1, len(tokens) + 1):
        if i == len(tokens) or tokens[i].startswith(SPACE):
            yield tuple(tokens[start:i])
            start = i


def unknown_words(tokenizer: Any, texts: Iterable[str], count: int) -> Learnt:
    """Of a tokenizer of whole words, the most frequent ones that it does not know, each made of the unknown token."""
    backend, found = tokenizer.backend_tokenizer, Counter[str]()
    for text in texts:
        plain = backend.normalizer.normalize_str(text) if backend.normalizer else text
        found.update(w for w, _ in backend.pre_tokenizer.pre_tokenize_str(plain))
    known = tokenizer.get_vocab()
    new = sorted((w for w, n in found.items() if w not in known and n >= MIN_COUNT), key=lambda w: (-found[w], w))
    return Learnt((), dict.fromkeys(new[:count], (tokenizer.unk_token,)))


def extended(tokenizer: Any, texts: Iterable[str], count: int, load: Callable[[str], Any]) -> tuple[Any, Learnt]:
    """A tokenizer with up to ``count`` more tokens, and what these are made of; the one given stays as it is.

    Args:
        tokenizer: a Transformers tokenizer with one of the ``tokenizers`` library behind it.
        texts: what the tokens are learnt from.
        count: how many.
        load: opens a folder's tokenizer.

    Raises:
        UserError: its kind takes no further tokens, or its files do not keep them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{KEY}: the base's tokenizer ({type(tokenizer).__name__}) has no tokenizer.json: set it to 0")
    data = json.loads(backend.to_str())
    model = data["model"]
    kind = model.get("type")
    if kind == "BPE" and not any(model.get(name) for name in AFFIXES):
        learnt = learn_merges(words_of(tokenizer, texts), count, tokenizer.get_vocab())
        model["merges"] += _as_written(learnt, model["merges"])
    elif kind == "WordLevel" and backend.pre_tokenizer is not None:
        learnt = unknown_words(tokenizer, texts, count)
    else:
        marked = " with prefixes or suffixes of words" if kind == "BPE" else ""
        raise UserError(
            f"{KEY}: the base's tokenizer is of the kind {kind}{marked}, which takes no further tokens here (BPE and "
            "WordLevel do): set it to 0"
        )
    first = max(tokenizer.get_vocab().values()) + 1
    model["vocab"] |= {token: first + i for i, token in enumerate(learnt.parts)}
    # every id has its place in the model, so that the library finds no hole in the vocabulary
    model["vocab"] |= {t["content"]: t["id"] for t in data["added_tokens"] if t["content"] not in model["vocab"]}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        made = load(folder)
    made.name_or_path = tokenizer.name_or_path
    vocabulary = made.get_vocab()
    if any(vocabulary.get(token) != first + i for i, token in enumerate(learnt.parts)):
        raise UserError(
            f"{KEY}: {type(tokenizer).__name__}, the class of the base's tokenizer, does not keep further tokens: set "
            "it to 0"
        )
    return made, learnt


def _as_written(learnt: Learnt, merges: list[Any]) -> list[Any]:
    """Merges as a tokenizer's file has them: pairs, or in older ones text with a space."""
    text = bool(merges) and isinstance(merges[0], str)
    return [" ".join(pair) if text else list(pair) for pair in learnt.merges]
