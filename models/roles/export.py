"""Roles as files: a finished stage's folder, a plain PEFT folder, or full weights in a plain Transformers folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig

from data.common.errors import UserError
from models.backbone.artifacts import naming
from models.backbone.sharding import shards_of
from models.backbone.soft_prompts import remove_prompts
from models.backbone.tensor_files import readable, save_tensors
from models.backbone.trained_shards import whole_state
from models.roles.files import ADAPTER, CONFIG, HEAD, MAGNITUDE, MODEL, RESIDUAL_MARK, TOKENS_MARK, WEIGHTS
from models.roles.lora import rows_of
from models.roles.own_models import merged_copy
from models.roles.saving import Saving
from models.roles.shared_base import SharedBase


def generation_settings(
    base: SharedBase, stop_ids: Sequence[int], stop_strings: Sequence[str] = ()
) -> GenerationConfig:
    """Plain sampling that ends where the run's responses end; with strings, ``generate`` asks for the tokenizer too.

    Nothing of the base's own generation config is kept: its warpers (temperature, top-p) are not those of the run, and
    Transformers refuses to save some of them.
    """
    eos = list(stop_ids)
    tokenizer = base.tokenizer
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos[0] if len(eos) == 1 else eos,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0],
        **({"stop_strings": list(stop_strings)} if stop_strings else {}),
    )


def save_role(
    base: SharedBase, name: str, folder: Path, extra: dict[str, float] | None = None, main: bool = True
) -> None:
    """Write ``adapter/`` (or ``model/``) and, where the role has a head, ``head.safetensors``.

    ``extra`` numbers (a reward model's mean and std) are stored with the head, since a score means nothing
    without them. Where several processes call it, the ``main`` one writes; all of them must, since a role that they
    hold in parts is gathered for it, a tensor at a time.
    """
    divided = name in base.copies and shards_of(base.copies[name]) is not None
    state = whole_state(base.copies[name]) if divided else None
    if not main:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if name in base.copies:
        lm, own = base.copies[name], base.copies[name].generation_config
        # the base's own sampling flags may be such that Transformers refuses to save them
        stops = base.extra_stop_ids or (base.tokenizer.eos_token_id,)
        lm.generation_config = generation_settings(base, stops, base.extra_stop_strings)
        with naming(folder / MODEL):
            lm.save_pretrained(folder / MODEL, state_dict=state, safe_serialization=True)
            base.tokenizer.save_pretrained(folder / MODEL)
        readable(folder / MODEL)
        lm.generation_config = own
    elif base.adapter_settings(name) is not None:  # a value role may be a head alone
        save_adapter(base, name, folder / ADAPTER)
    if name in base.heads:
        head = base.heads[name]
        tensors = {k: v.detach().cpu() for k, v in head.state_dict().items()}
        tensors |= {k: torch.tensor(v, dtype=torch.float64) for k, v in (extra or {}).items()}
        save_tensors(tensors, folder / HEAD)


def save_adapter(base: SharedBase, name: str, folder: Path, base_path: str | None = None) -> None:
    """A plain PEFT folder. ``base_path`` is what PEFT users load the base from; by default the base's name."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = base.adapter_settings(name)
    assert settings is not None
    mark = {RESIDUAL_MARK: base.adapters.residual[name]} if name in base.adapters.residual else {}
    if name in base.adapters and (rows := rows_of(base.adapters[name])):
        tokens = base.tokenizer.convert_ids_to_tokens(next(iter(rows.values())))
        mark |= {TOKENS_MARK: json.dumps(tokens)}
    tensors = {f"{n}.weight" if n.endswith(MAGNITUDE) else n: t for n, t in base.adapter_state(name).items()}
    save_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"} | mark)
    config = settings | {"base_model_name_or_path": base_path or base.name, "inference_mode": True}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    text = json.dumps(plain, indent=2, sort_keys=True, default=str)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def write_model(
    base: SharedBase,
    role: str,
    folder: Path,
    stop_ids: Sequence[int],
    saving: Saving | None = None,
    say: Callable[[str], None] = lambda _: None,
    stop_strings: Sequence[str] = (),
) -> None:
    """Full weights of a role; the shared base itself is never merged into.

    A merged adapter is written in at least fp32 unless ``saving`` says otherwise: most of what it adds is smaller than
    the last place of a bf16 weight.

    Args:
        base: whose role.
        role: its name, or ``"base"``.
        folder: where to.
        stop_ids: tokens that end a response, for the folder's generation config.
        saving: precision and shards; None: as they are held, or fp32, in Transformers' shards.
        say: hears what rounding to another precision does to the weights.
        stop_strings: strings that end one, for the same config.

    Raises:
        UserError: a weight is too large for the precision, or the role has virtual tokens.
    """
    saving = saving or Saving()
    if role in base.virtual_tokens:
        raise UserError(
            f"'{role}' is tuned by virtual tokens, which no weights of the base can stand for: nothing can be merged; "
            "keep it as an adapter"
        )
    if role in base.copies:
        lm = copy.deepcopy(base.copies[role])
    elif role == "base":
        lm = copy.deepcopy(base.lm)
        remove_prompts(lm)
    else:
        lm = merged_copy(base.lm, role)
    lm = saving.cast(lm, base.lm, say)
    lm.generation_config = generation_settings(base, stop_ids, stop_strings)
    with naming(folder):
        lm.save_pretrained(folder, **saving.shards)
    readable(folder)
