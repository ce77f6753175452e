"""What a data file holds: formats, counts, lengths, bad rows, duplicates, and prompts that several files share.

Returns plain data and prints nothing. It reads files as the stages do, each once and row by row, but knows nothing of
recipes or splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from data.common.errors import UserError
from data.derive import KINDS
from data.doctor.duplicates import NEAR_SAMPLE, Duplicates
from data.doctor.entry import Check, Entry, Finding, of_row
from data.doctor.meant import Meant, Specials
from data.doctor.rankings import Judgements, Rankings
from data.doctor.sampling import Earliest, Histogram, Lowest, Seats, sample_of
from data.doctor.texts import Characters, Count, Languages, Lengths, Turns
from data.formats import FORMATS, Reject, Row, known_formats
from data.judgements import gathered, waiting_rows
from data.local_files import why_absent
from data.near_duplicates import near_duplicates
from data.parsed_rows import Parsed
from data.readers.files import is_text
from data.readers.rows import NOT_READ
from data.records import group_of, normalise
from data.source_counts import Rejected, rejected_rows
from data.source_settings import Source
from data.sources import parse_file
from data.storage.digests import digest
from data.storage.number_rows import NumberRows, same
from data.storage.store import Store
from data.tokens import bounded, check_speed, special_texts

EXAMPLES = 5
"""Places named for each overlap of two files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthStats:
    """Lengths of one kind of text, in one unit."""

    count: int
    mean: float
    median: float
    p95: float
    longest: int

    @classmethod
    def of(cls, found: Histogram) -> LengthStats:
        """The statistics of a histogram."""
        return cls(
            count=found.count, mean=found.mean, median=found.median, p95=found.quantile(0.95), longest=found.longest
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """One file. ``usable`` says for how many rows each kind of record can be made."""

    file: str
    rows: int
    formats: dict[str, int]
    columns: dict[str, int]
    unread: dict[str, int]  # columns that describe a row and are no part of prompts and answers
    usable: dict[str, int]
    bad: Sequence[Rejected]  # on disk, where they are many
    notes: dict[str, int]
    remarks: tuple[str, ...]
    duplicates: tuple[tuple[str, str], ...]  # place of a row, and of the same row before it; at most 1,000
    duplicate_rows: int
    repeated_prompts: int  # rows whose prompt came before, with another answer or the same
    answers: dict[int, int]  # rows by their number of answers
    roles: dict[str, int]  # messages by role
    turns: dict[int, int]  # rows by their number of turns
    languages: dict[str, int]  # of a sample
    scripts: dict[str, int]
    languages_of: str  # the sample
    tied_rows: int
    longer_is_better: float | None  # share of ordered pairs whose better response is the longer one, in characters
    longer_is_better_in_tokens: float | None  # the same in tokens, where they are counted
    characters: dict[str, LengthStats]
    tokens: dict[str, LengthStats]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Prompts (or, where there are none, texts) that two files share: a leak if one is trained on, one held out.

    ``nearly`` counts those of the second that are one of the first but for a few characters; ``sampled`` says of how
    many, where not all were compared.
    """

    first: str
    second: str
    shared: int
    examples: tuple[tuple[str, str], ...]
    nearly: int = 0
    near_examples: tuple[tuple[str, str], ...] = ()
    sampled: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCheck:
    """The outcome of ``check_files``.

    It is ``clean`` if there is no bad row, nothing left unread, and no prompt that files share.
    """

    files: tuple[FileCheck, ...]
    overlaps: tuple[Overlap, ...]

    @property
    def clean(self) -> bool:
        return not any(o.shared for o in self.overlaps) and not any(
            f.bad or any(NOT_READ in remark for remark in f.remarks) for f in self.files
        )

    def as_dict(self) -> dict[str, Any]:
        files = [asdict(replace(one, bad=())) | {"bad": [asdict(row) for row in one.bad]} for one in self.files]
        return {"files": files, "overlaps": [asdict(one) for one in self.overlaps], "clean": self.clean}


def check_files(
    files: Sequence[str | Path | Source], *, tokenizer: str | Path | Any | None = None, reading: Source | None = None
) -> DataCheck:
    """Read files and say what they hold.

    Args:
        files: paths of data files, or sources with the settings by which each is read.
        tokenizer: a folder with a tokenizer, or a loaded one, to count tokens as well, and to look for its special
            tokens in texts.
        reading: settings of how files given by their path are read, such as columns to leave out; its path is not used.

    Raises:
        UserError: a file is not there or cannot be read, no row of it fits a format, or there is no such tokenizer.
    """
    loaded = None if tokenizer is None else tokenizer_of(tokenizer)
    counted = None if loaded is None else _Counted(token_counter(loaded), special_texts(loaded))
    sources = [(file.path, file) if isinstance(file, Source) else (str(file), reading) for file in files]
    readers = [_read_file(Path(name), name, counted, own, compared=len(files) > 1) for name, own in sources]
    overlaps = [_overlap(a, b) for a, b in combinations(readers, 2)]
    return DataCheck(
        files=tuple(reader.outcome() for reader in readers),
        overlaps=tuple(o for o in overlaps if o.shared or o.nearly),
    )


@dataclass(frozen=True, slots=True)
class _Counted:
    """What is found by a tokenizer: how many tokens texts have, and which of them hold its special ones."""

    count: Count
    special: Sequence[str]


def _read_file(path: Path, name: str, counted: _Counted | None, reading: Source | None, compared: bool) -> _FileReader:
    if not path.is_file():
        raise UserError(f"{path} {why_absent(path)}")
    reader = _FileReader(name, counted, reading, compared)
    for parsed in parse_file(path, name, source=reading, remarks=reader.remarks):
        reader.add(parsed)
    if not reader.rows:
        raise UserError(f"{path}: holds no row, only a header or blank lines")
    if not reader.formats:
        columns = ", ".join(reader.columns) or "none"
        why = Counter(r.reason for r in reader.bad).most_common(1)[0][0]
        raise UserError(
            f"{path}: no row fits a known format; most often: {why} ({reader.bad[0].source}). "
            f"Columns found: {columns}. Known: {known_formats()}"
        )
    return reader


@dataclass(slots=True)
class _FileReader:
    """What is counted of one file while its rows go by."""

    file: str
    counted: _Counted | None
    reading: Source | None = None
    compared: bool = False  # with other files, for which prompts are remembered
    rows: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    usable: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(KINDS, 0)))
    bad: Store[Rejected] = field(default_factory=rejected_rows)
    remarks: list[str] = field(default_factory=list)
    tied: int = 0
    judged: Store[Parsed] = field(default_factory=waiting_rows)
    seats: Seats = field(default_factory=Seats)
    keys: NumberRows = field(default_factory=lambda: NumberRows(2))  # prompt or text, seat
    asked: Lowest[tuple[int, str]] = field(default_factory=lambda: Lowest(NEAR_SAMPLE))
    turns: Turns = field(default_factory=Turns)
    languages: Languages = field(default_factory=Languages)
    duplicates: Duplicates = field(init=False)
    lengths: Lengths = field(init=False)
    checks: tuple[Check, ...] = field(init=False)
    unread_by_shape: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = field(default_factory=dict)
    last: str = ""
    group: str | None = None
    one_group: bool = True

    def __post_init__(self) -> None:
        self.lengths = Lengths(None if self.counted is None else self.counted.count)
        self.duplicates = Duplicates(seats=Seats(self.seats.place))
        own = (self.lengths, self.turns, self.languages, Characters(), Meant(), self.duplicates)
        special = Specials(() if self.counted is None else self.counted.special)
        self.checks = (Rankings(Seats(self.seats.place)), Judgements(), *own, special)

    def add(self, parsed: Parsed) -> None:
        """Count one row, or one of several that a line holds."""
        self.rows += parsed.place != self.last
        self.last = parsed.place
        self.columns.update(parsed.columns)
        row = parsed.row
        if row is None:
            self.bad.append(Rejected(parsed.place, parsed.reason))
            return
        self.one_group = self.one_group and self.group in (None, row.group)
        self.group = row.group
        self.formats[parsed.format] += 1
        kind = (parsed.format, parsed.columns)
        if kind not in self.unread_by_shape:
            self.unread_by_shape[kind] = _unread(*kind, self.reading)
        self.unread.update(self.unread_by_shape[kind])
        self.notes.update(row.notes)
        self.tied += len(set(row.ranks)) < len(row.ranks)
        if row.judged and len(row.answers) == 1:
            self.judged.append(parsed)
        else:
            self._use(parsed, tuple(KINDS))
        entry = of_row(row, parsed.place)
        seat = self.seats.take(parsed.place)
        for check in self.checks:
            check.add(entry)
        if self.compared:
            self._remember(row, entry, seat)

    def _use(self, parsed: Parsed, kinds: Iterable[str]) -> None:
        assert parsed.row is not None
        for kind in kinds:
            try:
                self.usable[kind] += bool(KINDS[kind](parsed.row))
            except Reject:
                lines = kind == "prompts" and is_text(Path(self.file)) and bool(parsed.row.text)
                self.usable[kind] += lines

    def _remember(self, row: Row, entry: Entry, seat: int) -> None:
        texts = row.answers or (row.text,)
        own = ["prompt/" + group_of(row.messages)] if row.messages else ["text/" + normalise(t) for t in texts]
        keys = [digest(one) for one in own]
        for key in keys:
            self.keys.add(key, seat)
        together = keys[0] if len(keys) == 1 else digest(" ".join(map(str, keys)))
        self.asked.offer(together, lambda: (seat, entry.question or "\n".join(entry.answers)))

    def sample(self) -> list[tuple[str, str]]:
        """Place and prompt of the rows that are compared by MinHash."""
        return [(self.seats.place(seat), text) for seat, text in self.asked.kept]

    def _findings(self) -> Iterator[Finding]:
        for check in self.checks:
            yield from check.findings()
        if (n := self.formats.total()) > 1 and self.one_group:
            text = f"all {n:,} rows are of one group (their first user message, or data.group_by): no split parts them"
            yield Finding(kind="one group", count=n, text=text)

    def outcome(self) -> FileCheck:
        """All counts, once the file is read."""
        for kind in KINDS:
            for one in gathered(self.judged, kind):
                self._use(one, [kind])
        of = self.languages.facts()
        return FileCheck(
            file=self.file,
            rows=self.rows,
            formats=dict(self.formats),
            columns=dict(self.columns),
            unread=dict(self.unread),
            usable=dict(self.usable),
            bad=tuple(self.bad) if self.bad.file is None else self.bad,
            notes=dict(self.notes),
            remarks=tuple(self.remarks),
            duplicates=tuple(self.duplicates.rows.places),
            duplicate_rows=self.duplicates.rows.count,
            repeated_prompts=self.duplicates.prompts.count,
            answers=dict(sorted(self.turns.answers.items())),
            roles=dict(self.turns.roles.most_common()),
            turns=dict(sorted(self.turns.turns.items())),
            languages=of["languages"],
            scripts=of["scripts"],
            languages_of=of["languages of"],
            tied_rows=self.tied,
            longer_is_better=self.lengths.longer_is_better,
            longer_is_better_in_tokens=self.lengths.longer_is_better_in_tokens,
            characters={name: LengthStats.of(found) for name, found in self.lengths.characters.items()},
            tokens={name: LengthStats.of(found) for name, found in self.lengths.tokens.items()},
            findings=tuple(self._findings()),
        )


def _unread(form: str, columns: tuple[str, ...], reading: Source | None) -> tuple[str, ...]:
    """Columns of a row, by its own names, that its format leaves beside."""
    mapping = {} if reading is None else {their: our for our, their in reading.columns.items()}
    ours = {name: mapping.get(name, name) for name in columns}
    found = FORMATS[form].reads(frozenset(ours.values()))
    if found is None:  # the same names in capitals
        ours = {name: name.strip().lower() for name in columns}
        found = FORMATS[form].reads(frozenset(ours.values()))
    if found is None:  # read by settings of their own, as a known data set
        return ()
    return tuple(name for name, our in ours.items() if our not in found)


def _overlap(a: _FileReader, b: _FileReader) -> Overlap:
    shared, known = Earliest(EXAMPLES), [np.empty(0, np.uint64)]
    unlike = [0, 0]
    parts = max(a.keys.parts(), b.keys.parts())
    for first, second in zip(a.keys.grouped(parts), b.keys.grouped(parts), strict=True):
        first, second = first[same(first)[0]], second[same(second)[0]]
        unlike = [unlike[0] + len(first), unlike[1] + len(second)]
        _, x, y = np.intersect1d(first[:, 0], second[:, 0], assume_unique=True, return_indices=True)
        shared.extend(np.stack([first[x, 1], second[y, 1]], axis=1))
        known.append(np.intersect1d(second[y, 1], [seat for seat, _ in b.asked.kept]))
    one, other = a.sample(), b.sample()
    of = {b.seats.place(int(seat)) for seat in np.concatenate(known)}
    near = [(x, y) for y, x in near_duplicates(other, one) if y not in of]
    all_compared = unlike[0] <= len(one) and unlike[1] <= len(other)
    sampled = f"near ones of {sample_of(one, unlike[0])} prompts and {sample_of(other, unlike[1])} prompts"
    return Overlap(
        first=a.file,
        second=b.file,
        shared=shared.count,
        examples=tuple((a.seats.place(x), b.seats.place(y)) for x, y in shared.kept),
        nearly=len(near),
        near_examples=tuple(near[:EXAMPLES]),
        sampled="" if all_compared else sampled,
    )


def tokenizer_of(tokenizer: str | Path | Any) -> Any:
    """The tokenizer of a folder, or the one that is given.

    Raises:
        UserError: the folder is not there, or holds no tokenizer that loads.
    """
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
    return tokenizer


def token_counter(tokenizer: Any) -> Count:
    """A function that counts the tokens of texts."""
    check_speed(tokenizer)

    def count(texts: list[str]) -> list[int]:
        with bounded("".join(texts)):
            return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False).input_ids]

    return count
