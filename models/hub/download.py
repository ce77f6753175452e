"""Bases on the hub: which commit a name means, and its files as a folder that is checked like any other.

The commit is looked up once a process, so that a stage's key and what is loaded are of the same bytes.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from data.common.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
UNWANTED = ["*/*", "consolidated*", "adapter_*"]  # other formats of the same weights; adapters of somebody
PATIENCE = 10.0  # seconds for the hub's reply


@cache
def commit_of(source: str, revision: str | None) -> str | None:
    """The commit that a hub id and revision mean: by the hub, else by the cache; None if neither knows."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE:
        try:
            found = HfApi().model_info(source, revision=revision, timeout=PATIENCE).sha
            if found:
                return found
        except Exception:  # no network, gated, gone: what was downloaded is there all the same
            pass
    cached = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def cached_folder(source: str, revision: str | None) -> Path | None:
    """The files of a hub id as they lie in the cache, without asking the network; None where they do not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def local_folder(source: str, revision: str | None) -> Path | None:
    """Where the files of a base lie on this machine: a folder, or the cache's of a hub id; None where they do not."""
    return Path(source) if Path(source).is_dir() else cached_folder(source, revision)


@cache
def folder_of(source: str, revision: str | None) -> Path:
    """The files of a hub id at its commit, downloaded where need be: JSON, safetensors and tokenizers, nothing else.

    Raises:
        UserError: neither the hub nor the cache has it, or the folder cannot be loaded safely.
    """
    from huggingface_hub import snapshot_download

    from models.hub.registry import check_folder

    commit = commit_of(source, revision)
    try:
        found = snapshot_download(source, revision=commit or revision, allow_patterns=WANTED, ignore_patterns=UNWANTED)
    except Exception as error:  # the client raises many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"base {source}{f'@{revision}' if revision else ''}: cannot be had from the hub, and is not in the cache "
            f"({first}). Check the name and the network, log in for a gated model, or download it and name the folder."
        ) from error
    check_folder(Path(found))
    return Path(found)
