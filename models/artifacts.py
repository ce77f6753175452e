"""Finished stages on disk: a folder whose ``manifest.json`` is written last, and whose every file is hashed.

A stage writes into a hidden folder beside its final place; an atomic rename publishes it. Weights are safetensors,
everything else is JSON: nothing here is ever unpickled. This module knows nothing of what a stage computes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
UNHASHED = {MANIFEST, "metrics.jsonl"}  # metrics hold times and memory, which differ from run to run


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished stage."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.manifest.get("metrics", {})


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any, sort_keys: bool = True) -> None:
    write_atomic(path, json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False) + "\n")


def partial_folder(final: Path) -> Path:
    """The hidden folder that a stage writes into."""
    return final.with_name(f".{final.name}.partial")


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below a folder, by relative path."""
    return {
        str(f.relative_to(folder)): {"sha256": sha256_of(f), "bytes": f.stat().st_size}
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name not in UNHASHED
    }


def publish(partial: Path, final: Path, manifest: dict[str, Any]) -> Artifact:
    """Write the manifest as the folder's last file and rename the folder into place, replacing an older artifact."""
    manifest = {"format": FORMAT, **manifest, "files": files_of(partial)}
    write_json(partial / MANIFEST, manifest)
    put_in_place(partial, final)
    return Artifact(path=final, manifest=manifest)


def put_in_place(new: Path, final: Path) -> None:
    """Rename a complete folder into place; what was there is set aside first and removed last."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    shutil.rmtree(old, ignore_errors=True)


def read_artifact(path: Path) -> Artifact | None:
    """The artifact at ``path``, or None where there is no readable manifest of this format."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "key" not in manifest:
        return None
    return Artifact(path=path, manifest=manifest)


def problems(artifact: Artifact) -> list[str]:
    """What is wrong with an artifact's bytes: missing, altered and unlisted files, by name."""
    out = []
    listed = artifact.manifest.get("files", {})
    for name, entry in listed.items():
        file = artifact.path / name
        if not _inside(file, artifact.path):
            out.append(f"{file}: the manifest names a file outside its folder")
        elif not file.is_file():
            out.append(f"{file}: missing")
        elif file.stat().st_size != entry["bytes"] or sha256_of(file) != entry["sha256"]:
            out.append(f"{file}: altered since the stage finished")
    out += [
        f"{f}: a link to outside its folder ({f.readlink()})"
        for f in sorted(artifact.path.rglob("*"))
        if f.is_symlink() and str(f.relative_to(artifact.path)) not in listed and not _inside(f, artifact.path)
    ]
    present = {str(f.relative_to(artifact.path)) for f in artifact.path.rglob("*") if f.is_file()}
    out += [
        f"{artifact.path / n}: not in the manifest"
        for n in sorted(present - set(listed))
        if Path(n).name not in UNHASHED
    ]
    return out


def _inside(file: Path, folder: Path) -> bool:
    """Whether a path, links followed, stays in the folder."""
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def load_artifact(path: Path, what: str) -> Artifact:
    """Read and verify.

    Raises:
        UserError: no manifest, or bytes that differ from it, naming the file.
    """
    artifact = read_artifact(path)
    if artifact is None:
        raise UserError(f"{path}: no finished {what} there (no readable {MANIFEST}); run that stage first")
    wrong = problems(artifact)
    if wrong:
        raise UserError(f"{wrong[0]} ({len(wrong)} problem(s)); remove {path} and run the stage again")
    return artifact
