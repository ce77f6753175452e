"""Files, hub data sets and the built-in demo task to records.

Bad rows are collected with their place and reason; a source of which no row can be used is an error that names the
columns found and the formats known. Knows nothing of splits, tokenizers or models.
"""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator

from data.common.config import Config
from data.common.errors import UserError, nearest
from data.derive import KINDS
from data.formats import Reject, Row, assembled, hint, parse
from data.judgements import gathered
from data.readers import BadLine, Raw, TextUnit, extension, read_file
from data.records import Message
from data.refusals import Lost, nothing_usable

DEMO_TASK = "demo-task"
DEMO_ROWS = {"demonstrations": 1500, "prompts": 4000, "documents": 12_000}
"""Rows of the demo task where the source does not say (``demo-task?rows=500``)."""

MAX_DEMO_ROWS = 1_000_000

_HUB = re.compile(r"(hub:)?(?P<id>[\w.-]+/[\w.-]+)(:(?P<split>[\w.+-]+(\[.*\])?))?")


class DataConfig(Config):
    """Where the records come from, and what is held out.

    A source is a path (relative to the recipe, also with ``*``), a hub id (``org/name``, ``hub:org/name:split``) or
    ``demo-task``; one or a list.
    """

    demonstrations: tuple[str, ...] = Field((), description="prompts with good answers, for SFT")
    rankings: tuple[str, ...] = Field((), description="prompts with ranked answers, for the reward model")
    prompts: tuple[str, ...] = Field((), description="prompts for PPO and evaluation; default: those of the others")
    documents: tuple[str, ...] = Field((), description="text for pretraining a base; default: that of the others")
    held_out: float | str = Field(0.1, description="share of the groups kept from all training, or a file of prompts")
    group_by: str | None = Field(None, description="column that names a row's group; default: its first user message")
    annotators: Literal["keep", "share", "mean"] = Field(
        "keep", description="several people's rankings of the same answers: each counts 1, each 1/m, or their mean rank"
    )
    text_unit: TextUnit = Field("auto", description="what a document is in a text file")
    ignore: tuple[str, ...] = Field(
        (),
        description="columns, or patterns such as `note_*`, that no format has to read; others must be read",
    )

    @field_validator("ignore", mode="before")
    @classmethod
    def _one_column_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("demonstrations", "rankings", "prompts", "documents", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("held_out")
    @classmethod
    def _share(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 <= value < 1:
            raise ValueError(f"held_out {value} must be a share from 0 to under 1, or the path of a file of prompts")
        return value


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is not used: ``source`` is ``file:line``."""

    source: str
    reason: str


@dataclass(slots=True)
class Loaded:
    """What a source held: records of the kind asked for, rows left out, and how often each format and note came."""

    records: list[Any] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    read: int = 0  # rows of the files, the rejected ones included

    def add(self, other: Loaded) -> None:
        self.records += other.records
        self.rejected += other.rejected
        self.formats += other.formats
        self.notes += other.notes
        self.columns += other.columns
        self.read += other.read


class _Counted:
    """Rows as they are read, counted before several become one, or one becomes several."""

    def __init__(self, raws: Iterator[Raw]) -> None:
        self.raws, self.count = raws, 0

    def __iter__(self) -> Iterator[Raw]:
        for raw in self.raws:
            self.count += 1
            yield raw


def load_records(
    sources: Iterable[str],
    kind: str,
    config: DataConfig,
    *,
    seed: int,
    base_dir: Path,
    known: Collection[str] | None = None,
) -> Loaded:
    """Return the records of ``kind`` (``demonstrations``, ``rankings``, ``prompts`` or ``documents``) of all sources.

    Args:
        known: columns that a user's functions read, ``*`` for all of them, which counts for prompts alone. Where
            nobody says, those of prompts are all read, since they are what functions are given.

    Raises:
        UserError: a source is not there, cannot be read, has no row that can be used, or columns that nothing reads.
    """
    if known is None:
        known = ("*",) if kind == "prompts" else ()
    known = [name for name in known if name != "*" or kind == "prompts"]
    loaded = Loaded()
    for source in sources:
        if source.partition("?")[0] == DEMO_TASK:
            made = _demo_task(source, kind, seed)
            loaded.records += made
            loaded.read += len(made)
            continue
        raws = _Counted(read_source(source, base_dir, _unit(kind, config)))
        rows = _parsed(raws, config.group_by, ignore=config.ignore, known=known)
        loaded.add(_of_kind(rows, kind, source))
        loaded.read += raws.count
    return loaded


def _unit(kind: str, config: DataConfig) -> TextUnit:
    return "line" if kind == "prompts" and config.text_unit == "auto" else config.text_unit


def read_source(source: str, base_dir: Path, text_unit: TextUnit = "auto") -> Iterator[Raw]:
    """Yield (place, raw row) of a path, a path with ``*`` or a hub id.

    Raises:
        UserError: it is none of these, or cannot be read.
    """
    if not source.startswith("hub:"):
        path = _path(source, base_dir)
        if path.is_file():
            return read_file(path, source, text_unit)
        if path.exists() and not path.is_dir():
            raise UserError(f"{source} is no regular file but a pipe, socket or device; write its rows to a file")
        if path.is_dir():
            inside = sorted(p.name for p in path.iterdir() if p.is_file())[:6]
            raise UserError(f"{source} is a folder; name its files, e.g. '{source}/*.jsonl' (it holds {inside})")
        if any(c in source for c in "*?["):
            return _several(source, base_dir, text_unit)
        hub = _HUB.fullmatch(source)
        if hub is None or source[0] in "./~" or extension(path) or path.parent.is_dir():
            raise UserError(_missing(source, path))
    return _hub(source)


def _path(source: str, base_dir: Path) -> Path:
    try:
        path = Path(base_dir, Path(source).expanduser())
        path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{source[:100]!r} is no usable file name ({error})") from error
    if "\x00" in source:
        raise UserError(f"{source[:100]!r} is no usable file name: it holds a NUL character")
    return path


def _several(source: str, base_dir: Path, text_unit: TextUnit) -> Iterator[Raw]:
    anchor = Path(source).expanduser()
    root, pattern = (Path(anchor.anchor), str(anchor)[1:]) if anchor.is_absolute() else (base_dir, str(anchor))
    try:
        paths = sorted(p for p in root.glob(pattern) if p.is_file())
    except (ValueError, NotImplementedError, IndexError, re.error, RecursionError) as error:
        raise UserError(f"{source} is no usable pattern ({error})") from error
    if not paths:
        raise UserError(f"no file matches {source} (looked in {root})")
    for path in paths:
        yield from read_file(
            path, str(path.relative_to(base_dir) if path.is_relative_to(base_dir) else path), text_unit
        )


def _missing(source: str, path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    if folder != path.parent:
        return f"there is no file {source}: the folder {path.parent} does not exist (but {folder} does)"
    names = [p.name for p in folder.iterdir()]
    close = nearest(path.name, names)
    return f"there is no file {source} (looked for {path}).{close or f' The folder holds {len(names)} other files.'}"


def _hub(source: str) -> Iterator[Raw]:
    found = _HUB.fullmatch(source)
    if found is None:
        raise UserError(f"{source!r} is no hub id: write 'hub:organisation/name' or 'hub:organisation/name:split'")
    split = found["split"] or "train"
    if not _hub_is_known():
        raise UserError(
            f"{source} is no file, and there is no network to look for it on the hub: give the path of a file "
            "(or set HF_HUB_OFFLINE=1 if the data set is in the local cache)"
        )
    import datasets

    try:
        table = datasets.load_dataset(found["id"], split=split)
    except Exception as error:  # the hub's errors have no common class
        first = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{source} is neither a file nor a hub data set that can be reached ({type(error).__name__}: {first}); "
            "check the name and the network, or download it and give the path"
        ) from error
    return ((f"{source}, row {i}", dict(row)) for i, row in enumerate(table, start=1))


def _hub_is_known() -> bool:
    """Whether the hub's name resolves: without a network its client retries for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE") or urllib.request.getproxies():
        return True
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _demo_task(source: str, kind: str, seed: int) -> list[Any]:
    from data.demo import task as demo_task

    options = dict(parse_qsl(source.partition("?")[2], keep_blank_values=True))
    unknown = set(options) - {"rows", "seed"}
    wrong = [f"{k}={v[:20]}" for k, v in options.items() if not re.fullmatch("[0-9]{1,18}", v)]
    if unknown or wrong:
        raise UserError(f"{source}: {', '.join(unknown or wrong)} is wrong; write e.g. '{DEMO_TASK}?rows=500&seed=1'")
    if kind not in DEMO_ROWS:
        raise UserError(
            f"data.{kind}: {DEMO_TASK} has none ready; add the stage `rankings`, which samples and ranks answers"
        )
    if int(options.get("rows", 0)) > MAX_DEMO_ROWS:
        raise UserError(f"{source}: rows={options['rows']} is too many (at most {MAX_DEMO_ROWS:,})")
    rows, seed = int(options.get("rows", DEMO_ROWS[kind])), int(options.get("seed", seed))
    return list(getattr(demo_task, kind)(rows, seed))


@dataclass(frozen=True, slots=True)
class Parsed:
    """A row with its format, or why it has none (``error``, where its format says so); ``columns`` are its keys."""

    place: str
    format: str = ""
    row: Row | None = None
    reason: str = ""
    columns: tuple[str, ...] = ()
    error: Reject | None = None


def _parsed(
    raws: Iterable[Raw], group_by: str | None, *, ignore: Collection[str] = (), known: Collection[str] = ()
) -> Iterator[Parsed]:
    for place, raw in assembled(raws):
        if isinstance(raw, BadLine):
            yield Parsed(place, reason=raw.reason)
            continue
        columns = tuple(map(str, raw)) if isinstance(raw, Mapping) else ()
        try:
            name, rows = parse(raw, place, group_by, ignore=ignore, known=known)
        except Reject as error:
            yield Parsed(place, reason=str(error), columns=columns, error=error)
            continue
        for row in rows:
            yield Parsed(place, name, row, columns=columns)


def parse_file(path: Path, name: str, *, group_by: str | None = None, text_unit: TextUnit = "auto") -> list[Parsed]:
    """Return every row of a file as it was understood, for checks."""
    return list(_parsed(read_file(path, name, text_unit), group_by))


def _of_kind(rows: Iterable[Parsed], kind: str, source: str) -> Loaded:
    loaded, lost, other = Loaded(), Lost(), None
    for parsed in gathered(rows, kind):
        loaded.columns.update(parsed.columns)
        if parsed.row is None:
            loaded.rejected.append(Rejected(parsed.place, parsed.reason))
            if parsed.error is not None:
                lost.add(parsed.place, parsed.error)
            continue
        try:
            records = KINDS[kind](_text_as_prompt(parsed.row) if kind == "prompts" else parsed.row)
        except Reject as error:
            loaded.rejected.append(Rejected(parsed.place, str(error)))
            other = other or parsed.row
            continue
        loaded.records += records
        loaded.formats[parsed.format] += 1
        loaded.notes.update(parsed.row.notes)
    if lost.columns:
        raise UserError(lost.message(source))
    if not loaded.records:
        rejected = ((r.source, r.reason) for r in loaded.rejected)
        raise UserError(nothing_usable(source, kind, rejected, loaded.columns, hint(other, kind) if other else ""))
    return loaded


def _text_as_prompt(row: Row) -> Row:
    """A line of a text file is a prompt where prompts are asked for; its group is the same either way."""
    return replace(row, messages=(Message(role="user", content=row.text),), text="") if row.text else row
