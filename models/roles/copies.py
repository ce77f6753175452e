"""Roles that have a model of their own: how it is copied from the base or from another role, or read from a folder."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.common.errors import UserError
from models.backbone.divided_copy import divided_copy
from models.backbone.forward import check_logit_path, full_copy
from models.backbone.settings import AdapterConfig
from models.backbone.sharding import shards_of
from models.backbone.trained_shards import trained_parameters
from models.hub.load import load_causal_lm
from models.roles.by_role import ByRole
from models.roles.lora import plain_name
from models.roles.methods import trained_of
from models.roles.own_models import copied, delta_of, merged_copy, share_equal, unshare


class Copies(ByRole[Any]):
    """The model of each such role, with fp32 weights where they are trained.

    With ``adapter.method: full`` all of its tensors are its own; with ``freeze`` those that are trained, and the others
    are the base's. On a base that is divided over processes the copies are divided too.

    Args:
        lm: the base, perhaps with adapters on it, which no copy has.
        name: what messages call it.
        linear_names: its linear layers, without those that adapters bring.
    """

    def __init__(self, lm: Any, name: str, linear_names: Sequence[str]) -> None:
        self.lm, self.name, self.linear_names = lm, name, linear_names
        self._models: dict[str, Any] = {}
        self._trained: dict[str, set[str]] = {}  # role -> the tensors of its copy that are trained; absent: all

    @property
    def held(self) -> Mapping[str, Any]:
        return self._models

    def add_fresh(self, role: str, adapter: AdapterConfig) -> None:
        """A copy of the base.

        Raises:
            UserError: it trains some tensors of a divided base.
        """
        trained = self._trained_by(adapter)
        if trained is None:
            self._models[role] = self._merged(None)
        else:
            self._keep(role, merged_copy(self.lm, None, trained), trained)

    def add_merged(self, role: str, of: str, adapter: AdapterConfig) -> None:
        """A copy of the base with the adapter of the role ``of`` merged into it."""
        self._models[role] = self._merged(of)
        if (trained := self._trained_by(adapter)) is not None:
            self._trained[role] = trained

    def add_copy(self, role: str, of: str, adapter: AdapterConfig | None) -> None:
        """A copy of the model of the role ``of``; without ``adapter`` the same tensors of it are trained."""
        there = self._models[of]
        trained = self._trained.get(of) if adapter is None else self._trained_by(adapter)
        if self._divided:
            self._models[role] = self._in_parts(divided_copy(there, self._base_dtype))
        else:
            self._keep(role, copied(there, trained), trained)

    def add_stored(self, role: str, folder: Path) -> None:
        """A plain Transformers folder, as a model of this base's shape.

        Raises:
            UserError: it cannot be loaded safely, or has another vocabulary or width.
        """
        shards = shards_of(self.lm)
        divided = None if shards is None else shards.processes
        device = next(self.lm.parameters()).device
        lm = load_causal_lm(str(folder), None, torch.float32, device, divided)
        self._check_shape(lm, folder)
        lm.config = copy.deepcopy(self.lm.config)  # the base's settings, whoever wrote the folder
        lm.generation_config = copy.deepcopy(self.lm.generation_config)
        if shards is None:
            self._models[role] = full_copy(lm, self._base_dtype)
            share_equal(self.lm, self._models[role])
            return
        check_logit_path(lm, str(folder))  # FSDP learns at the first pass which module is the root
        self._models[role] = self._in_parts(divided_copy(lm, self._base_dtype))
        lm.shards.give_up()

    def _check_shape(self, lm: Any, folder: Path) -> None:
        ours, theirs = self.lm.config.get_text_config(), lm.config.get_text_config()
        if (ours.vocab_size, ours.hidden_size) != (theirs.vocab_size, theirs.hidden_size):
            raise UserError(
                f"{folder}: vocabulary {theirs.vocab_size} and width {theirs.hidden_size} differ from base {self.name} "
                f"({ours.vocab_size}, {ours.hidden_size})"
            )

    def make_own(self, role: str) -> None:
        """Before a stored model is trained: tensors of its own where it has the base's."""
        if role in self and role not in self._trained and not self._divided:
            unshare(self.lm, self._models[role])

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The tensors of a role that its method trains, by name."""
        trained = self._trained.get(role)
        named = trained_parameters(self._models[role])
        return {f"{role}.{n}": p for n, p in named.items() if trained is None or plain_name(n) in trained}

    def clear(self) -> None:
        """Forget every copy; the parts of divided ones are given up."""
        for model in self._models.values():
            if (shards := shards_of(model)) is not None:
                shards.give_up()
        self._models.clear()
        self._trained.clear()

    @property
    def _base_dtype(self) -> torch.dtype:
        return next(self.lm.parameters()).dtype

    @property
    def _divided(self) -> bool:
        return shards_of(self.lm) is not None

    def _trained_by(self, adapter: AdapterConfig) -> set[str] | None:
        """Names of the tensors that these settings train; None: all."""
        if adapter.method != "freeze":
            return None
        if self._divided:
            raise UserError(f"adapter.method: 'freeze' shares tensors with base {self.name}, which is held in parts")
        return trained_of(self.lm, self.linear_names, adapter)

    def _keep(self, role: str, lm: Any, trained: set[str] | None) -> None:
        self._models[role] = full_copy(lm, self._base_dtype, keep=trained is not None)
        if trained is not None:
            self._trained[role] = trained

    def _merged(self, adapter: str | None) -> Any:
        """A copy of the base with all tensors of its own and a role's adapter merged into them."""
        if self._divided:
            return self._in_parts(
                divided_copy(self.lm, self._base_dtype, lambda name: delta_of(self.lm, name, adapter))
            )
        return full_copy(merged_copy(self.lm, adapter), self._base_dtype)

    def _in_parts(self, lm: Any) -> Any:
        """A divided copy, which goes when the base does."""
        weakref.finalize(self, lm.shards.give_up)
        return lm
