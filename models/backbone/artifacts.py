"""Finished stages on disk: a folder whose ``manifest.json`` is written last, and whose every file is hashed.

A stage writes into a hidden folder next to its final place; an atomic rename publishes it. Weights are safetensors,
everything else is JSON: nothing here is ever unpickled. This module knows nothing of what a stage computes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TextIO

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from data.common.errors import UNWRITABLE, UserError
from data.common.patience import patience
from data.common.redaction import redacted
from data.common.strict_json import read_object
from data.storage.file_hashes import sha256_of

FORMAT = 1
MANIFEST = "manifest.json"
LOGS = {"metrics.jsonl"}  # listed separately: they hold times and memory, which differ between runs of one key


def confined(name: str) -> str:
    """A relative file name that stays in its folder.

    Raises:
        ValueError: it does not.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise ValueError("names a file outside its folder")
    return name


class _File(BaseModel):
    model_config = ConfigDict(strict=True)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class _Manifest(BaseModel):
    """The shape of a manifest: what is read from one before anything else uses it."""

    model_config = ConfigDict(strict=True, extra="allow")
    format: Literal[1]
    key: str = Field(min_length=1, max_length=200)
    files: dict[Annotated[str, AfterValidator(confined)], _File]
    logs: dict[Annotated[str, AfterValidator(confined)], _File] = {}
    stage: str = ""
    parents: dict[str, str] = {}
    described: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    base_fingerprint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished stage."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What its stage depended on, as a hash."""
        return str(self.manifest["key"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What its stage has found."""
        return self.manifest.get("metrics", {})


def check_destination(path: Path, option: str) -> None:
    """Check whether a file could be written, before the work that fills it.

    Raises:
        UserError: its folder is missing or cannot be written, or something else than a file is there.
    """
    try:
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
        wrong = "" if stat.S_ISREG(mode) or stat.S_ISCHR(mode) else "is there and is no regular file"
        if not wrong and not path.parent.is_dir():
            wrong = "its folder does not exist" if not path.parent.exists() else f"{path.parent} is no folder"
        if not wrong and not os.access(path.parent, os.W_OK) and not stat.S_ISCHR(mode):
            wrong = f"{path.parent} cannot be written"
    except OSError as error:
        wrong = str(error.strerror)
    if wrong:
        raise UserError(f"{path}: {wrong}; choose another {option}")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[TextIO]:
    """A text file to be written, which readers see whole or not at all, whatever ends the writing.

    A character device such as ``/dev/null`` is written to, never replaced.

    Raises:
        OSError: it cannot be written, with the file's name.
    """
    device = path.exists() and stat.S_ISCHR(path.stat().st_mode)
    partial = path if device else path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            if not device:
                os.fsync(file.fileno())
        if not device:
            os.replace(partial, path)
    except BaseException as error:
        if not device:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let a library that writes to ``path`` fail with the file's name, where it speaks of a full disk without one.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    try:
        yield
    except Exception as error:
        named = isinstance(error, OSError) and error.filename is not None
        number = next((n for n in UNWRITABLE if os.strerror(n) in str(error)), None)
        if named or number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new one, never a part."""
    with atomic_file(path) as file:
        file.write(text)


def replace_text(path: Path, text: str, say: Callable[[str], None] = lambda _: None) -> None:
    """Write a text file; another one that was there becomes the previous one, which ``say`` reports."""
    if path.is_file() and path.read_bytes() != text.encode(errors="surrogatepass"):
        keep_previous(path, say)
    write_atomic(path, text)


def keep_previous(path: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """Keep a file that is about to be replaced as the previous one, which ``say`` reports."""
    before = previous_folder(path)
    aside = before.with_name(f"{before.name}.partial")
    aside.unlink(missing_ok=True)  # of a process that was killed
    try:
        os.link(path, aside)
    except OSError:  # a file system without links
        shutil.copyfile(path, aside)
    os.replace(aside, before)
    aside.unlink(missing_ok=True)  # where both are links of one file, as a killed process leaves them
    say(f"{path.name}: another one was there; it is kept as {before.name}")


def write_json(path: Path, value: Any, sort_keys: bool = True) -> None:
    """Write a file whole or not at all, indented."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n")


def partial_folder(final: Path) -> Path:
    """The hidden folder that a stage writes into."""
    return final.with_name(f".{final.name}.partial")


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below a folder, by relative path; the manifest and logs are left out."""
    names = (str(f.relative_to(folder)) for f in sorted(folder.rglob("*")) if f.is_file())
    return {name: _entry(folder / name) for name in names if name not in LOGS | {MANIFEST}}


def _entry(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def publish(partial: Path, final: Path, manifest: dict[str, Any], scratch: str | None = None) -> Artifact:
    """Write the manifest as the folder's last file and rename the folder into place, replacing an older artifact.

    ``scratch`` is a folder in it that is no part of the artifact; it goes once the manifest is on the disk, so that a
    full disk loses nothing.
    """
    files = {n: entry for n, entry in files_of(partial).items() if Path(n).parts[0] != scratch}
    logs = {name: _entry(partial / name) for name in sorted(LOGS) if (partial / name).is_file()}
    manifest = {"format": FORMAT, **redacted(manifest), "files": files, "logs": logs}
    write_json(partial / MANIFEST, manifest)
    if scratch is not None:
        shutil.rmtree(partial / scratch, ignore_errors=True)
    put_in_place(partial, final)
    return Artifact(path=final, manifest=manifest)


def finish_publishing(partial: Path, final: Path, key: str, scratch: str) -> bool:
    """Whether a process died in ``publish`` with all done but the rename; then that is done now."""
    found = read_artifact(partial)
    if found is None or found.key != key:
        return False
    shutil.rmtree(partial / scratch, ignore_errors=True)
    if problems(found):
        return False
    put_in_place(partial, final)
    return True


def previous_folder(final: Path) -> Path:
    """The hidden folder with the artifact that the one at ``final`` replaced."""
    return final.with_name(f".{final.name}.previous")


def _old_folder(final: Path) -> Path:
    """Where an artifact stands for the moment between two renames."""
    return final.with_name(f".{final.name}.old")


def _waiting_folder(final: Path) -> Path:
    """Where a previous artifact stands while the one in place makes room for it."""
    return final.with_name(f".{final.name}.restored")


def put_in_place(new: Path, final: Path) -> None:
    """Rename a complete folder into place; what it replaces becomes the one previous artifact.

    A kill between two of the renames loses nothing: ``settle`` finishes what was started.
    """
    settle(final)
    if final.exists():
        os.replace(final, _old_folder(final))
    os.replace(new, final)
    settle(final)


def settle(final: Path) -> None:
    """Bring a replacement to an end that was killed between its renames.

    With a new artifact in place the replaced one becomes the previous one; without, it goes back to its place.
    """
    old, previous, waiting = _old_folder(final), previous_folder(final), _waiting_folder(final)
    if old.is_dir() and not final.exists():
        os.replace(old, final)
    elif old.is_dir():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(old, previous)
    if waiting.is_dir() and not previous.exists():
        os.replace(waiting, previous)


def put_back(final: Path) -> None:
    """The previous artifact and the one in place change places."""
    settle(final)
    os.replace(previous_folder(final), _waiting_folder(final))
    if final.exists():
        os.replace(final, _old_folder(final))
    os.replace(_waiting_folder(final), final)
    settle(final)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder, its shape checked.

    Raises:
        UserError: missing, damaged, of another format, or naming files outside the folder.
    """
    file = path / MANIFEST
    found = read_object(file)
    try:
        _Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:120]
        raise UserError(f"{file}: damaged ({where}: {first['msg']})") from error
    if not _inside(file, path):
        raise UserError(f"{file}: a link to outside its folder")
    return found


def read_artifact(path: Path) -> Artifact | None:
    """The artifact at ``path``, or None where there is no readable manifest of this format."""
    try:
        return Artifact(path=path, manifest=read_manifest(path))
    except UserError:
        return None


def damage(path: Path) -> str:
    """Why the manifest of a folder cannot be read; '' where it can, or where there is none."""
    try:
        read_manifest(path)
    except UserError as error:
        return str(error) if os.path.lexists(path / MANIFEST) else ""
    return ""


def listed_files(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file of an artifact, logs included, by relative path."""
    return {**artifact.manifest["files"], **artifact.manifest.get("logs", {})}


def problems(artifact: Artifact) -> list[str]:
    """What is wrong with an artifact's bytes: missing, altered and unlisted files, by name."""
    with patience(f"checking the files of {artifact.path}"):
        return _problems(artifact)


def _problems(artifact: Artifact) -> list[str]:
    return [*_damaged(artifact), *_extra(artifact)]


def _damaged(artifact: Artifact) -> list[str]:
    """What is missing or altered of what the manifest lists."""
    out = []
    listed = listed_files(artifact)
    for name, entry in listed.items():
        file = artifact.path / name
        if not _inside(file, artifact.path):
            out.append(f"{file}: the manifest names a file outside its folder")
        elif not file.is_file():
            out.append(f"{file}: missing")
        elif file.stat().st_size != entry["bytes"] or sha256_of(file) != entry["sha256"]:
            out.append(f"{file}: altered since the stage finished")
    return out


def _extra(artifact: Artifact) -> list[str]:
    """What lies in the folder and is no part of the artifact, which is whole without it."""
    listed = listed_files(artifact)
    found = {str(f.relative_to(artifact.path)): f for f in sorted(artifact.path.rglob("*"))}
    out = [
        f"{f}: a link to outside its folder ({f.readlink()}); remove it"
        for name, f in found.items()
        if f.is_symlink() and name not in listed and not _inside(f, artifact.path)
    ]
    known = {*listed, MANIFEST, *LOGS}
    unlisted = (f for name, f in found.items() if f.is_file() and name not in known)
    return out + [f"{f}: not in the manifest; move it elsewhere, or remove it" for f in unlisted]


def _inside(file: Path, folder: Path) -> bool:
    """Whether a path, links followed, stays in the folder."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle
        return False


def load_artifact(path: Path, what: str) -> Artifact:
    """Read and verify.

    Raises:
        UserError: no manifest, or bytes that differ from it, naming the file.
    """
    if not (path / MANIFEST).exists():
        raise UserError(f"{path}: no finished {what} there (no {MANIFEST}); run that stage first")
    try:
        artifact = Artifact(path=path, manifest=read_manifest(path))
    except UserError as error:
        raise UserError(f"{error}; remove {path} and run the stage again") from error
    wrong = problems(artifact)
    if wrong:
        more = f" ({len(wrong)} problem(s))" if len(wrong) > 1 else ""
        whole = len(wrong) == len(_extra(artifact))  # once those are gone
        remedy = "" if whole else f"; remove {path} and run the stage again"
        raise UserError(f"{wrong[0]}{more}{remedy}")
    return artifact
