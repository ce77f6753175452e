"""The records of one part of the data as they are read: on disk, with the few numbers of each that a split needs."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data.records import Demonstration, Document, Message, Prompt, RankedAnswers, group_of, normalise
from data.storage.codec import Encoded, prompt_of
from data.storage.digests import Digests, Places, as_digests, digest, group_digest, is_hash
from data.storage.store import Store
from data.storage.views import View

CLASSES: dict[str, type[Any]] = {
    "documents": Document,
    "demonstrations": Demonstration,
    "rankings": RankedAnswers,
    "prompts": Prompt,
}


class Collected:
    """Records of one kind in the order of their sources; ``origin`` says of each which source it is from.

    Args:
        kind: ``demonstrations``, ``rankings``, ``prompts`` or ``documents``.
        index: gets each record that is added, and keeps what is needed of it.
    """

    def __init__(self, kind: str, index: Index | None = None) -> None:
        self.store: Store[Any] = Store(CLASSES[kind])
        self.index = index
        self._ends: list[int] = []
        self._kept: list[Places | None] = []

    def add(self, records: Sequence[Any]) -> None:
        """Add records behind the others."""
        for record in records:
            self.store.append(record)
            if self.index is not None:
                self.index.add(record)

    def extend(self, encoded: Sequence[Encoded], index: Index | None) -> None:
        """Add records that are written already, with their numbers."""
        self.store.extend_encoded(encoded)
        if self.index is not None and index is not None:
            self.index.extend(index)

    def end_source(self, kept: Places | None = None, name: str = "") -> None:
        """What came since the last call is that of a source, and of it the records at these places are used."""
        start, end = self._ends[-1] if self._ends else 0, len(self.store)
        self._kept.append(None if kept is None else kept + start)
        self._ends.append(end)
        self.store.sources.append((end, name))

    def places(self) -> Places:
        """Of the records that are used, in the store."""
        starts = [0, *self._ends][: len(self._ends)]
        used = [
            np.arange(start, end) if kept is None else kept
            for start, end, kept in zip(starts, self._ends, self._kept, strict=True)
        ]
        return np.concatenate([np.empty(0, np.int64), *used])

    def records(self) -> Sequence[Any]:
        """Those that are used."""
        if all(kept is None for kept in self._kept):
            return self.store
        return View(self.store, self.places())

    def origins(self) -> npt.NDArray[np.uint32]:
        """The number of the source of each record of the store."""
        return np.repeat(np.arange(len(self._ends), dtype=np.uint32), np.diff([0, *self._ends]))


class Index:
    """Numbers of each record of one part, in order, and the texts of those without a prompt.

    ``group`` is the record's group, ``asked`` the group of its first user message alone, and ``said`` its messages:
    all digests. ``held`` says whether the group is held out, where a share decides. ``loose`` are the places of the
    records without a prompt, once for each text of theirs, whose digests are ``texts``.

    Args:
        held: whether a group is held out.
        named: whether groups are named by a column, so that they say nothing of the prompt.
        said: whether messages are kept.
    """

    def __init__(self, held: Callable[[str], bool], *, named: bool = False, said: bool = False) -> None:
        self._is_held, self._named, self._keeps_said = held, named, said
        self._group, self._said = array("Q"), array("Q")
        self._asked: array[int] | None = None  # the groups, as long as nothing says otherwise
        self._held, self._shape = bytearray(), array("I")
        self._loose, self._texts = array("Q"), array("Q")
        self._shapes: dict[tuple[str, ...], int] = {}
        self._count = 0
        self.all_hashes = True

    def add(self, record: Any) -> None:
        """Note a record."""
        prompt = prompt_of(record)
        group: str = record.group if prompt is None else prompt.group
        number = group_digest(group)
        self.all_hashes = self.all_hashes and is_hash(group)
        self._group.append(number)
        self._held.append(self._is_held(group))
        if prompt is None or not prompt.messages:
            for text in texts_of(record):
                self._loose.append(self._count)
                self._texts.append(digest(normalise(text)))
            self._note_asked(0, number)
        elif self._named or not is_hash(group):
            self._note_asked(int(group_of(prompt.messages), 16), number)
        else:
            self._note_asked(number, number)  # a group that nobody named is that of the first user message
        if self._keeps_said:
            self._said.append(0 if prompt is None or not prompt.messages else said(prompt.messages))
            names = () if prompt is None else tuple(prompt.columns)
            self._shape.append(self._shapes.setdefault(names, len(self._shapes)))
        self._count += 1

    def empty(self) -> Index:
        """An index like this one, of no record yet."""
        return Index(self._is_held, named=self._named, said=self._keeps_said)

    def extend(self, other: Index) -> None:
        """Note the records of another one behind the own."""
        before = self._count
        if self._asked is not None or other._asked is not None:
            self._asked = array("Q", self._group) if self._asked is None else self._asked
            self._asked.extend(other._group if other._asked is None else other._asked)
        self._group.extend(other._group)
        self._held.extend(other._held)
        self._loose.extend(array("Q", (place + before for place in other._loose)))
        self._texts.extend(other._texts)
        self._said.extend(other._said)
        codes = [self._shapes.setdefault(names, len(self._shapes)) for names in other._shapes]
        self._shape.extend(array("I", (codes[code] for code in other._shape)))
        self._count += len(other)
        self.all_hashes = self.all_hashes and other.all_hashes

    def _note_asked(self, asked: int, group: int) -> None:
        if self._asked is None and asked != group:
            self._asked = self._group[:-1]
        if self._asked is not None:
            self._asked.append(asked)

    def __len__(self) -> int:
        return self._count

    @property
    def group(self) -> Digests:
        return as_digests(self._group)

    @property
    def asked_differs(self) -> bool:
        """Whether ``asked`` differs from ``group``."""
        return self._asked is not None

    @property
    def asked(self) -> Digests:
        """0 where there is no prompt."""
        return self.group if self._asked is None else as_digests(self._asked)

    @property
    def said(self) -> Digests:
        """0 where there is no prompt."""
        return as_digests(self._said)

    @property
    def held(self) -> Any:
        """Booleans, one a record."""
        return np.frombuffer(self._held, dtype=bool)

    @property
    def loose(self) -> Digests:
        return as_digests(self._loose)

    @property
    def texts(self) -> Digests:
        return as_digests(self._texts)

    @property
    def shape(self) -> Any:
        """Which of ``shapes`` the names of a record's columns are."""
        return np.frombuffer(self._shape, dtype=np.uint32) if len(self._shape) else np.empty(0, np.uint32)

    @property
    def shapes(self) -> list[tuple[str, ...]]:
        return list(self._shapes)


def texts_of(record: Any) -> Sequence[str]:
    """What a record without a prompt says: its answers, or its text."""
    if isinstance(record, Document):
        return [record.text]
    return [record.answer] if isinstance(record, Demonstration) else list(getattr(record, "answers", ()))


def said(messages: Sequence[Message]) -> int:
    """The number of a conversation: equal for equal ones."""
    if len(messages) == 1 and not messages[0].extras():
        return digest(f"{messages[0].role} {messages[0].content}")
    turns = [(m.role, m.content, m.tool_calls, m.tool_call_id, m.name, m.tools, m.trained) for m in messages]
    return digest(json.dumps(turns))
