"""Names of base models -> specs: registry entries, the user's own YAML, local folders, hub ids. No network, no torch.

Knows nothing of loading weights: a folder is judged by the names of its files and its ``config.json``, and a GGUF file
is read into one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data.common.errors import UserError, nearest
from data.common.strict_json import read_object
from models.backbone.settings import ADAPTER_CONFIG
from models.hub.catalogue import BASE_MODELS
from models.hub.spec import BaseModelSpec

__all__ = ["BASE_MODELS", "BaseModelSpec", "check_folder", "list_models", "resolve_base"]

OWN_FILE = "models.yaml"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def list_models() -> list[BaseModelSpec]:
    """All registry entries, family by family."""
    return list(BASE_MODELS.values())


def resolve_base(
    name: str, *, base_dir: Path, extra: Path | None = None, new_tokens: tuple[str, ...] = ()
) -> BaseModelSpec:
    """Return the spec that ``name`` means, with these tokens added to it, without touching the network.

    In this order: an entry of the user's own YAML (``extra``, or ``models.yaml`` in ``base_dir``), a registry name
    (upper or lower case), a folder or a GGUF file (relative to ``base_dir``), a hub id ``org/name`` or
    ``org/name@revision``. A GGUF file is read into a folder of the cache when it is first asked for.

    Raises:
        UserError: nothing of that name, or a folder that cannot be loaded.
    """
    spec = _resolved(name, base_dir, extra)
    return spec.model_copy(update={"new_tokens": new_tokens}) if new_tokens else spec


def _resolved(name: str, base_dir: Path, extra: Path | None) -> BaseModelSpec:
    own = _own_models(base_dir, extra)
    for known in (own, BASE_MODELS):
        if (spec := known.get(name.lower())) is not None:
            return _in_place(spec, base_dir if extra is None else extra.parent) if known is own else spec
    folder = (base_dir / Path(name).expanduser()).resolve()
    if (file := gguf_in(folder)) is not None:
        return BaseModelSpec(
            name=file.stem,
            source=str(read_gguf(file)),
            family="GGUF file",
            note=f"read from {file}, not in the registry",
        )
    if folder.is_dir():
        check_folder(folder)
        return BaseModelSpec(name=folder.name, source=str(folder), family="local folder", note="not in the registry")
    if name.startswith((".", "/", "~")) or folder.exists() or not HUB_ID.fullmatch(name):
        raise UserError(_unknown(name, folder, [*own, *BASE_MODELS]))
    hub_id, _, revision = name.partition("@")
    return BaseModelSpec(name=name, source=hub_id, revision=revision or None, family="hub", note="not in the registry")


def _unknown(name: str, folder: Path, known: list[str]) -> str:
    looks_like_path = "/" in name or name.startswith((".", "~"))
    hint = nearest(name.lower(), known)
    if looks_like_path:
        what = "is a file, not a folder" if folder.is_file() else "there is no such folder"
        return (
            f"base '{name}': {what} ({folder}).{hint} Give a folder with a config.json, a GGUF file, a name of "
            "`trivet models`, or a hub id like org/name."
        )
    return (
        f"base '{name}' is not a known name, and there is no such folder next to the recipe.{hint} "
        "`trivet models` lists the names; a hub id has the form org/name."
    )


def gguf_in(place: Path) -> Path | None:
    """The GGUF file that a path names: itself, or the only one in a folder that holds no model of Transformers.

    Raises:
        UserError: a folder with several.
    """
    if place.is_file():
        return place if place.suffix.lower() == ".gguf" else None
    if not place.is_dir() or (place / "config.json").is_file():
        return None
    found = sorted(place.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(
            f"base {place}: holds {len(found)} GGUF files ({', '.join(f.name for f in found[:5])}); name the one to use"
        )
    return found[0] if found else None


def read_gguf(file: Path) -> Path:
    """The plain folder of a GGUF file, by what loads torch only where one is read."""
    from models.hub.gguf_base import folder_of_gguf

    return folder_of_gguf(file)


# -- the user's own entries -------------------------------------------------------------------------------------------


def _own_models(base_dir: Path, extra: Path | None) -> Mapping[str, BaseModelSpec]:
    path = extra if extra is not None else base_dir / OWN_FILE
    if not path.is_file():
        if extra is not None:
            raise UserError(f"{path}: no such file of base models")
        if path.exists():
            raise UserError(f"{path}: is no regular file; it lists base models of yours")
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise UserError(f"{path}: must map each name to its settings, for example\n  mine: {{source: ./my-model}}")
    return {str(name).lower(): _own_spec(path, str(name), fields) for name, fields in found.items()}


def _own_spec(path: Path, name: str, fields: dict[str, Any]) -> BaseModelSpec:
    known = set(BaseModelSpec.model_fields) - {"name"}
    for key in fields:
        if key not in known:
            raise UserError(f"{path}: {name}.{key}: no such setting.{nearest(str(key), known)}")
    try:
        return BaseModelSpec(**{"family": "own", **fields, "name": name})
    except ValidationError as error:
        text = "; ".join(f"{'.'.join(map(str, e['loc'])) or name}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: {name}: {text}") from error


def _in_place(spec: BaseModelSpec, folder: Path) -> BaseModelSpec:
    """A source that is a folder next to the YAML becomes an absolute path; anything else is a hub id."""
    place = (folder / Path(spec.source).expanduser()).resolve()
    if (file := gguf_in(place)) is not None:
        return spec.model_copy(update={"source": str(read_gguf(file))})
    if place.is_dir():
        check_folder(place)
        return spec.model_copy(update={"source": str(place)})
    if not HUB_ID.fullmatch(spec.source) or spec.source.startswith("."):
        raise UserError(f"base '{spec.name}': its source '{spec.source}' is neither a folder ({place}) nor a hub id")
    return spec


# -- local folders ----------------------------------------------------------------------------------------------------


def check_folder(path: Path) -> None:
    """Refuse a folder that cannot be loaded safely: no model, pickled weights, code of its own.

    Raises:
        UserError: says what is missing or unsafe, and the fix.
    """
    config_file = path / "config.json"
    if not config_file.is_file():
        if (path / ADAPTER_CONFIG).is_file():
            raise UserError(
                f"base {path}: is an adapter, not a model (adapter_config.json but no config.json); "
                "name its base, or merge it first (`trivet export --merge`)"
            )
        held = sorted(p.name for p in path.iterdir())[:5]
        raise UserError(
            f"base {path}: no config.json there (it holds {', '.join(held) or 'nothing'}); "
            "name a folder that Transformers' save_pretrained wrote"
        )
    if (path / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"base {path}: holds an adapter next to the model (adapter_config.json), which Transformers loads with "
            "the base that the adapter names; move one of them to another folder"
        )
    config = read_object(config_file, largest=16 << 20)
    _check_weights(path)
    _check_code(config_file, config)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise UserError(f"base {path}: no tokenizer there (tokenizer.json); save the tokenizer into the same folder")


def _check_weights(path: Path) -> None:
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt") for p in path.glob(pattern))
    if pickled:
        raise UserError(
            f"base {path}: only pickled weights ({pickled[0]}), which can run any code when opened; convert them on a "
            "machine you trust: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    raise UserError(f"base {path}: no weights there (*.safetensors)")


def _check_code(config_file: Path, config: dict[str, Any]) -> None:
    """Remote code is off. Architectures that Transformers knows itself load without the folder's own code."""
    if "auto_map" not in config:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"{config_file}: auto_map: this model ({config.get('model_type', 'no model_type')}) brings its own code, "
            "which is never run; choose a base that Transformers knows by itself"
        )
