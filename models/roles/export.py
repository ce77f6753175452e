"""A role as weights that others load: full weights in a plain Transformers folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from transformers import GenerationConfig

from models.roles.shared_base import SharedBase


def generation_settings(base: SharedBase, stop_ids: Sequence[int]) -> GenerationConfig:
    """Plain sampling that ends where the run's answers end.

    Nothing of the base's own generation config is kept: its warpers (temperature, top-p) are not those of the run, and
    Transformers refuses to save some of them.
    """
    eos = list(stop_ids)
    tokenizer = base.tokenizer
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos[0] if len(eos) == 1 else eos,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0],
    )


def write_model(base: SharedBase, role: str, folder: Path, stop_ids: Sequence[int]) -> None:
    """Full weights of a role; the shared base itself is never merged into.

    Args:
        base: whose role.
        role: its name, or ``"base"``.
        folder: where to.
        stop_ids: tokens that end an answer, for the folder's generation config.
    """
    if role in base.copies:
        lm = copy.deepcopy(base.copies[role])
    elif role == "base":
        lm = copy.deepcopy(base.lm)
    else:
        with base.role(role):
            wrapped = copy.deepcopy(base.peft)
        assert isinstance(wrapped, PeftModel)
        lm = wrapped.merge_and_unload(adapter_names=[role])  # type: ignore[operator]
    lm.generation_config = generation_settings(base, stop_ids)
    lm.save_pretrained(folder)
