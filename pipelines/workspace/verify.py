"""``trivet verify``: every manifest, hash and parent link of a run, or every entry of a store. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from data.common.errors import UserError
from models.backbone.artifacts import Artifact, previous_folder, problems, read_artifact, read_manifest
from pipelines.recipe.renamed import in_old_words
from pipelines.stages.keys import folder_hash, hash_of
from pipelines.stages.table import folders
from pipelines.workspace.gc import is_store
from pipelines.workspace.run_folder import find_run, read_run
from pipelines.workspace.store import Store
from stages.safe_points.stopped import kept_of


def verify_run(run: Path | str, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """What is wrong with a run's finished stages (or a store's entries), by file; an empty list when all is well.

    Args:
        run: a run folder, a stage in one, or a store.
        say: reports what is being read, since many gigabytes take a while.

    Raises:
        UserError: neither a run nor a store.
    """
    if is_store(Path(run)):
        say(f"{run}: a store")
        return Store(Path(run), make=False).verify()
    folder = find_run(Path(run))
    out: list[str] = []
    found: dict[str, Artifact] = {}
    try:
        noted = read_run(folder)
    except UserError as error:
        out.append(str(error))
        noted = {}
    for name, place in folders().items():
        path = folder / place
        out += _kept(path, name, say)
        if not path.is_dir():
            if noted.get("stages", {}).get(name, {}).get("status") == "done":
                out.append(f"{path}: missing, and run.json says that {name} is finished")
            continue
        try:
            found[name] = Artifact(path=path, manifest=read_manifest(path))
        except UserError as error:
            out.append(str(error))
            continue
        say(f"{name}: {len(found[name].manifest['files'])} files")
        out += problems(found[name]) + _key(found[name])
    for name, artifact in found.items():
        out += _parents(name, artifact, found, noted.get("inputs", {}), folder)
    if not found and not out:
        out.append(f"{folder}: no finished stage")
    return out


def _kept(final: Path, name: str, say: Callable[[str], None]) -> list[str]:
    """What is wrong with what a run keeps of a stage next to its result: a replaced one must be whole."""
    out = []
    for path, what in kept_of(final, name):
        say(f"{path.name}: {what}")
        if path == previous_folder(final):
            try:
                out += problems(Artifact(path=path, manifest=read_manifest(path)))
            except UserError as error:
                out.append(str(error))
    return out


def _key(artifact: Artifact) -> list[str]:
    """The key is the hash of what the manifest says that it was made of."""
    described = artifact.manifest.get("described")
    if described and hash_of(in_old_words(described)) != artifact.key:
        return [f"{artifact.path}: its key ({artifact.key[:12]}) is not the hash of what its manifest describes"]
    return []


def _parents(
    name: str, artifact: Artifact, found: Mapping[str, Artifact], inputs: Mapping[str, str], run: Path
) -> list[str]:
    """The stages that it was made from are there, with the keys that it names."""
    out = []
    for parent, key in artifact.manifest.get("parents", {}).items():
        there, place = found.get(parent), run / folders().get(parent, parent)
        if parent in inputs and (there is None or there.key != key):
            place = Path(inputs[parent])
            given = read_artifact(place)
            now = given.key if given else folder_hash(place) if place.is_dir() else ""
        else:
            now = there.key if there else ""
        if not now:
            out.append(f"{artifact.path}: made from {parent} ({key[:12]}), which is not there ({place})")
        elif now != key:
            out.append(f"{artifact.path}: made from another {parent} ({key[:12]}) than the one there ({now[:12]})")
    return out
