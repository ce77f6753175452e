"""Strings that end a response wherever they stand in its text, across the borders of tokens as well.

A token is a run of bytes, and all strings together are one automaton over bytes (Aho and Corasick 1975), so that of a
response no more than its state has to be known: a table says for each state and token which state comes next. Nothing
is decoded while tokens are sampled, and a row costs one look-up a token, on any device.

What counts is the text of the response alone, with the texts of special tokens, as Transformers' ``StopStringCriteria``
and vLLM read it; a string that begins in the prompt is not found.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from data import tokens
from data.common.errors import UserError

MAX_BYTES = 512  # of all strings: the table has a row for each and a column for each token of the vocabulary
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class StopStrings:
    """The strings of one tokenizer.

    Args:
        tokenizer: a Transformers tokenizer; it is not changed.
        texts: the strings; none is empty.

    Raises:
        UserError: a string is empty, they are longer than ``MAX_BYTES``, or the tokenizer cannot write one.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self.tokenizer, self.texts = tokenizer, tuple(dict.fromkeys(texts))
        self._anchor, self._bytes_of = tokens.anchor(tokenizer), _byte_letters(tokenizer)
        if "" in self.texts:
            raise UserError("stop_strings: an empty string would end every response at once; leave it out")
        self._wanted = [text.encode() for text in self.texts]
        if sum(map(len, self._wanted)) > MAX_BYTES:
            raise UserError(
                f"stop_strings: {sum(map(len, self._wanted)):,} bytes in all, of {MAX_BYTES} that are searched for; "
                "write fewer or shorter ones"
            )
        for text in self.texts:
            self._check(text)

    def __bool__(self) -> bool:
        return bool(self.texts)

    @cached_property
    def table(self) -> np.ndarray:
        """(states, vocabulary + 1) int16: the state after a token; the last column stands for ids without a text.

        The first state is that of an empty response, and the last, ``found``, is never left.
        """
        return _table(self._after, self._words)

    @property
    def found(self) -> int:
        """The state of a response in which there is a string."""
        return len(self._after) - 1

    def end(self, ids: Sequence[int]) -> int | None:
        """Where in a response the token is that completes the first string; None where there is none."""
        state, table = 0, self.table
        for place, token in enumerate(ids):
            state = int(table[state, min(token, table.shape[1] - 1)])
            if state == self.found:
                return place
        return None

    def text_before(self, ids: Sequence[int]) -> str:
        """Text of a response that holds a string before its first one, without special tokens."""
        words = [self._word(token) for token in ids]
        first, at, before = self._first(words), 0, b""
        for token, word in zip(ids, words, strict=True):
            before += b"" if token in self._special else word[: max(0, first - at)]
            at += len(word)
        return before.decode(errors="replace")

    def tokens_before(self, ids: Sequence[int]) -> int:
        """Tokens of a response that holds a string, as far as they stand wholly before its first one."""
        words = [self._word(token) for token in ids]
        first, ends = self._first(words), accumulate(map(len, words))
        return sum(end <= first for end in ends)

    def _first(self, words: Sequence[bytes]) -> int:
        whole = b"".join(words)
        return min(at for text in self._wanted if (at := whole.find(text)) >= 0)

    def settled(self, text: str) -> str:
        """The part of a growing text that stays, whatever comes: an end that may become a string is left out, with the
        white space before it, which then ends the text."""
        longest = min(len(text), max((len(stop) - 1 for stop in self.texts), default=0))
        ends = (n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self.texts))
        held = next(ends, 0)
        return text[: len(text) - held].rstrip() if held else text

    @cached_property
    def _after(self) -> np.ndarray:
        return _automaton(self._wanted)

    @cached_property
    def _special(self) -> set[int]:
        return tokens.special_ids(self.tokenizer)

    @cached_property
    def _words(self) -> list[bytes]:
        return [self._word(token) for token in range(len(self.tokenizer))]

    def _word(self, token: int) -> bytes:
        """A token's bytes where it follows another one."""
        if token >= len(self.tokenizer):
            return b""
        name = self.tokenizer.convert_ids_to_tokens(token) or ""
        added = token in tokens.added_tokens(self.tokenizer)
        if not added and self._bytes_of and all(letter in self._bytes_of for letter in name):
            return bytes(self._bytes_of[letter] for letter in name)
        text = self._decoded([token])
        byte = _BYTE.fullmatch(name)
        return bytes([int(byte[1], 16)]) if byte and text != name else text.encode()

    def _decoded(self, ids: Sequence[int]) -> str:
        def decode(some: Sequence[int]) -> str:
            return str(self.tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False))

        return decode(ids) if self._anchor is None else decode([self._anchor, *ids])[len(decode([self._anchor])) :]

    def _check(self, text: str) -> None:
        """Refuse a string that no tokens make up, or where a text is not what its tokens' texts make up."""
        for context in (text, f"a {text} b"):
            ids = tokens.tokenise(self.tokenizer, context)
            found = b"".join(map(self._word, ids)).decode(errors="replace")
            if found != self._decoded(ids):
                raise UserError(
                    "stop_strings: by this tokenizer a text is not what the texts of its tokens make up "
                    f"({found!r:.60} is written {self._decoded(ids)!r:.60}): name tokens that end a response with "
                    "`stop`"
                )
            if text not in found and not _reaches(_table(_automaton([text.encode()]), self._words)):
                raise UserError(
                    f"stop_strings: no tokens of this tokenizer make up {text!r}: read back, it is {found!r:.80}. Name "
                    "a token of its vocabulary with `stop`, write the string as the tokenizer does, or leave it out"
                )


def _automaton(wanted: Sequence[bytes]) -> np.ndarray:
    """(states, 256) int16: the state after a byte; the first is the empty text's, the last is never left."""
    children: list[dict[int, int]] = [{}]
    ends: set[int] = set()
    for text in wanted:
        node = 0
        for letter in text:
            if letter not in children[node]:
                children.append({})
                children[node][letter] = len(children) - 1
            node = children[node][letter]
        ends.add(node)
    found = len(children)
    after, shorter = np.zeros((found + 1, 256), dtype=np.int16), [0] * found
    waiting = deque([0])
    while waiting:
        node = waiting.popleft()
        after[node] = after[shorter[node]] if node else 0
        for letter, child in children[node].items():
            shorter[child] = int(after[node, letter]) if node else 0
            if shorter[child] == found:  # a shorter string ends here
                ends.add(child)
            after[node, letter] = found if child in ends else child
            waiting.append(child)
    after[found] = found
    return after


def _table(after: np.ndarray, vocabulary: Sequence[bytes]) -> np.ndarray:
    """(states, vocabulary + 1) int16: the state after a token's bytes, byte by byte for all states and tokens at once;
    the last column leaves every state as it is."""
    words = [*vocabulary, b""]
    lengths = np.array([len(word) for word in words])
    order = np.argsort(-lengths, kind="stable")
    letters = np.zeros((len(words), int(lengths.max(initial=0))), dtype=np.uint8)
    for number, word in enumerate(words):
        letters[number, : len(word)] = np.frombuffer(word, dtype=np.uint8)
    table = np.repeat(np.arange(len(after), dtype=np.int16)[:, None], len(words), axis=1)
    for place in range(letters.shape[1]):
        some = order[: int((lengths > place).sum())]
        table[:, some] = after[table[:, some], letters[some, place]]
    return table


def _reaches(table: np.ndarray) -> bool:
    """Whether some tokens lead from the first state to the last."""
    known = {0}
    while new := {int(state) for state in np.unique(table[sorted(known)])} - known:
        known |= new
    return len(table) - 1 in known


def _byte_letters(tokenizer: Any) -> dict[str, int]:
    """The letters that a byte-level vocabulary writes bytes with; empty for any other vocabulary."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None or '"ByteLevel"' not in json.dumps(json.loads(decoder.__getstate__())):
        return {}
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
