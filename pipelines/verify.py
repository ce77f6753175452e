"""``trivet verify``: every manifest, hash and parent link of a run."""

from __future__ import annotations

from pathlib import Path

from models.artifacts import problems, read_artifact
from pipelines.jobs import STAGES
from pipelines.opening import find_run


def verify_run(run: Path | str) -> list[str]:
    """What is wrong with a run's finished stages, by file; an empty list when all is well."""
    folder = find_run(Path(run))
    out: list[str] = []
    keys: dict[str, str] = {}
    for name, stage in STAGES.items():
        path = folder / stage.folder
        if not path.is_dir():
            continue
        artifact = read_artifact(path)
        if artifact is None:
            out.append(f"{path}: no readable manifest")
            continue
        keys[name] = artifact.key
        out += problems(artifact)
        for parent, key in artifact.manifest.get("parents", {}).items():
            if parent in keys and keys[parent] != key:
                out.append(f"{path}: made from another {parent} ({key[:12]}) than the one there ({keys[parent][:12]})")
    if not keys:
        out.append(f"{folder}: no finished stage")
    return out
