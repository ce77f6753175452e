"""Splits that the names of files, members of a zip or sheets say they are: what is for training and what is held out.

A name's split is a word in it (``train.jsonl``, ``my-test.csv.gz``, ``dev/rows.jsonl``), or, as the hub names its
shards, all that stands before the count (``test_sft-00000-of-00002.parquet``). The words are those by which the hub
finds splits (huggingface.co/docs/hub/datasets-file-names-and-splits), and those of held-out rows. Knows nothing of
what is in the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from data.common.errors import UserError, nearest

KINDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
    "eval": ("eval", "evaluation"),
    "held out": ("heldout", "held_out", "held-out", "holdout", "hold_out", "hold-out"),
}
_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
_WORD = re.compile(rf"(?<![a-z0-9])({'|'.join(sorted(_KIND_OF, key=len, reverse=True))})(?![a-z0-9])", re.I)
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}(?!\d)")
SHOWN = 6


def chosen(names: Sequence[str], split: str | None, source: str, what: str = "file") -> list[str]:
    """The names of a split, or all where they are not of several.

    Args:
        names: paths relative to the source, members or sheets.
        split: which one; None where nobody said.
        source, what: for messages: where they are, and what each is.

    Raises:
        UserError: nobody said which of several splits, or none of the names is of this one.
    """
    if split is None:
        _refuse_several(names, source)
        return list(names)
    token = re.compile(rf"(^|[/_.-]){re.escape(split)}([/_.-]|$)")
    found = [name for name in names if is_of(name, split)] or [name for name in names if token.search(name)]
    if names and not found:
        there = list(dict.fromkeys(filter(None, map(_label, names)))) or list(names)
        more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
        raise UserError(
            f"{source}: no {what} of it is of split {split!r}; it holds {', '.join(there[:SHOWN])}{more}."
            + nearest(split, there)
        )
    if not all(_shards(name) == split for name in found):
        _refuse_several(found, source)
    return found


def is_of(name: str, split: str) -> bool:
    """Whether a name says that it is of this split."""
    return _shards(name) == split or _word(name).lower() == split.lower()


def _refuse_several(names: Iterable[str], source: str) -> None:
    names = list(names)
    kinds = {_KIND_OF[word.lower()] for name in names if (word := _word(name))}
    shards = {label for name in names if (label := _shards(name))}
    if len(kinds) > 1 or (len(shards) > 1 and any(map(_WORD.search, shards))):
        labels = list(dict.fromkeys(filter(None, map(_label, names))))
        raise UserError(
            f"{source} holds several splits: {', '.join(labels[:SHOWN])}; choose one with `split`, such as "
            f"split: {next((one for one in labels if 'train' in one.lower()), labels[0])}, or name the files"
        )


def _label(name: str) -> str:
    """What ``split`` takes for a name: its shards' name where that says it all, else the word; empty without one."""
    shards = _shards(name)
    return shards if shards and (_WORD.search(shards) or not _word(name)) else _word(name)


def _shards(name: str) -> str:
    found = _SHARD.match(PurePath(name).name)
    return found["split"] if found else ""


def _word(name: str) -> str:
    """The word of the last part of a path that has words of one split; empty where none has."""
    for part in reversed(PurePath(name).parts):
        words = {_KIND_OF[word.lower()]: word for word in _WORD.findall(part)}
        if words:
            return next(iter(words.values())) if len(words) == 1 else ""
    return ""
