"""Roles on disk: a plain PEFT folder (or a plain Transformers folder), and a head next to it.

Our own artifacts and other people's exports are read by the same code. It knows nothing of the base that a role is for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data.common.errors import UserError
from models.backbone.scalar_head import ScalarHead
from models.backbone.settings import ADAPTER_CONFIG, RESIDUAL
from models.backbone.tensor_files import header_of
from models.hub.validate import check_tensors, read_adapter_config

ADAPTER, MODEL, HEAD = "adapter", "model", "head.safetensors"
WEIGHTS, CONFIG = "adapter_model.safetensors", ADAPTER_CONFIG
# DoRA's; PEFT writes it without ".weight" behind and reads both, and Transformers passes over the short name in silence
MAGNITUDE = ".lora_magnitude_vector"
RESIDUAL_MARK = "trivet_method"  # in the header of a residual adapter's weights
TOKENS_MARK = "trivet_new_tokens"  # in the header of the weights: a list of the tokens that the rows are of
SCORING = "scoring.json"  # of an exported reward model: the limit on tokens and the stop tokens of its run
SCORE = "base_model.model.score.weight"  # a copy of our head, which others open as a classifier's


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """An adapter: the file of its tensors, its configuration, the tensors by PEFT's names, and the method of a residual
    one, whose second half is what it began with."""

    file: Path
    config: PeftConfig
    tensors: dict[str, Tensor]
    residual: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFile:
    """A stored head: its tensors, and numbers without which its scores mean nothing."""

    file: Path
    tensors: dict[str, Tensor]

    def build(self, hidden_size: int) -> tuple[ScalarHead, dict[str, float]]:
        """The head, on the CPU, and the numbers stored with it.

        Raises:
            UserError: it is of another width.
        """
        tensors = self.tensors
        if "weight" not in tensors or tensors["weight"].shape != (hidden_size,) or "bias" not in tensors:
            raise UserError(f"{self.file}: does not hold a head for width {hidden_size} (weight and bias)")
        head = ScalarHead(hidden_size)
        if "attention" in tensors:
            head.add_attention()
            if tensors["attention"].shape != head.weight.shape:
                raise UserError(f"{self.file}: its attention has the shape {tuple(tensors['attention'].shape)}")
        head.load_state_dict({name: tensors[name].float() for name in head.state_dict()})
        return head, {k: float(v) for k, v in tensors.items() if k not in head.state_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFiles:
    """What a role's folder holds: an adapter, or the folder of a whole model; and its head, where it was asked for."""

    adapter: AdapterFiles | None = None
    model: Path | None = None
    head: HeadFile | None = None


def read_role(folder: Path, *, head: bool = False) -> RoleFiles:
    """Read an artifact, a plain PEFT folder or a plain Transformers folder; ``head``: and the head in or next to it.

    Raises:
        UserError: nothing loadable there, pickled weights, or a head that is asked for and missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    adapter = next((f for f in (folder / ADAPTER, folder) if (f / CONFIG).is_file()), None)
    model = next((f for f in (folder / MODEL, folder) if (f / "config.json").is_file()), None)
    if adapter is None and model is None:
        raise UserError(f"{folder}: neither a PEFT folder ({CONFIG}) nor a Transformers folder (config.json)")
    stored = None if adapter is None else _read_adapter(adapter)
    return RoleFiles(
        adapter=stored,
        model=model if stored is None else None,
        head=_read_head(folder) if head else None,
    )


def _read_adapter(folder: Path) -> AdapterFiles:
    tensors = _read(folder / WEIGHTS)
    tensors = {name.removesuffix(".weight") if MAGNITUDE in name else name: t for name, t in tensors.items()}
    copied = SCORE in tensors and _head_file(folder).is_file()
    if copied:
        _check_copy(folder, tensors.pop(SCORE))
    config = read_adapter_config(folder, tensors, head_copied=copied)
    return AdapterFiles(
        file=folder / WEIGHTS, config=config, tensors=tensors, residual=_residual_method(folder / WEIGHTS)
    )


def _residual_method(file: Path) -> str | None:
    """The method of a residual adapter that a run wrote; None for every other adapter."""
    found = header_of(file).get(RESIDUAL_MARK)
    return found if found in RESIDUAL else None


def new_tokens_of(folder: Path) -> tuple[str, ...]:
    """The tokens that a run's adapter has trained rows for, and that its base is to be given; none for every other."""
    file = next((f / WEIGHTS for f in (folder / ADAPTER, folder) if (f / CONFIG).is_file()), None)
    if file is None or not file.is_file():
        return ()
    try:
        found = json.loads(header_of(file).get(TOKENS_MARK, "[]"))
    except (ValueError, OSError, SafetensorError):  # whoever reads the weights says what is wrong with them
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _check_copy(folder: Path, score: Tensor) -> None:
    """Refuse a classifier's ``score`` that is not the head next to it; an empty one is refused elsewhere."""
    head = _read(_head_file(folder)).get("weight")
    if score.numel() and (head is None or not torch.equal(score.flatten().float(), head.flatten().float())):
        raise UserError(
            f"{folder / WEIGHTS}: {SCORE} is not the head in {_head_file(folder)}; one of them was changed: export anew"
        )


def _head_file(folder: Path) -> Path:
    return folder / HEAD if (folder / HEAD).is_file() else folder.parent / HEAD


def _read_head(folder: Path) -> HeadFile:
    file = _head_file(folder)
    if not file.is_file():
        raise UserError(f"{folder}: no {HEAD}; a reward or value role is nothing without its head")
    return HeadFile(file=file, tensors=_read(file))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: missing; weights must be safetensors (pickled .bin files are never read)")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    check_tensors(path, tensors)
    return tensors
