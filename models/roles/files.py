"""Roles on disk: a plain PEFT folder (or a plain Transformers folder), and a head beside it.

Our own artifacts and other people's exports are read by the same code.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data.common.errors import UserError
from models.backbone.forward import full_copy
from models.backbone.scalar_head import ScalarHead
from models.backbone.settings import ADAPTER_CONFIG
from models.hub.validate import check_tensors, read_adapter_config
from models.roles.shared_base import SharedBase

ADAPTER, MODEL, HEAD = "adapter", "model", "head.safetensors"
WEIGHTS, CONFIG = "adapter_model.safetensors", ADAPTER_CONFIG


def save_role(base: SharedBase, name: str, folder: Path, extra: dict[str, float] | None = None) -> None:
    """Write ``adapter/`` (or ``model/``) and, where the role has a head, ``head.safetensors``.

    ``extra`` numbers (the scores' mean and standard deviation) are stored with the head, since a score means nothing
    without them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name in base.copies:
        base.copies[name].save_pretrained(folder / MODEL, safe_serialization=True)
        base.tokenizer.save_pretrained(folder / MODEL)
    else:
        save_adapter(base, name, folder / ADAPTER)
    if name in base.heads:
        head = base.heads[name]
        tensors = {k: v.detach().cpu() for k, v in head.state_dict().items()}
        tensors |= {k: torch.tensor(v, dtype=torch.float64) for k, v in (extra or {}).items()}
        save_file(tensors, folder / HEAD)


def save_adapter(base: SharedBase, name: str, folder: Path, base_path: str | None = None) -> None:
    """A plain PEFT folder. ``base_path`` is what PEFT users load the base from; by default the base's name."""
    folder.mkdir(parents=True, exist_ok=True)
    assert base.peft is not None
    save_file(base.adapter_state(name), folder / WEIGHTS, metadata={"format": "pt"})
    config = base.peft.peft_config[name].to_dict()
    config |= {"base_model_name_or_path": base_path or base.name, "inference_mode": True}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    text = json.dumps(plain, indent=2, sort_keys=True, default=str)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def load_role(base: SharedBase, name: str, folder: Path, *, head: bool = False) -> dict[str, float]:
    """Add a frozen role from an artifact, a plain PEFT folder or a plain Transformers folder.

    Returns:
        The numbers stored with the head (``score_mean`` and ``score_std`` of a reward model), or an empty dict.

    Raises:
        UserError: nothing loadable there, pickled weights, a wrong fit, or a head that is asked for and missing.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    adapter = next((f for f in (folder / ADAPTER, folder) if (f / CONFIG).is_file()), None)
    model = next((f for f in (folder / MODEL, folder) if (f / "config.json").is_file()), None)
    if adapter is not None:
        _load_adapter(base, name, adapter)
    elif model is not None:
        _load_copy(base, name, model)
    else:
        raise UserError(f"{folder}: neither a PEFT folder ({CONFIG}) nor a Transformers folder (config.json)")
    return _load_head(base, name, folder) if head else {}


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: missing; weights must be safetensors (pickled .bin files are never read)")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    check_tensors(path, tensors)
    return tensors


def _load_adapter(base: SharedBase, name: str, folder: Path) -> None:
    weights = _read(folder / WEIGHTS)
    config = read_adapter_config(folder, weights)
    base.load_adapter(name, config, _without_base(base, folder / WEIGHTS, weights), str(folder))


def _without_base(base: SharedBase, file: Path, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter's own tensors, without the copies of embeddings that PEFT writes beside an adapter on them.

    Raises:
        UserError: such a tensor is not what this base has; it was trained or resized, and would change the shared base.
    """
    named = base.lm.named_parameters(remove_duplicate=False)
    own = {_plain(name): p for name, p in named if ".lora_" not in name}
    for name, tensor in weights.items():
        if ".lora_" in name or (there := own.get(_plain(name))) is None:
            continue
        if there.shape != tensor.shape or not torch.equal(tensor.to(there.device, there.dtype), there):
            raise UserError(
                f"{file}: {name[:100]} is not what base {base.name} has there: it was trained or resized beside the "
                "adapter, and would change the shared base. Merge the adapter into its base and give that folder"
            )
    return {n: t for n, t in weights.items() if ".lora_" in n or _plain(n) not in own}


def _plain(name: str) -> str:
    """A tensor's name in the base, without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _load_copy(base: SharedBase, name: str, folder: Path) -> None:
    from models.hub.load import load_causal_lm

    lm = load_causal_lm(str(folder), None, torch.float32, base.device)
    ours, theirs = base.lm.config.get_text_config(), lm.config.get_text_config()
    if (ours.vocab_size, ours.hidden_size) != (theirs.vocab_size, theirs.hidden_size):
        raise UserError(
            f"{folder}: vocabulary {theirs.vocab_size} and width {theirs.hidden_size} differ from base {base.name} "
            f"({ours.vocab_size}, {ours.hidden_size})"
        )
    lm.config = copy.deepcopy(base.lm.config)  # the base's settings, whoever wrote the folder
    lm.generation_config = copy.deepcopy(base.lm.generation_config)
    base.copies[name] = full_copy(lm, base.dtype)


def _load_head(base: SharedBase, name: str, folder: Path) -> dict[str, float]:
    path = folder / HEAD if (folder / HEAD).is_file() else folder.parent / HEAD
    if not path.is_file():
        raise UserError(f"{folder}: no {HEAD}; a reward or value role is nothing without its head")
    tensors = _read(path)
    if "weight" not in tensors or tensors["weight"].shape != (base.hidden_size,) or "bias" not in tensors:
        raise UserError(f"{path}: does not hold a head for width {base.hidden_size} (weight and bias)")
    head = ScalarHead(base.hidden_size)
    if "attention" in tensors:
        head.add_attention()
        if tensors["attention"].shape != head.weight.shape:
            raise UserError(f"{path}: its attention has the shape {tuple(tensors['attention'].shape)}")
    head.load_state_dict({name: tensors[name].float() for name in head.state_dict()})
    base.heads[name] = head.to(base.device).requires_grad_(False)
    return {k: float(v) for k, v in tensors.items() if k not in head.state_dict()}
