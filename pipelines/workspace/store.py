"""A store: finished stages shared between runs by key, safely from several processes at once.

    DIR/entries/<key>/    an artifact, exactly as a run folder holds it
    DIR/used/<key>.<hash of a place>    a place (a run's stage folder) that was given to or taken from the store
    DIR/.partial/         entries being written, each with a lock held by its writer
    DIR/.lock             shared by all who read or write entries, held alone by who removes some

An entry appears by one atomic rename, so a half-written one is never seen; its manifest and every hash are checked
before it is used, and a damaged one is set aside. It knows nothing of recipes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from data.common.errors import UserError
from data.common.locks import lock
from data.common.patience import patience
from models.backbone.artifacts import (
    LOGS,
    MANIFEST,
    Artifact,
    confined,
    listed_files,
    problems,
    put_in_place,
    read_artifact,
    read_manifest,
    write_json,
)
from pipelines.workspace.run_folder import check_outside

KEY = re.compile(r"[0-9a-f]{64}")
MARK = "trivet-store.json"


class Store:
    """The store in a folder; made where there is none.

    Raises:
        UserError: the folder holds other things, or cannot be written.
    """

    def __init__(self, root: Path, make: bool = True) -> None:
        self.root = root.resolve()
        self.entries, self.used, self.partial = (self.root / n for n in ("entries", "used", ".partial"))
        if not self._is_marked(root):
            if not make or (self.root.is_dir() and any(self.root.iterdir()) and not self.entries.is_dir()):
                raise UserError(f"--store {root}: is no store of trivet; name one, or a new or empty folder")
            check_outside(self.root, "--store")
            try:
                for folder in (self.entries, self.used, self.partial):
                    folder.mkdir(parents=True, exist_ok=True)
                mark = self.partial / f"{uuid.uuid4().hex}.mark"
                write_json(mark, {"format": 1})
                os.replace(mark, self.root / MARK)
            except OSError as error:
                raise UserError(f"--store {root}: cannot be written ({error.strerror})") from error

    def _is_marked(self, named: Path) -> bool:
        try:
            return (self.root / MARK).is_file()
        except OSError as error:  # a name that is too long, say
            raise UserError(f"--store {named}: cannot be read ({error.strerror})") from error

    def find(self, key: str) -> Artifact | None:
        """The entry of a key if it is whole; a damaged one is set aside and is as good as none."""
        if not KEY.fullmatch(key):
            return None
        if not os.path.lexists(self.entries / key):
            return None
        found = read_artifact(self.entries / key)
        if found is None or found.key != key or problems(found):
            aside = self.partial / f"damaged.{key}.{uuid.uuid4().hex}"
            with contextlib.suppress(FileNotFoundError):  # another process set it aside
                os.replace(self.entries / key, aside)
            return None
        return found

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        """While entries are written or copied, nothing is removed (``alone``)."""
        with (self.root / ".lock").open("a", encoding="utf-8") as file:
            lock(file, shared=True, wait=True)
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody reads or writes entries meanwhile; users that come wait.

        Raises:
            UserError: somebody does at the moment.
        """
        with (self.root / ".lock").open("a", encoding="utf-8") as file:
            if not lock(file):
                raise UserError(f"{self.root}: a run is using this store at the moment; try again later")
            yield

    def put(self, artifact: Artifact) -> None:
        """Share a finished stage. Two processes that finish the same stage both succeed; one of the copies stays."""
        with self._using():
            self._put(artifact)

    def _put(self, artifact: Artifact) -> None:
        self._note(artifact.key, artifact.path)
        if self.find(artifact.key) is not None:
            return
        partial = self.partial / f"{artifact.key}.{uuid.uuid4().hex}"
        with partial.with_suffix(".lock").open("w", encoding="utf-8") as file:
            lock(file, wait=True)
            try:
                with patience(f"copying {artifact.path} to the store"):
                    copy_artifact(artifact, partial)
                os.rename(partial, self.entries / artifact.key)
            except OSError:
                if read_artifact(self.entries / artifact.key) is None:
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                partial.with_suffix(".lock").unlink(missing_ok=True)

    def fetch(self, key: str, final: Path) -> Artifact | None:
        """Place the entry of a key at ``final``, verified there; None if there is none."""
        with self._using():
            return self._fetch(key, final)

    def _fetch(self, key: str, final: Path) -> Artifact | None:
        found = self.find(key)
        if found is None:
            return None
        new = final.with_name(f".{final.name}.fetched")
        shutil.rmtree(new, ignore_errors=True)
        self._note(key, final)
        try:
            copy_artifact(found, new)
        except FileNotFoundError:  # removed meanwhile
            shutil.rmtree(new, ignore_errors=True)
            return None
        copied = read_artifact(new)
        if copied is None or copied.key != key or problems(copied):
            shutil.rmtree(new, ignore_errors=True)
            return None
        put_in_place(new, final)
        return read_artifact(final)

    def _note(self, key: str, place: Path) -> None:
        """Remember who uses an entry, and that it was used now."""
        place = place.resolve()
        name = f"{key}.{hashlib.sha256(str(place).encode()).hexdigest()[:16]}"
        write_json(self.used / name, {"place": str(place)})
        if (self.entries / key).is_dir():
            os.utime(self.entries / key)

    # -- listing and removing ----------------------------------------------------------------------------------------

    def keys(self) -> list[str]:
        return sorted(p.name for p in self.entries.iterdir() if KEY.fullmatch(p.name))

    def verify(self) -> list[str]:
        """What is wrong with the entries, by file."""
        out = []
        for key in self.keys():
            try:
                found = Artifact(path=self.entries / key, manifest=read_manifest(self.entries / key))
            except UserError as error:
                out.append(str(error))
                continue
            out += problems(found)
            out += [f"{found.path}: holds another key ({found.key[:12]})"] if found.key != key else []
        return out

    def users(self, key: str) -> list[Path]:
        """The stage folders that hold the entry now."""
        places = []
        for note in self.used.glob(f"{key}.*"):
            try:
                place = Path(str(json.loads(note.read_text(encoding="utf-8"))["place"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found = read_artifact(place)
            if found is not None and found.key == key:
                places.append(place)
        return places

    def unneeded(self, days: float) -> Iterator[Path]:
        """Entries that no run holds and nobody used for so many days, and what dead processes left half written."""
        oldest = time.time() - days * 86400
        for key in self.keys():
            entry = self.entries / key
            if entry.stat().st_mtime < oldest and not self.users(key):
                yield entry
        for left in sorted(self.partial.iterdir()):
            if left.is_dir() and not _locked(left.with_suffix(".lock")):
                yield left


def _locked(path: Path) -> bool:
    try:
        with path.open("r+", encoding="utf-8") as file:
            return not lock(file)
    except FileNotFoundError:
        return False
    except (OSError, UserError):
        return True


def copy_artifact(artifact: Artifact, to: Path) -> None:
    """Copy the manifest's files (and the metrics), the manifest last; everything is on disk when it returns.

    Copies, not links: a file that is altered in one run is altered nowhere else.
    """
    names = [*listed_files(artifact), *(n for n in LOGS if (artifact.path / n).is_file())]
    to.mkdir(parents=True)
    for name in [*dict.fromkeys(names), MANIFEST]:
        target = to / confined(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, target, follow_symlinks=False)
        with target.open("rb") as file:
            os.fsync(file.fileno())
