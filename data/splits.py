"""The records of a run, split once for all stages into training and held out.

The unit is the group (a prompt's first user message; see ``records.group_of``): a stable hash of it, the same on every
machine and for every seed, decides against the share. What is held out is in no stage's training, pretraining
included:

- records without a prompt that share a response or a text with each other are one group, however long the chain;
- a plain document that contains a held-out prompt of eight words or more (or the whole of it, if it is all the
  document says) is held out with it;
- what still occurs on both sides, which takes groups named by the user, is an error.

Knows nothing of tokenizers or models.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import regex

from data.annotators import merged
from data.common.errors import UserError
from data.derive import as_documents
from data.formats import Row
from data.records import Demonstration, Document, Prompt, RankedAnswers, group_of, normalise
from data.source_settings import DataConfig, Source
from data.sources import Rejected, SourceCount, check_ignored, load_records

T = TypeVar("T")
PARTS = ("documents", "demonstrations", "rankings", "prompts")
_SALT = "trivet/split/1"
_SHINGLE = 8


@dataclass(frozen=True, slots=True)
class Split(Generic[T]):
    """Records for training, and those that are kept from it."""

    train: tuple[T, ...] = ()
    held_out: tuple[T, ...] = ()

    def __len__(self) -> int:
        return len(self.train) + len(self.held_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """All records of a run.

    ``notes`` counts what was changed or left out on the way, for the user to see; ``read`` the rows of the files of
    each part, and those of them that were rejected; ``counts`` are those of every source; ``remarks`` are what
    was found out about files, such as an encoding.
    """

    documents: Split[Document] = Split()
    demonstrations: Split[Demonstration] = Split()
    rankings: Split[RankedAnswers] = Split()
    prompts: Split[Prompt] = Split()
    rejected: tuple[Rejected, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)
    read: dict[str, tuple[int, tuple[Rejected, ...]]] = field(default_factory=dict)
    counts: tuple[SourceCount, ...] = ()
    remarks: tuple[str, ...] = ()

    def fingerprint(self, part: str) -> str:
        """sha256 over the records of a part, both sides, or of everything ``held_out``; where they lie is no matter.

        Raises:
            ValueError: no such part.
        """
        if part not in (*PARTS, "held_out"):
            raise ValueError(f"no part {part!r}: {', '.join(PARTS)} or held_out")
        digest = hashlib.sha256()
        for name in PARTS if part == "held_out" else (part,):
            split: Split[Any] = getattr(self, name)
            for side, records in (("train", split.train), ("held_out", split.held_out)):
                if part in (name, side):
                    digest.update(f"{name}/{side}/{len(records)}\n".encode())
                    for record in records:
                        digest.update(json.dumps(_content(record), sort_keys=True, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    def columns_fingerprint(self, part: str) -> str:
        """sha256 over the other columns of a part's prompts, in order: what a user's functions are given of them."""
        digest = hashlib.sha256()
        split: Split[Any] = getattr(self, part)
        for record in (*split.train, *split.held_out):
            prompt = _prompt_of(record)
            text = json.dumps({} if prompt is None else prompt.columns, sort_keys=True, default=str)
            digest.update(text.encode() + b"\n")
        return digest.hexdigest()


def is_held_out(group: str, share: float) -> bool:
    """Whether a group is held out at this share: the same answer everywhere, and at a larger share never less."""
    digest = hashlib.sha256(f"{_SALT}/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def in_holdout(group: str, share: float) -> bool:
    """Whether a group's rankings are for the held-out reward model at this share; no prompt is on both sides."""
    return is_held_out(f"watcher/{group}", share)


def load_corpus(config: DataConfig, *, seed: int, base_dir: Path, known: Collection[str] | None = None) -> Corpus:
    """Read every source, split by group and check for leaks.

    Args:
        config: sources and what to hold out.
        seed: of the demo task's text; the split does not depend on it.
        base_dir: what relative paths start from.
        known: columns that the run's functions read (see ``load_records``).

    Raises:
        UserError: a source is wrong, nothing is left for training, or a held-out prompt is in a training part.
    """
    records: dict[str, list[Any]] = {}
    rejected: list[Rejected] = []
    notes: Counter[str] = Counter()
    read: dict[str, tuple[int, tuple[Rejected, ...]]] = {}
    counts: list[SourceCount] = []
    remarks: list[str] = []
    columns: Counter[str] = Counter()
    for part in PARTS:
        loaded = load_records(getattr(config, part), part, config, seed=seed, base_dir=base_dir, known=known)
        records[part], rejected = loaded.records, rejected + loaded.rejected
        read[part] = (loaded.read, tuple(loaded.rejected))
        notes += loaded.notes
        columns += loaded.columns
        counts, remarks = counts + loaded.counts, remarks + loaded.remarks
    records["rankings"] = merged(records["rankings"], config.annotators)
    held_file: list[Prompt] = []
    if not isinstance(config.held_out, float):
        loaded = load_records([config.held_out], "prompts", config, seed=seed, base_dir=base_dir, known=known)
        held_file = _unique(loaded.records, notes)
        rejected += loaded.rejected
        read["held_out"] = (loaded.read, tuple(loaded.rejected))
        counts += [replace(count, part="held_out", held_out=count.used) for count in loaded.counts]
        remarks += loaded.remarks
        columns += loaded.columns
    check_ignored("data.ignore", config.ignore, columns)
    named_prompts = records["prompts"]
    records["prompts"] = _unique(named_prompts, notes)
    _count(counts, "prompts", "repeated", named_prompts, minus=records["prompts"])
    _derive(records)
    _join_promptless(records)
    held = _held_groups(records, held_file, config.held_out)
    splits = {part: _split(records[part], held) for part in PARTS}
    if held_file:
        splits["prompts"] = Split(splits["prompts"].train, tuple(held_file))
    splits["documents"] = _without_held_prompts(splits, notes)
    for part in PARTS:
        if getattr(config, part) and not splits[part].train:
            fix = "the prompts of the file data.held_out cover them all" if held_file else "lower data.held_out"
            raise UserError(
                f"data.{part}: all {len(splits[part])} records are held out, none is left to train on; {fix}"
            )
    _check_leaks(splits)
    splits["prompts"] = _same_columns(splits["prompts"])
    for part in PARTS:
        _count(counts, part, "held_out", records[part], minus=splits[part].train)
    for count in counts:
        count.places.clear()
    return Corpus(
        **splits,
        rejected=tuple(dict.fromkeys(rejected)),
        notes=dict(notes),
        read=read,
        counts=tuple(counts),
        remarks=tuple(remarks),
    )


def _count(
    counts: Sequence[SourceCount], part: str, name: str, records: Iterable[Any], minus: Iterable[Any] = ()
) -> None:
    """Set how many of the records, less those of ``minus``, came from each source of a part."""
    found = Counter(_source(r) for r in records)
    found.subtract(_source(r) for r in minus)
    for count in counts:
        if count.part == part:
            setattr(count, name, sum(found[place] for place in count.places if place in found))


# ---- one view on every kind of record --------------------------------------------------------------------------------


def _prompt_of(record: Any) -> Prompt | None:
    return record if isinstance(record, Prompt) else getattr(record, "prompt", None)


def _group(record: Any) -> str:
    prompt = _prompt_of(record)
    return prompt.group if prompt is not None else record.group


def _source(record: Any) -> str:
    prompt = _prompt_of(record)
    return (prompt if prompt is not None else record).source


def _texts(record: Any) -> list[str]:
    """What a record without a prompt says: its responses, or its text."""
    if isinstance(record, Document):
        return [record.text]
    return [record.answer] if isinstance(record, Demonstration) else list(getattr(record, "answers", ()))


def _regroup(record: Any, group: str) -> Any:
    if isinstance(record, (Document, Prompt)):
        return replace(record, group=group)
    return replace(record, prompt=replace(record.prompt, group=group))


def _content(record: Any) -> dict[str, Any]:
    content = asdict(record)
    asked = content.get("prompt", content)
    if (prompt := _prompt_of(record)) is not None:
        asked["messages"] = [m.as_dict() for m in prompt.messages]
    asked.pop("source", None)
    asked.pop("columns", None)  # of no weight but to functions: see ``columns_fingerprint``
    if content.get("weight") == 1.0:
        del content["weight"]
    return content


def _unique(prompts: Sequence[Prompt], notes: Counter[str]) -> list[Prompt]:
    """Each prompt once, the first of its kind."""
    first: dict[Any, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.messages, prompt)
    if len(first) < len(prompts):
        notes["repeated prompts dropped"] += len(prompts) - len(first)
    return list(first.values())


# ---- groups ----------------------------------------------------------------------------------------------------------


def _derive(records: dict[str, list[Any]]) -> None:
    """Prompts and documents where none are named: those of the demonstrations and rankings."""
    answered = [*records["demonstrations"], *records["rankings"]]
    if not records["prompts"]:
        records["prompts"] = _unique([r.prompt for r in answered if r.prompt.messages], Counter())
    if not records["documents"]:
        texts: dict[str, Document] = {}
        for r in answered:
            answers = (r.answer,) if isinstance(r, Demonstration) else r.answers
            row = Row(messages=r.prompt.messages, answers=answers, group=r.prompt.group, source=r.prompt.source)
            for document in as_documents(row):
                texts.setdefault(document.text, document)
        records["documents"] = list(texts.values())


def _join_promptless(records: dict[str, list[Any]]) -> None:
    """Give records without a prompt that share a text one group, across kinds (union-find over texts)."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    # A group is a node as well: transcripts of one row keep together, and so do groups that the user named.
    nodes: dict[int, list[str]] = {}
    for part in PARTS:
        for record in records[part]:
            prompt = _prompt_of(record)
            if prompt is None or not prompt.messages:
                nodes[id(record)] = ["group/" + _group(record), *("text/" + normalise(t) for t in _texts(record))]
    for own in nodes.values():
        first, *others = sorted({root(n) for n in own})
        for other in others:
            parent[other] = first  # the smaller name wins: the same whatever the order
    for part in PARTS:
        for i, record in enumerate(records[part]):
            if id(record) in nodes and (top := root(nodes[id(record)][0])) != "group/" + _group(record):
                records[part][i] = _regroup(record, top.removeprefix("group/"))


def _held_groups(records: dict[str, list[Any]], held_file: list[Prompt], held_out: float | str | Source) -> set[str]:
    groups = {_group(r) for part in PARTS for r in records[part]}
    if isinstance(held_out, float):
        return {g for g in groups if is_held_out(g, held_out)}
    asked = {group_of(p.messages) for p in held_file}
    held = {p.group for p in held_file} | asked
    for part in PARTS:
        for record in records[part]:
            prompt = _prompt_of(record)
            if prompt is not None and prompt.messages and group_of(prompt.messages) in asked:
                held.add(prompt.group)
    return held


def _same_columns(split: Split[Prompt]) -> Split[Prompt]:
    """Every prompt with the columns of all, None where it has no value: each batch then offers the same names."""
    names = dict.fromkeys(name for p in (*split.train, *split.held_out) for name in p.columns)
    blank = dict.fromkeys(names)

    def filled(p: Prompt) -> Prompt:
        return p if len(p.columns) == len(blank) else replace(p, columns=blank | dict(p.columns))

    return Split(tuple(map(filled, split.train)), tuple(map(filled, split.held_out)))


def _split(records: Iterable[Any], held: set[str]) -> Split[Any]:
    train: list[Any] = []
    held_out: list[Any] = []
    for record in records:
        (held_out if _group(record) in held else train).append(record)
    return Split(tuple(train), tuple(held_out))


# ---- leaks -----------------------------------------------------------------------------------------------------------

_WORD = regex.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[\w\p{M}]+")


def _words(text: str) -> list[str]:
    """Words, or characters of scripts that do not part them."""
    return _WORD.findall(normalise(text))


def _without_held_prompts(splits: dict[str, Split[Any]], notes: Counter[str]) -> Split[Document]:
    """Move documents that contain a held-out prompt to the held-out side."""
    starts: dict[tuple[str, ...], list[str]] = {}
    whole: set[str] = set()
    for prompt in _held_prompts(splits):
        for message in prompt.messages:
            words = _words(message.content)
            if message.role == "user" and len(words) >= _SHINGLE:
                starts.setdefault(tuple(words[:_SHINGLE]), []).append(" ".join(words))
            elif message.role == "user":
                whole.add(" ".join(words))
    documents = splits["documents"]

    def leaks(document: Document) -> bool:
        words = _words(document.text)
        text = " ".join(words)
        shingles = (tuple(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1))
        return text in whole or any(p in text for s in shingles if s in starts for p in starts[s])

    moved = [d for d in documents.train if leaks(d)] if starts or whole else []
    if not moved:
        return documents
    notes["documents held out because they contain a held-out prompt"] += len(moved)
    out = {id(d) for d in moved}
    return Split(tuple(d for d in documents.train if id(d) not in out), (*documents.held_out, *moved))


def _held_prompts(splits: dict[str, Split[Any]]) -> Iterator[Prompt]:
    seen: set[Any] = set()
    for part in PARTS:
        for record in splits[part].held_out:
            prompt = _prompt_of(record)
            if prompt is not None and prompt.messages not in seen:
                seen.add(prompt.messages)
                yield prompt


def _check_leaks(splits: dict[str, Split[Any]]) -> None:
    """Refuse a held-out prompt, or a held-out response without one, that is in a training part."""
    held: dict[str, tuple[str, str]] = {}
    for part in PARTS:
        for record in splits[part].held_out:
            for key in _leak_keys(record):
                held.setdefault(key, (part, _source(record)))
    for part in PARTS:
        for record in splits[part].train:
            for key in _leak_keys(record):
                if key in held:
                    other, source = held[key]
                    what = "prompt" if key.startswith("prompt/") else "text"
                    raise UserError(
                        f"leak: the {what} of {_source(record) or part} (training, data.{part}) is also held out, at "
                        f"{source or other} (data.{other}): "
                        f"{_excerpt(record)!r}. Give both the same group (data.group_by), or remove one"
                    )


def _leak_keys(record: Any) -> list[str]:
    """What must not be on both sides. A document stands for itself only: its prompt is searched for as text."""
    prompt = _prompt_of(record)
    if prompt is not None and prompt.messages:
        return ["prompt/" + group_of(prompt.messages)]
    return ["text/" + normalise(t) for t in _texts(record)]


def _excerpt(record: Any) -> str:
    prompt = _prompt_of(record)
    text = prompt.text if prompt is not None and prompt.messages else (_texts(record) or [""])[0]
    return text[:60] + ("..." if len(text) > 60 else "")
