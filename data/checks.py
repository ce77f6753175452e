"""What a data file holds: formats, counts, lengths, bad rows, duplicates, and prompts that several files share.

Returns plain data and prints nothing. It reads files as the stages do, but knows nothing of recipes or splits.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from data.common.errors import UserError, nearest
from data.derive import KINDS
from data.formats import Reject, Row, known_formats
from data.judgements import gathered
from data.readers.files import is_text
from data.records import group_of, normalise
from data.sources import Parsed, Rejected, parse_file
from data.tokens import bounded, check_speed

EXAMPLES = 5
"""Places named for each overlap of two files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of one kind of text, in one unit."""

    count: int
    mean: float
    median: float
    p95: float
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """One file. ``usable`` says for how many rows each kind of record can be made."""

    file: str
    rows: int
    formats: dict[str, int]
    columns: dict[str, int]
    usable: dict[str, int]
    bad: tuple[Rejected, ...]
    notes: dict[str, int]
    duplicates: tuple[tuple[str, str], ...]  # place of a row, and of the same row before it
    repeated_prompts: int  # rows whose prompt came before, with another response or the same
    answers: dict[int, int]  # rows by their number of responses
    tied_rows: int
    longer_is_better: float | None  # share of ordered pairs whose better response is the longer one, in characters
    longer_is_better_in_tokens: float | None  # the same in tokens, where they are counted
    characters: dict[str, Lengths]
    tokens: dict[str, Lengths]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Prompts (or, where there are none, texts) that two files share: a leak if one is trained on, one held out."""

    first: str
    second: str
    shared: int
    examples: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCheck:
    """The outcome of ``check_files``; ``clean`` if there is no bad row and no overlap."""

    files: tuple[FileCheck, ...]
    overlaps: tuple[Overlap, ...]

    @property
    def clean(self) -> bool:
        return not self.overlaps and not any(f.bad for f in self.files)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"clean": self.clean}


def check_files(files: Sequence[str | Path], *, tokenizer: str | Path | Any | None = None) -> DataCheck:
    """Read files and say what they hold.

    Args:
        files: paths of data files.
        tokenizer: a folder with a tokenizer, or a loaded one, to count tokens as well.

    Raises:
        UserError: a file is not there or cannot be read, no row of it fits a format, or there is no such tokenizer.
    """
    count_tokens = _token_counter(tokenizer) if tokenizer is not None else None
    checked, keys = [], []
    for file in files:
        parsed = _read(Path(file))
        checked.append(_check(str(file), parsed, count_tokens))
        keys.append(_keys(parsed))
    pairs = combinations(range(len(checked)), 2)
    overlaps = [_overlap(checked[i].file, checked[j].file, keys[i], keys[j]) for i, j in pairs]
    return DataCheck(files=tuple(checked), overlaps=tuple(o for o in overlaps if o.shared))


def _read(path: Path) -> list[Parsed]:
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        if path.exists():
            raise UserError(f"{path} is {'a folder' if path.is_dir() else 'a pipe, socket or device'}, not a file")
        raise UserError(f"{path} is not there.{nearest(path.name, names)}")
    parsed = parse_file(path, str(path))
    if not parsed:
        raise UserError(f"{path}: holds no row, only a header or blank lines")
    if not any(p.row for p in parsed):
        columns = ", ".join(dict.fromkeys(c for p in parsed for c in p.columns)) or "none"
        why = Counter(p.reason for p in parsed).most_common(1)[0][0]
        raise UserError(
            f"{path}: no row fits a known format; most often: {why} ({parsed[0].place}). Columns found: {columns}. "
            f"Known: {known_formats()}"
        )
    return parsed


def _check(file: str, parsed: Sequence[Parsed], count_tokens: Callable[[list[str]], list[int]] | None) -> FileCheck:
    good = [p for p in parsed if p.row is not None]
    rows = [p.row for p in good if p.row is not None]
    texts = {
        "prompt": ["\n".join(m.content for m in r.messages) for r in rows if r.messages],
        "answer": [a for r in rows for a in r.answers],
        "text": [r.text for r in rows if r.text],
    }
    texts = {name: found for name, found in texts.items() if found}
    seen: dict[Any, str] = {}
    duplicates = []
    for row in rows:
        first = seen.setdefault((row.messages, row.answers, row.ranks, row.text), row.source)
        if first != row.source:
            duplicates.append((row.source, first))
    prompts = [r.messages for r in rows if r.messages]
    return FileCheck(
        file=file,
        rows=len({p.place for p in parsed}),
        formats=dict(Counter(p.format for p in good)),
        columns=dict(Counter(c for p in parsed for c in p.columns)),
        usable=_usable(good, prompts_only=is_text(Path(file))),
        bad=tuple(Rejected(p.place, p.reason) for p in parsed if p.row is None),
        notes=dict(Counter(n for r in rows for n in r.notes)),
        duplicates=tuple(duplicates),
        repeated_prompts=len(prompts) - len(set(prompts)),
        answers=dict(sorted(Counter(len(r.answers) for r in rows if r.answers).items())),
        tied_rows=sum(len(set(r.ranks)) < len(r.ranks) for r in rows),
        longer_is_better=_longer_is_better(rows, lambda texts: [len(t) for t in texts]),
        longer_is_better_in_tokens=_longer_is_better(rows, count_tokens) if count_tokens else None,
        characters={name: _lengths([len(t) for t in found]) for name, found in texts.items()},
        tokens={name: _lengths(count_tokens(found)) for name, found in texts.items()} if count_tokens else {},
    )


def _usable(parsed: Sequence[Parsed], *, prompts_only: bool) -> dict[str, int]:
    counts = {}
    for kind, make in KINDS.items():
        counts[kind] = 0
        for row in (one.row for one in gathered(parsed, kind) if one.row is not None):
            try:
                counts[kind] += bool(make(row))
            except Reject:
                counts[kind] += kind == "prompts" and prompts_only and bool(row.text)
    return counts


def _longer_is_better(rows: Sequence[Row], length_of: Callable[[list[str]], list[int]]) -> float | None:
    """Share of the ordered pairs of unlike length, as ``length_of`` has it, whose better response is the longer one."""
    texts = [a for r in rows for a in r.answers]
    lengths = iter(length_of(texts) if texts else [])
    longer = []
    for r in rows:
        answers = [(next(lengths), rank) for rank in r.ranks]
        pairs = combinations(answers, 2)
        longer += [a > b for (a, rank), (b, other) in pairs if rank < other and a != b]
    return sum(longer) / len(longer) if longer else None


def _lengths(numbers: Sequence[int]) -> Lengths:
    ordered = sorted(numbers)
    return Lengths(
        count=len(ordered),
        mean=statistics.fmean(ordered),
        median=statistics.median(ordered),
        p95=ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        longest=ordered[-1],
    )


def _keys(parsed: Sequence[Parsed]) -> dict[str, str]:
    """Place of the first row with each prompt, and with each text of rows that have none."""
    keys: dict[str, str] = {}
    for p in parsed:
        if p.row is not None:
            texts = p.row.answers or (p.row.text,)
            own = ["prompt/" + group_of(p.row.messages)] if p.row.messages else ["text/" + normalise(t) for t in texts]
            for key in own:
                keys.setdefault(key, p.place)
    return keys


def _overlap(first: str, second: str, a: dict[str, str], b: dict[str, str]) -> Overlap:
    shared = [(a[key], b[key]) for key in a if key in b]
    return Overlap(first=first, second=second, shared=len(shared), examples=tuple(shared[:EXAMPLES]))


def _token_counter(tokenizer: str | Path | Any) -> Callable[[list[str]], list[int]]:
    if isinstance(tokenizer, (str, Path)):
        from transformers import AutoTokenizer

        folder = Path(tokenizer)
        if not folder.is_dir():
            raise UserError(f"tokenizer: there is no folder {folder}; give a local model or tokenizer folder")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:200]
            raise UserError(f"tokenizer: {folder} holds none that loads ({first})") from error
    loaded = tokenizer
    check_speed(loaded)

    def count(texts: list[str]) -> list[int]:
        with bounded("".join(texts)):
            return [len(ids) for ids in loaded(texts, add_special_tokens=False, verbose=False).input_ids]

    return count
