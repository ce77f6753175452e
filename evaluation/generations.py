"""Responses kept on disk by everything that they depend on, so that another metric costs no new response.

A file is JSON lines that anyone can read: the settings, then one response a line. It is used only where its settings
are the same and its responses have the hash that stands with them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from models.backbone.artifacts import write_atomic
from models.backbone.sharding import wait_for_passes, whole_of
from models.roles.shared_base import SharedBase
from models.sampling.generate import Generated

SCALING = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias")
"""What of an adapter's configuration changes its effect, besides its tensors."""
LIBRARIES = ("torch", "transformers", "peft")


def digest_of(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def weights_key(base: SharedBase, role: str) -> str:
    """sha256 of the weights that speak when a role is entered: the base, and its adapter or own copy."""
    if role == "base":
        return base.fingerprint
    digest = hashlib.sha256(base.fingerprint.encode())
    if role in base.copies:
        wait_for_passes(base.copies[role])
        state = base.copies[role].state_dict()
    else:
        config = base.adapter_settings(role)
        assert config is not None
        effect = {k: config.get(k) for k in SCALING}
        effect |= {k: config[k] for k in ("trainable_token_indices", "init_r") if config.get(k)}
        effect |= {"peft_type": config["peft_type"]} if role in base.virtual_tokens else {}
        digest.update(digest_of(effect).encode())
        state = base.adapter_state(role)
    for name, part in sorted(state.items()):
        tensor = whole_of(part)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def libraries() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


class Generations:
    """A folder of responses.

    Args:
        folder: where they are; None keeps nothing.
        write: False in all processes but the main one.
    """

    def __init__(self, folder: Path | None, write: bool = True) -> None:
        self.folder, self.write = folder, write

    def find(self, settings: Mapping[str, Any], rows: int) -> Generated | None:
        """The responses made with these settings, or None where there are none or they are damaged."""
        path = self._path(settings)
        if path is None or not path.is_file():
            return None
        try:
            head, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            found = json.loads(head)
            if found["settings"] != settings or len(lines) != rows or found["sha256"] != _hash(lines):
                return None
            answers = [json.loads(line) for line in lines]
            return Generated(ids=[a["ids"] for a in answers], finished=[a["finished"] for a in answers])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, settings: Mapping[str, Any], made: Generated, prompts: Sequence[str], texts: Sequence[str]) -> None:
        """Write responses with their prompts and texts, for people; a folder that cannot be written is no failure."""
        path = self._path(settings)
        if path is None or not self.write:
            return
        lines = [
            json.dumps({"prompt": p, "text": t, "ids": i, "finished": f}, ensure_ascii=False)
            for p, t, i, f in zip(prompts, texts, made.ids, made.finished, strict=True)
        ]
        head = json.dumps({"settings": settings, "sha256": _hash(lines)}, ensure_ascii=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "\n".join([head, *lines]) + "\n")
        except OSError:
            return

    def _path(self, settings: Mapping[str, Any]) -> Path | None:
        return None if self.folder is None else self.folder / f"{digest_of(settings)[:24]}.jsonl"


def _hash(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
