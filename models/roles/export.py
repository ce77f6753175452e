"""A role as weights that others load: full weights in a plain Transformers folder."""

from __future__ import annotations

import copy
from pathlib import Path

from peft import PeftModel

from models.roles.shared_base import SharedBase


def write_model(base: SharedBase, role: str, folder: Path) -> None:
    """Full weights of a role; the shared base itself is never merged into."""
    if role in base.copies:
        lm = copy.deepcopy(base.copies[role])
    elif role == "base":
        lm = copy.deepcopy(base.lm)
    else:
        with base.role(role):
            wrapped = copy.deepcopy(base.peft)
        assert isinstance(wrapped, PeftModel)
        lm = wrapped.merge_and_unload(adapter_names=[role])  # type: ignore[operator]
    lm.generation_config.eos_token_id = list(base.extra_stop_ids) or base.tokenizer.eos_token_id
    lm.save_pretrained(folder)
