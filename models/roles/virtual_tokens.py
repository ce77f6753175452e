"""The roles of a base that have virtual tokens: vectors that stand before every row while the role is entered."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn

from data.common.errors import UserError
from models.backbone.seeds import derived_seed, isolated_rng
from models.backbone.settings import AdapterConfig
from models.backbone.sharding import shards_of
from models.backbone.soft_prompts import (
    HOLDER,
    SoftPrompt,
    add_prompt,
    prompts_of,
    remove_prompt,
    remove_prompts,
    select_prompt,
)
from models.roles.by_role import ByRole
from models.roles.files import AdapterFiles
from models.roles.methods import role_config
from models.roles.prompts import (
    STORED,
    check_padding,
    check_stored_prompt,
    fresh_prompt,
    prompt_differences,
    stored_prompt,
)


class VirtualTokens(ByRole[PeftConfig]):
    """PEFT's configuration of each role with virtual tokens. New ones are frozen.

    Args:
        lm: the base, which holds the vectors.
        tokenizer: its tokenizer.
        name: what messages call it.
    """

    def __init__(self, lm: Any, tokenizer: Any, name: str) -> None:
        self.lm, self.tokenizer, self.name = lm, tokenizer, name
        self._configs: dict[str, PeftConfig] = {}

    @property
    def held(self) -> Mapping[str, PeftConfig]:
        return self._configs

    def add_fresh(self, role: str, adapter: AdapterConfig, seed: int, head: bool) -> None:
        """Virtual tokens that begin as ordinary ones of the vocabulary, or as an encoder makes them.

        Raises:
            UserError: the base cannot have virtual tokens.
        """
        config = role_config(self.lm, (), self.tokenizer, adapter, head)
        with isolated_rng(derived_seed(seed, f"adapter/{role}")):
            self._add(role, config, fresh_prompt(self.lm, self.tokenizer, config))

    def add_copy(self, role: str, of: str) -> None:
        """The vectors of the role ``of``, to be trained as they are."""
        config = copy.deepcopy(self[of])
        self._add(role, config, stored_prompt(self.lm, config, prompts_of(self.lm)[of].vectors()))

    def add_stored(self, role: str, stored: AdapterFiles) -> None:
        """Virtual tokens from their files.

        Raises:
            UserError: they do not fit this base; names the folder.
        """
        check_stored_prompt(self.lm, self.name, stored.config, stored.tensors, str(stored.file.parent))
        self._add(role, stored.config, stored_prompt(self.lm, stored.config, stored.tensors[STORED]))

    def unlike(self, adapter: AdapterConfig, role: str) -> str:
        """In which settings the virtual tokens of a role are not as asked."""
        return prompt_differences(adapter, self[role], role)

    def state(self, role: str) -> dict[str, Tensor]:
        """The vectors (V, N) under PEFT's own file name, on the CPU."""
        return {STORED: prompts_of(self.lm)[role].vectors().detach().cpu().clone().contiguous()}

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The tensors of a role by their names in the base."""
        return {n: p for n, p in self.lm.named_parameters() if n.startswith(f"{HOLDER}.{role}.")}

    def positions(self, role: str) -> int:
        """How many positions of every row a role takes."""
        return prompts_of(self.lm)[role].count

    def select(self, role: str | None) -> None:
        """Let passes have the virtual tokens of a role, and none where it has none."""
        select_prompt(self.lm, role)

    def clear(self) -> None:
        """Take all of them from the base."""
        remove_prompts(self.lm)
        self._configs.clear()

    def _add(self, role: str, config: PeftConfig, prompt: SoftPrompt) -> None:
        if shards_of(self.lm) is not None:
            raise UserError(f"adapter.method: base {self.name} is held in parts, and virtual tokens read it whole")
        add_prompt(self.lm, role, prompt.eval().requires_grad_(False))
        try:
            self.select(role)
            check_padding(self.lm, self.name)
        except UserError:
            remove_prompt(self.lm, role)
            raise
        finally:
            self.select(None)
        self._configs[role] = config
