"""What a tokenizer has and does by itself: its BOS, padding and stop tokens, and text of ids in the middle of a text.

Nothing here changes a tokenizer or adds a token. It knows nothing of templates or conversations.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data.common.errors import UserError, nearest

SLOW = 5.0  # seconds of CPU time that no honest tokenizer takes for a text of LONG characters
LONG = 100_000
SLOW_TEXTS = ("a" * 40 + "!", " " * 40 + "a", "1" * 40 + "a", "ab" * 30 + "!", "\n" * 40 + "a", "中" * 40 + "!")


def tokenise(tokenizer: Any, text: str) -> list[int]:
    """Ids of ``text`` alone, no special tokens around it.

    Raises:
        UserError: the tokenizer breaks on it or takes very long.
    """
    if not text:
        return []
    with bounded(text):
        return tokenizer(
            text, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        ).input_ids


@contextlib.contextmanager
def bounded(text: str) -> Iterator[None]:
    """Around one call of a tokenizer: its regular expressions may be made to run for ever.

    The Rust library gives up on a single match after ten million steps with a panic, which is no ``Exception``; a text
    has many places to begin one, so time is checked as well, after each text.

    Raises:
        UserError: it broke, or took longer than any honest one.
    """
    started = time.thread_time()
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{_TOKENIZER} broke on a text of {len(text):,} characters ({str(error)[:200]})") from None
    seconds = time.thread_time() - started
    if seconds > SLOW * max(1.0, len(text) / LONG):
        raise UserError(
            f"{_TOKENIZER} took {seconds:.0f} seconds for a text of {len(text):,} characters: it is damaged, or made "
            "to be slow. Use another base"
        )


_TOKENIZER = "the tokenizer (its tokenizer.json)"


def check_speed(tokenizer: Any) -> None:
    """Try short texts on which patterns made to be slow give themselves away, before any long one.

    Raises:
        UserError: as ``bounded``.
    """
    for text in SLOW_TEXTS:
        tokenise(tokenizer, text)


def token_text(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], clean_up_tokenization_spaces=False)


def added_tokens(tokenizer: Any) -> dict[int, Any]:
    """Tokens added to the model's own vocabulary, special or not, by id."""
    return getattr(tokenizer, "added_tokens_decoder", {})


def special_ids(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *(i for i, t in added_tokens(tokenizer).items() if t.special)}


def special_texts(tokenizer: Any) -> list[str]:
    """The special tokens as they are written in a text."""
    return list(tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer))))


def added_bos(tokenizer: Any) -> tuple[int, ...]:
    """The id that the tokenizer puts before a text by itself; empty if it puts none."""
    with bounded("a"):
        with_special = tokenizer("a").input_ids
    return () if with_special[:1] == tokenise(tokenizer, "a")[:1] else tuple(with_special[:1])


def unknown_id(tokenizer: Any) -> int | None:
    """The id that stands for text without a token; None where there is none, or where it means something else too."""
    sign = tokenizer.unk_token_id
    return None if sign in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) else sign


def padding_id(tokenizer: Any, otherwise: int) -> int:
    """The tokenizer's own padding token, else one that exists: no token is added, and masks do not depend on ids."""
    candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    return next((i for i in candidates if i is not None), otherwise)


def named_token(tokenizer: Any, token: str | int) -> int:
    """The id of a stop token that the user named by its text or id.

    Raises:
        UserError: the vocabulary has no such token.
    """
    size = len(tokenizer)
    if isinstance(token, int):
        if not 0 <= token < size:
            raise UserError(f"stop: id {token} is not in the vocabulary of {size} tokens")
        return token
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return vocabulary[token]
    ids = tokenise(tokenizer, token)
    if len(ids) == 1 and token_text(tokenizer, ids[0]) == token:  # "\n", say, which byte vocabularies spell otherwise
        return ids[0]
    special = [str(t) for t in tokenizer.all_special_tokens]
    hint = nearest(token, special) or nearest(token, vocabulary) or f" Special tokens: {', '.join(special)}."
    raise UserError(
        f"stop: the tokenizer has no token {token!r}.{hint} A text of several tokens goes into `stop_strings`."
    )


def leading_special(tokenizer: Any, text: str) -> int | None:
    """The special token that ``text`` begins with, white space aside, or None."""
    special = special_ids(tokenizer)
    for i in tokenise(tokenizer, text):
        if i in special:
            return i
        if token_text(tokenizer, i).strip():
            return None
    return None


def writable(tokenizer: Any, token: int) -> str:
    """The text that is read as just this added token; empty for ordinary tokens, whose text may be read otherwise."""
    text = tokenizer.convert_ids_to_tokens(token)
    return text if token in added_tokens(tokenizer) and tokenise(tokenizer, text) == [token] else ""


def anchor(tokenizer: Any) -> int | None:
    """An ordinary token to decode behind (see ``decode_inner``)."""
    special = special_ids(tokenizer) | set(added_tokens(tokenizer))
    for text in ("a", "the", "."):
        ids = tokenise(tokenizer, text)
        if ids and ids[-1] not in special and token_text(tokenizer, ids[-1]).strip():
            return ids[-1]
    ordinary = (i for i in range(len(tokenizer)) if i not in special)
    return next((i for i in ordinary if token_text(tokenizer, i).strip().isalpha()), None)


def decode_inner(tokenizer: Any, ids: Sequence[int], behind: int | None) -> str:
    """Text of ids that follow others, special tokens left out.

    SentencePiece decoders drop the blank of a text's first word, so the text is decoded behind another token.
    """

    def decode(some: Iterable[int]) -> str:
        with bounded(" " * len(ids)):
            return tokenizer.decode(list(some), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return decode(ids) if behind is None else decode([behind, *ids])[len(decode([behind])) :]


def offsets(tokenizer: Any, text: str, count: int) -> tuple[list[int], list[int]]:
    """Begin and end in ``text`` of each of its ``count`` ids."""
    if getattr(tokenizer, "is_fast", False):
        with bounded(text):
            pairs = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
        return [a for a, _ in pairs], [b for _, b in pairs]
    lengths = [len(tokenise(tokenizer, text[:i])) for i in range(len(text) + 1)]
    ends = [next((c for c, n in enumerate(lengths) if n > i), len(text)) for i in range(count)]
    return [0, *ends[:-1]], ends


class Offsets:
    """Where in ``text`` each of its ``count`` ids begins (``starts``) and ends (``ends``), as the tokenizer says."""

    def __init__(self, tokenizer: Any, text: str, count: int) -> None:
        self.starts, self.ends = offsets(tokenizer, text, count)

    def count_all(self, text: str) -> bool:
        """Whether no character but white space lies between tokens.

        Some tokenizers leave characters that they drop out of the count, up to the next special token: the tokens
        behind them seem to stand further left, and the count ends before the text does.
        """
        borders = zip([0, *self.ends], [*self.starts, len(text)], strict=True)
        return not any(text[end:start].strip() for end, start in borders)


def content_hash(tokenizer: Any) -> str:
    """sha256 of the vocabulary and the tokenisation rules."""
    content: Any = sorted(tokenizer.get_vocab().items())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        content = {k: v for k, v in rules.items() if k not in ("truncation", "padding")}  # other callers' state
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
