"""Local sources: a file, a folder whose data files are read, or a pattern."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data.common.errors import UserError, nearest
from data.hub import HUB_ID
from data.readers.files import BINARY, JSON, KNOWN, TABLES, TEXT, extension, read_file
from data.readers.named_splits import chosen
from data.readers.rows import Raw, ReadOptions, Remark
from data.source_settings import Source

NOT_DATA = re.compile(
    r"(readme|licen[cs]e|notice|changelog|contributing)\b.*|dataset_(infos?|dict)\.json|state\.json", re.I
)
"""Files that stand next to data and are none."""

SHOWN = 6


def local_rows(source: Source, base_dir: Path, options: ReadOptions) -> Iterator[Raw] | None:
    """Rows of a local source, or None where its path can only be a hub id.

    Raises:
        UserError: there is no such file, or a setting is for another kind of source.
    """
    name, path = source.path, _path(source.path, base_dir)
    if path.is_dir() or path.is_file():
        _only_local(source, "folder" if path.is_dir() else "file")
    if path.is_file():
        _acts(source, path)
        return read_file(path, name, options)
    if path.is_dir():
        return _folder(source, path, options)
    if path.exists():
        raise UserError(f"{name} is no regular file but a pipe, socket or device; write its rows to a file")
    if any(c in name for c in "*?["):
        _only_local(source, "pattern")
        return _several(source, base_dir, options)
    if HUB_ID.fullmatch(name) is None or name[0] in "./~" or extension(path) or path.parent.is_dir():
        raise UserError(_missing(name, path))
    return None


def files_of(source: Source, base_dir: Path) -> list[Path] | None:
    """The files that a local source reads; None where it is none.

    Raises:
        UserError: it has none.
    """
    path = _path(source.path, base_dir)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _data_files(source, path)
    if not any(c in source.path for c in "*?["):
        return None
    return _of_split(source, _matching(source, base_dir))


def _path(source: str, base_dir: Path) -> Path:
    try:
        path = Path(base_dir, Path(source).expanduser())
        path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{source[:100]!r} is no usable file name ({error})") from error
    if "\x00" in source:
        raise UserError(f"{source[:100]!r} is no usable file name: it holds a NUL character")
    return path


def _only_local(source: Source, what: str) -> None:
    hub = {"config": source.config, "revision": source.revision}
    hub |= {} if what == "folder" else {"data_dir": source.data_dir}
    if given := [key for key, value in hub.items() if value is not None]:
        raise UserError(f"{source.path}: {', '.join(given)} is for hub data sets, and this is a {what}; remove it")


def _acts(source: Source, path: Path) -> None:
    """Refuse settings that do nothing for a file of this kind."""
    suffix = extension(path)
    tables = (*TABLES, ".xlsx", ".zip")
    given = {
        "delimiter": source.delimiter is not None and suffix not in (*TABLES, ".zip"),
        "header": source.header is not True and suffix not in tables,
        "encoding": source.encoding is not None and suffix in BINARY,
        "split": source.split is not None and suffix not in (*JSON, ".xlsx", ".zip"),
    }
    if wrong := next((key for key, bad in given.items() if bad), None):
        raise UserError(f"{source.path}: {wrong} has no effect on a file of type {suffix!r}; remove it")


def _folder(source: Source, path: Path, options: ReadOptions) -> Iterator[Raw]:
    data = _data_files(source, path)
    files = [(p, f"{source.path.rstrip('/')}/{p.relative_to(path)}") for p in data]
    yield from _files(source.path, files, replace(options, split=None))  # it has chosen the files


def _data_files(source: Source, path: Path) -> list[Path]:
    """The data files of a folder and those below it, of one split where there are several; text only where all is.

    Raises:
        UserError: there are none, or several splits of which none is chosen.
    """
    root = path / source.data_dir if source.data_dir else path
    if not root.is_dir():
        raise UserError(f"{source.path}: data_dir: there is no folder {source.data_dir} in it")
    below = sorted(p for p in root.rglob("*") if not p.is_dir() and not _hidden(p.relative_to(root)))
    data = [p for p in below if extension(p) in (*KNOWN, ".zip") and not NOT_DATA.fullmatch(p.name)]
    _all_files(source.path, data)
    if any(extension(p) not in TEXT for p in data):
        data = [p for p in data if extension(p) not in TEXT]
    if source.split is None and len(splits := _saved_splits(root)) > 1:
        there = ", ".join(splits)
        raise UserError(
            f"{source.path} holds several splits: {there}; choose one with `split`, such as split: {splits[0]}"
        )
    names = {p.relative_to(root).as_posix(): p for p in data}
    data = [names[name] for name in chosen(list(names), source.split, source.path)]
    if not data:
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:SHOWN]) or "nothing"
        raise UserError(f"{source.path} is a folder without a data file that can be read (it holds {inside})")
    return data


def _saved_splits(root: Path) -> list[str]:
    """The splits of a ``DatasetDict`` that ``save_to_disk`` wrote; none of any other folder."""
    try:
        found = json.loads((root / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


def _all_files(name: str, paths: list[Path]) -> None:
    """Refuse what is chosen as data and is no file.

    Raises:
        UserError: a link to nothing, a pipe, a socket or a device.
    """
    for path in paths:
        if not path.is_file():
            what = "a link to nothing" if path.is_symlink() and not path.exists() else "a pipe, socket or device"
            raise UserError(f"{name}: {path} is no regular file but {what}; remove it, or name the files")


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _files(name: str, files: list[tuple[Path, str]], options: ReadOptions) -> Iterator[Raw]:
    if len(files) > 1 or files[0][1] != name:
        names = [Path(one).name for _, one in files]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield name, Remark(f"{len(names)} file{'s' * (len(names) > 1)}: {', '.join(names[:SHOWN])}{more}")
    for path, one in files:
        yield from read_file(path, one, options)


def _several(source: Source, base_dir: Path, options: ReadOptions) -> Iterator[Raw]:
    matched = _matching(source, base_dir)
    paths = _of_split(source, matched)
    files = [(p, str(p.relative_to(base_dir) if p.is_relative_to(base_dir) else p)) for p in paths]
    folders = [p for p in matched if p.is_dir() and "**" not in source.path]
    return _matched(source.path, files, folders, replace(options, split=None))  # it has chosen the files


def _of_split(source: Source, matched: Sequence[Path]) -> list[Path]:
    """The files among what a pattern matches that are of the split; folders above all of them name none."""
    paths = [p for p in matched if not p.is_dir()]
    root = os.path.commonpath([p.parent for p in paths])
    names = {p.relative_to(root).as_posix(): p for p in paths}
    return [names[name] for name in chosen(list(names), source.split, source.path)]


def _matched(name: str, files: list[tuple[Path, str]], folders: list[Path], options: ReadOptions) -> Iterator[Raw]:
    """The rows of files that match a pattern; folders that match it too are told, since nothing of them is read."""
    if folders:
        names = ", ".join(p.name for p in folders[:SHOWN])
        more = f" and {len(folders) - SHOWN} more" if len(folders) > SHOWN else ""
        yield name, Remark(f"folders that match are not read: {names}{more}")
    yield from _files(name, files, options)


def _matching(source: Source, base_dir: Path) -> list[Path]:
    """All that a pattern matches, folders too.

    Raises:
        UserError: no usable pattern, no file matches it, or something that is no file.
    """
    anchor = Path(source.path).expanduser()
    root, pattern = (Path(anchor.anchor), str(anchor)[1:]) if anchor.is_absolute() else (base_dir, str(anchor))
    try:
        matched = sorted(root.glob(pattern))
    except (ValueError, NotImplementedError, IndexError, re.error, RecursionError) as error:
        raise UserError(f"{source.path} is no usable pattern ({error})") from error
    paths = [p for p in matched if not p.is_dir()]
    if not paths:
        only = f", only folders: {matched[0]}" if matched else ""
        raise UserError(f"no file matches {source.path} (searched {root}{only})")
    _all_files(source.path, paths)
    return matched


def why_absent(path: Path) -> str:
    """Why there is no file at a path, behind its name: a link to nothing, another kind of file, or none; with names
    that are near."""
    if path.is_symlink() and not path.exists():
        return f"is a link to {path.readlink()}, which is not there"
    if path.exists():
        return f"is {'a folder' if path.is_dir() else 'a pipe, socket or device'}, not a file"
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"is not there.{nearest(path.name, names)}"


def _missing(source: str, path: Path) -> str:
    if path.is_symlink():
        return f"{source} {why_absent(path)}; put the file there, or remove the link"
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    if folder != path.parent:
        return f"there is no file {source}: the folder {path.parent} does not exist (but {folder} does)"
    names = [p.name for p in folder.iterdir()]
    close = nearest(path.name, names)
    return f"there is no file {source} (expected {path}).{close or f' The folder holds {len(names)} other files.'}"
