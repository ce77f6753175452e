"""What must not be on both sides of a split: held-out prompts in documents, prompts and texts that two sides share."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import regex

from data.common.errors import UserError
from data.records import Document, Prompt, normalise
from data.storage.codec import prompt_of
from data.storage.collected import said, texts_of
from data.storage.digests import Digests, Places, among, as_digests

_SHINGLE = 8
_WORD = regex.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[\w\p{M}]+")


def words_of(text: str) -> list[str]:
    """Words, or characters of scripts that do not part them."""
    return _WORD.findall(normalise(text))


class HeldPrompts:
    """The user's messages of the held-out prompts, to be found in documents.

    Kept are numbers: of the first eight words of a long message, with the place of its prompt, and of the whole of a
    short one.

    Args:
        sides: sequences of held-out records, in order.
    """

    def __init__(self, sides: Sequence[Sequence[Any]]) -> None:
        self._sides = sides
        self._starts: dict[int, list[tuple[int, int]]] = {}
        self._whole: set[int] = set()
        seen: set[int] = set()
        for side, place, prompt in self._prompts():
            if (number := said(prompt.messages)) in seen:
                continue
            seen.add(number)
            for words in _asked(prompt):
                if len(words) >= _SHINGLE:
                    self._starts.setdefault(hash(tuple(words[:_SHINGLE])), []).append((side, place))
                else:
                    self._whole.add(hash(" ".join(words)))

    def _prompts(self) -> Iterator[tuple[int, int, Prompt]]:
        for number, side in enumerate(self._sides):
            for place, record in enumerate(side):
                if (prompt := prompt_of(record)) is not None:
                    yield number, place, prompt

    def __bool__(self) -> bool:
        return bool(self._starts or self._whole)

    def is_in(self, document: Document) -> bool:
        """Whether a document contains a long message, or is a short one."""
        words = words_of(document.text)
        text = " ".join(words)
        if hash(text) in self._whole:
            return True
        if not self._starts:
            return False
        for i in range(len(words) - _SHINGLE + 1):
            shingle = tuple(words[i : i + _SHINGLE])
            for side, place in self._starts.get(hash(shingle), ()):
                asked = _asked(prompt_of(self._sides[side][place]))
                if any(tuple(own[:_SHINGLE]) == shingle and " ".join(own) in text for own in asked):
                    return True
        return False


def _asked(prompt: Prompt | None) -> list[list[str]]:
    return [] if prompt is None else [words_of(m.content) for m in prompt.messages if m.role == "user"]


class Keys:
    """What of one side of a part must not be on the other side: numbers of prompts, and of texts without one.

    Args:
        asked: of each record, 0 where it has no prompt.
        loose: places of records without a prompt, once for each text, sorted.
        texts: the texts' numbers.
    """

    def __init__(self, asked: Digests, loose: Digests, texts: Digests) -> None:
        self.asked, self.loose, self.texts = asked, loose, texts

    def of(self, places: Places) -> Keys:
        """The keys of these records, which are called by their order among them."""
        at = np.full(len(self.asked), -1, np.int64) if len(self.loose) else np.empty(0, np.int64)
        if len(at):
            at[places] = np.arange(len(places))
        own = at[self.loose] >= 0 if len(at) else np.zeros(0, dtype=bool)
        loose = at[self.loose[own]] if len(at) else self.loose
        order = np.argsort(loose, kind="stable")
        return Keys(self.asked[places], loose[order].astype(np.uint64), self.texts[own][order])


def check_leaks(sides: Mapping[str, tuple[Sequence[Any], Keys, Sequence[Any], Keys]]) -> None:
    """Refuse a held-out prompt, or a held-out answer without one, that is in a training part.

    Args:
        sides: by part, training records with their keys, and held-out ones with theirs.

    Raises:
        UserError: there is one; both places are named.
    """
    prompts = np.unique(np.concatenate([np.empty(0, np.uint64), *(keys.asked for *_, keys in sides.values())]))
    prompts = prompts[prompts != 0]
    texts = np.unique(np.concatenate([np.empty(0, np.uint64), *(keys.texts for *_, keys in sides.values())]))
    for part, (train, keys, _, _) in sides.items():
        hits = [(int(place), "prompt", int(keys.asked[place])) for place in _first(among(keys.asked, prompts))]
        hits += [(int(keys.loose[at]), "text", int(keys.texts[at])) for at in _first(among(keys.texts, texts))]
        if hits:
            place, what, number = min(hits)
            raise UserError(_message(part, train[place], what, *_holder(sides, what, number)))


def _first(found: np.ndarray) -> Places:
    return np.flatnonzero(found)[:1]


def _holder(sides: Mapping[str, tuple[Any, Any, Sequence[Any], Keys]], what: str, number: int) -> tuple[str, str]:
    """The part and the place of the first held-out record with this key."""
    for part, (_, _, held, keys) in sides.items():
        numbers = keys.asked if what == "prompt" else keys.texts
        for at in np.flatnonzero(numbers == np.uint64(number))[:1]:
            return part, source_of(held[int(at if what == "prompt" else keys.loose[at])])
    raise AssertionError("a key that no side holds")


def _message(part: str, record: Any, what: str, other: str, source: str) -> str:
    return (
        f"leak: the {what} of {source_of(record) or part} (training, data.{part}) is also held out, at "
        f"{source or other} (data.{other}): "
        f"{_excerpt(record)!r}. Give both the same group (data.group_by), or remove one"
    )


def source_of(record: Any) -> str:
    """The place of a record."""
    prompt = prompt_of(record)
    return (prompt if prompt is not None else record).source  # type: ignore[no-any-return]


def _excerpt(record: Any) -> str:
    prompt = prompt_of(record)
    text = prompt.text if prompt is not None and prompt.messages else (list(texts_of(record)) or [""])[0]
    return text[:60] + ("..." if len(text) > 60 else "")


def moved(documents: Sequence[Document], held: HeldPrompts) -> Places:
    """Places of the documents that contain a held-out prompt."""
    out = array("Q")
    if held:
        for place, document in enumerate(documents):
            if held.is_in(document):
                out.append(place)
    return as_digests(out).astype(np.int64)
