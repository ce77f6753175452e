"""A reward adapter that plain Transformers and PEFT open as a sequence classifier: with the run's head, or not at all.

Without a stored ``score`` they would make one of random numbers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.modeling_layers import GenericForSequenceClassification

from models.backbone.artifacts import naming
from models.backbone.forward import body_of
from models.backbone.seeds import isolated_rng
from models.backbone.tensor_files import header_of, readable, save_tensors
from models.hub.validate import module_of
from models.roles.files import CONFIG, SCORE, WEIGHTS
from models.roles.own_models import merged_copy
from models.roles.saving import Saving
from models.roles.shared_base import SharedBase


def fits_classifier(base: SharedBase, role: str) -> bool:
    """Whether the base's architecture has a plain classifier that reads one linear ``score`` at the last token, and
    the role's adapter, if it is one, finds its modules in it."""
    config: Any = copy.deepcopy(base.lm.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            made: Any = AutoModelForSequenceClassification.from_config(config)
    except (ValueError, AttributeError, TypeError):
        return False
    score = getattr(made, "score", None)
    if not issubclass(type(made), GenericForSequenceClassification) or not isinstance(score, nn.Linear):
        return False
    there = {name for name, _ in made.named_modules()}
    adapted = set() if role in base.copies else set(map(module_of, base.adapter_state(role)))
    return score.bias is None and score.in_features == base.hidden_size and adapted <= there


def passes_over_stops(base: SharedBase, stop_ids: Sequence[int]) -> bool:
    """Whether a plain classifier on this base passes over a stop token: it takes what its config pads with for no
    token, and that is one."""
    return base.lm.config.get_text_config().pad_token_id in stop_ids


def padding_token(base: SharedBase, stop_ids: Sequence[int], template: str = "") -> str | None:
    """The token to pad a plain classifier's rows with, so that it reads each at its last real token.

    It is what the base's config pads with, or else a special token that neither ends nor renders anything. None: the
    vocabulary has no such token, and a tokenizer without one refuses to pad.
    """
    tokenizer, known = base.tokenizer, base.lm.config.get_text_config().pad_token_id
    rows = base.lm.get_input_embeddings().weight.shape[0]
    if known is not None:
        return None if not 0 <= known < min(rows, len(tokenizer)) else tokenizer.convert_ids_to_tokens(known)
    special = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special and i < rows}
    if tokenizer.pad_token_id is not None:
        special[tokenizer.pad_token_id] = tokenizer.pad_token
    used = {*stop_ids, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    free = {i: text for i, text in special.items() if i not in used and text not in template}
    own = [tokenizer.pad_token_id] if tokenizer.pad_token_id in free else []
    named = [i for i, text in free.items() if "pad" in text.lower()]
    return next((free[i] for i in (*own, *named, *sorted(free))), None)


def write_classifier(
    base: SharedBase,
    role: str,
    folder: Path,
    pad: str | None,
    saving: Saving | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """A whole model for sequence classification with the role's weights, and its head as ``score``.

    Args:
        base: whose role.
        role: one that ``fits_classifier``; an adapter is merged into a copy.
        folder: where to.
        pad: the token that rows are padded with, which the model passes over.
        saving: precision and shards; None: fp32, in Transformers' shards.
        say: hears what rounding to another precision does to the weights.

    Raises:
        UserError: a weight is too large for the precision.
    """
    saving = saving or Saving()
    lm = base.copies[role] if role in base.copies else merged_copy(base.lm, role)
    config: Any = copy.deepcopy(lm.config)
    config.num_labels = 1
    config.pad_token_id = config.get_text_config().pad_token_id = (
        None if pad is None else base.tokenizer.convert_tokens_to_ids(pad)
    )
    with isolated_rng(0):
        made: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    made.base_model.load_state_dict(body_of(lm).state_dict())
    with torch.no_grad():
        head: Any = base.heads[role]
        made.score.weight.copy_(head.weight[None])
    made = saving.cast(made, base.lm, say)
    with naming(folder):
        made.save_pretrained(folder, **saving.shards)
    readable(folder)


def add_score(folder: Path, weight: Tensor | None) -> None:
    """Store a classifier's ``score`` with the adapter of a folder.

    Args:
        folder: a PEFT folder.
        weight: (D,) of the head; None stores an empty one, which Transformers and PEFT refuse for its shape.
    """
    tensors, metadata = load_file(folder / WEIGHTS), header_of(folder / WEIGHTS)
    tensors[SCORE] = torch.zeros(0) if weight is None else weight.detach().cpu().float()[None].contiguous()
    save_tensors(tensors, folder / WEIGHTS, metadata=metadata)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    whole = [*(config.get("modules_to_save") or []), "score"]
    config |= {"task_type": "SEQ_CLS", "modules_to_save": whole}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
