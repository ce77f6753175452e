"""Content-addressed keys: what a stage's result depends on, hashed. Equal keys mean equal results."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data.chat_template import template_file
from data.common.config import Config
from data.common.patience import each
from data.storage.file_hashes import sha256_of
from models.hub.download import commit_of

UNKNOWN = "unknown"  # a hub base's commit without a network and a cache: nothing can run then
LIBRARIES = ("torch", "transformers", "trl", "peft", "tokenizers", "numpy")
BASE_USE = {"lora_targets", "dtype", "chat_template", "stop", "pad_token"}
"""Settings of a base's entry that change results."""


def hash_of(value: Any) -> str:
    """sha256 of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def dump(config: Config | None, leave_out: tuple[str, ...] = ()) -> Any:
    """A config as plain JSON values, without the keys that change no result."""
    return None if config is None else config.model_dump(mode="json", exclude=set(leave_out))


def library_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def folder_hash(folder: Path) -> str:
    """Content hash of a model folder: names and bytes of its files."""
    digest = hashlib.sha256()
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    for file in each(files, f"hashing {folder}", "files"):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()


def base_key(name: str, base_dir: Path) -> str:
    """Source and commit of a hub base, contents of a local one, and what its entry says of how it is used.

    Raises:
        UserError: no such base.
    """
    from models.hub.registry import resolve_base

    spec = resolve_base(name, base_dir=base_dir)
    folder = Path(spec.source)
    if folder.is_dir():
        where = folder_hash(folder)
    else:
        where = f"{spec.source}@{commit_of(spec.source, spec.revision) or UNKNOWN}"
    use = spec.model_dump(mode="json", include=BASE_USE, exclude_defaults=True)
    return f"{where}+{hash_of(use)}" if use else where


def rendering_key(
    template: str, stop: Sequence[str | int], base_dir: Path = Path(), args: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """What decides how conversations are written; of a template that is a file, its contents too.

    Args:
        template: as the recipe names it.
        stop: tokens or ids that end a response.
        base_dir: what a file's relative path starts from.
        args: what the template is given.
    """
    out: dict[str, Any] = {"template": template, "stop": list(stop)}
    if template.endswith(".jinja"):
        file = template_file(base_dir / Path(template).expanduser())
        out["file"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return out | ({"args": dict(args)} if args else {})


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of what differs between two key descriptions, short values with it, for "stale because ..."."""
    out = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            shown = [_short(v) for v in (a, b)]
            out.append(f"{prefix}{name}" + (f" ({shown[0]} -> {shown[1]})" if all(shown) else ""))
    return out


def _short(value: Any) -> str:
    """A setting as the plan shows it; hashes, groups and long texts are not."""
    text = json.dumps(value, default=str) if not isinstance(value, Mapping | list | tuple) else ""
    return text if len(text) <= 24 else ""
