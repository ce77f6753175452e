"""The PEFT adapters of a base: placed on it, filled, selected, read again and taken away.

PEFT's own switching is not used: its ``set_adapter`` flips ``requires_grad`` of other adapters, and its
``disable_adapter`` un-freezes frozen ones.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from data.common.errors import UserError
from models.backbone.seeds import derived_seed, isolated_rng
from models.backbone.settings import AdapterConfig
from models.roles import embeddings
from models.roles.by_role import ByRole
from models.roles.files import AdapterFiles
from models.roles.lora import CONSTANT, check_same_kind, differences, is_adapters, misfit, own_tensors
from models.roles.methods import BEGINNINGS, begin, keep_second_half, role_config
from models.roles.together import select_adapter


class Adapters(ByRole[PeftConfig]):
    """PEFT's configuration of each role with an adapter. A new adapter is frozen and not selected.

    Args:
        lm: the base.
        tokenizer: its tokenizer.
        name: what messages call it.
        linear_names: its linear layers, without those that adapters bring.
    """

    def __init__(self, lm: Any, tokenizer: Any, name: str, linear_names: Sequence[str]) -> None:
        self.lm, self.tokenizer, self.name, self.linear_names = lm, tokenizer, name, linear_names
        self.peft: PeftModel | None = None  # from the first adapter on
        self.residual: dict[str, str] = {}  # role -> the method of a residual adapter, whose second half stays
        self._layers: list[BaseTunerLayer] = []
        self._wrapped: list[Any] = []  # embeddings and output layer, where roles have their own

    @property
    def held(self) -> Mapping[str, PeftConfig]:
        """Empty before the first adapter."""
        return {} if self.peft is None else self.peft.peft_config

    def add_fresh(self, role: str, adapter: AdapterConfig, seed: int, head: bool) -> None:
        """An adapter that is an identity at first.

        Raises:
            UserError: it cannot stand on this base.
        """
        self._place(role, role_config(self.lm, self.linear_names, self.tokenizer, adapter, head), seed)
        if adapter.method in BEGINNINGS:
            with isolated_rng(derived_seed(seed, f"beginning/{role}")):
                begin(self._layers, role, adapter.method)
            self._note_residual(role, adapter.method)

    def add_copy(self, role: str, of: str, seed: int, head: bool) -> None:
        """The same adapter as that of the role ``of``; with a scalar head without what it has for the output layer."""
        config = copy.deepcopy(self[of])
        self._place(role, embeddings.without_output(config, self.lm) if head else config, seed)
        state = self.state(of)
        self._fill(role, {key: state[key] for key in self.state(role)})
        if of in self.residual:
            self._note_residual(role, self.residual[of])

    def add_stored(self, role: str, stored: AdapterFiles, head: bool) -> None:
        """An adapter from its files; every tensor must be there, and no other.

        Args:
            role: its name here.
            stored: what was read.
            head: it comes with a scalar head.

        Raises:
            UserError: names or shapes do not fit this base; names the file.
        """
        embeddings.check_stored(self.lm, stored.config, stored.file, head)
        whole = embeddings.whole_modules(stored.config, self.lm)
        tensors = own_tensors(self.lm, self.name, stored.file, stored.tensors, whole)
        self._place(role, stored.config, seed=0)
        if what := misfit(self.state(role), tensors):
            assert self.peft is not None
            self.peft.delete_adapter(role)
            raise UserError(f"{stored.file.parent}: the adapter does not fit base {self.name} ({what})")
        self._fill(role, tensors)
        if stored.residual is not None:
            self._note_residual(role, stored.residual)

    def unlike(self, adapter: AdapterConfig, role: str, head: bool) -> str:
        """In which settings the adapter of a role, with a scalar head or without, is not as asked."""
        asked = adapter.method if adapter.method in BEGINNINGS else "lora"
        if (there := self.residual.get(role, "lora")) != asked:
            return f"method: {adapter.method} is asked for, '{role}' has {there}"
        config = role_config(self.lm, self.linear_names, self.tokenizer, adapter, head)
        return differences(self.lm, config, self[role], role)

    def state(self, role: str) -> dict[str, Tensor]:
        """The tensors of an adapter under PEFT's own file names, on the CPU."""
        with embeddings.passed_over(self._wrapped, role):
            state = get_peft_model_state_dict(self.peft, adapter_name=role, save_embedding_layers=False)
        return {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The tensors of an adapter by their names in the base."""
        marked = ((n, p) for n, p in self.lm.named_parameters() if is_adapters(n) and CONSTANT not in n)
        return {n: p for n, p in marked if f".{role}." in f"{n}."}

    def select(self, role: str | None) -> None:
        """Let passes be computed with the adapter of a role, and with none where it has none."""
        adapter = role if role in self else None
        for layer in self._layers:
            select_adapter(layer, adapter)
        embeddings.select(self._wrapped, adapter)

    def clear(self) -> None:
        """Take every adapter away; the base has its own modules again."""
        if self.peft is not None:
            embeddings.unwrap(self.lm, None)
            lora: Any = self.peft.base_model
            for role in list(self):
                lora.delete_adapter(role)
            lora.unload()  # PEFT places a next adapter relative to one that it believes active
        self.peft, self._layers, self._wrapped = None, [], []
        self.residual.clear()

    def _place(self, role: str, config: PeftConfig, seed: int) -> None:
        if self.peft is not None:
            check_same_kind(role, config, next(iter(self.values())), self.name)
        embeddings.tie(config, self.lm)
        first = self.peft is None
        with (
            trainable_as_before(self.lm),
            isolated_rng(derived_seed(seed, f"adapter/{role}")),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", ".*(tie_word_embeddings=True|ensure_weight_tying)")  # seen to: `tie`
            try:
                if self.peft is None:
                    self.peft = get_peft_model(self.lm, config, adapter_name=role)
                else:
                    self.peft.add_adapter(role, config)
            except ValueError as error:
                raise UserError(f"adapter.targets: PEFT cannot place the adapter on {self.name}: {error}") from error
        embeddings.widen(self.lm, role, next(self.lm.parameters()).dtype)
        self._wrapped = [wrapper for _, wrapper in embeddings.wrappers(self.lm)]
        self._layers = [m for m in self.lm.modules() if isinstance(m, BaseTunerLayer)]
        # a sorted list instead of PEFT's set: the saved configuration has the same bytes every time
        kept: Any = self[role]
        if isinstance(kept.target_modules, set):
            kept.target_modules = sorted(kept.target_modules)
        self.lm.eval()
        self.select(None)
        if first:  # what is trained can be read again
            self._fill(role, self.state(role))

    def _fill(self, role: str, state: dict[str, Tensor]) -> None:
        """Fill an adapter with weights under PEFT's own file names.

        Raises:
            UserError: PEFT has no place for one of them, which it says nothing about.
        """
        with embeddings.passed_over(self._wrapped, role):
            found: Any = set_peft_model_state_dict(self.peft, state, adapter_name=role)
        lost = found.unexpected_keys
        if lost:
            raise UserError(
                f"base {self.name}: PEFT does not read an adapter's weights back where it wrote them, for Transformers "
                f"renames them ({lost[0]}): name other layers in adapter.targets"
            )

    def _note_residual(self, role: str, method: str) -> None:
        self.residual[role] = method
        keep_second_half(self.parameters(role))
        for p in self.parameters(role).values():
            p.requires_grad_(False)


@contextlib.contextmanager
def trainable_as_before(lm: nn.Module) -> Iterator[None]:
    """Whatever happens inside, afterwards the same tensors ask for gradients, and new ones do not."""
    before = {id(p) for p in lm.parameters() if p.requires_grad}
    try:
        yield
    finally:
        for p in lm.parameters():
            p.requires_grad_(id(p) in before)
