"""The one frozen base that every stage shares, and the roles that stand on it.

A role is a PEFT adapter (``adapters``), virtual tokens (``virtual_tokens``) or a model of its own (``copies``), and
perhaps a scalar head. Entering one selects it without touching anybody's ``requires_grad``, and is undone in
``finally``. Hold a role through forward *and* backward: with gradient checkpointing the recomputation in backward runs
with whichever adapter is active then. This module knows nothing of data, losses or stages.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone.architecture import check_architecture, linear_layers, out_of_reach
from models.backbone.artifacts import Artifact
from models.backbone.forward import check_logit_path, switch_off_dropout
from models.backbone.four_bits import quantize
from models.backbone.processes import Processes
from models.backbone.scalar_head import ScalarHead
from models.backbone.seeds import derived_seed
from models.backbone.settings import AdapterConfig
from models.backbone.sharding import shards_of
from models.backbone.trained_shards import trained_parameters
from models.fast.prefix_cache import PrefixCache
from models.hub.limits import Limits, limits_of_model
from models.hub.load import dtype_of, load_lm_and_tokenizer, stop_ids_of, stop_strings_of
from models.hub.registry import resolve_base
from models.hub.spec import BaseModelSpec
from models.roles.adapters import Adapters
from models.roles.copies import Copies
from models.roles.files import HEAD, AdapterFiles, HeadFile, read_role
from models.roles.fingerprint import fingerprint_of, tensors_of
from models.roles.prompts import method_of_prompt
from models.roles.role_view import RoleView
from models.roles.together import KnownStates
from models.roles.virtual_tokens import VirtualTokens


class SharedBase:
    """A frozen causal LM in memory once, with named roles.

    Args:
        lm: the base; it is put into eval mode, frozen, and all its dropout is set to 0.
        tokenizer: its tokenizer.
        name: what messages call it.
    """

    fast = True  # False: every pass by Transformers' own modules

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        name: str = "base",
        extra_stop_ids: tuple[int, ...] = (),
        extra_stop_strings: tuple[str, ...] = (),
    ) -> None:
        self.tokenizer, self.name, self.extra_stop_ids = tokenizer, name, extra_stop_ids
        self.extra_stop_strings = extra_stop_strings
        self.lm = lm.eval().requires_grad_(False)
        switch_off_dropout(lm)
        check_architecture(lm, name)
        check_logit_path(lm, name)
        self.linear_names = linear_layers(lm)  # before adapters bring linear layers of their own
        self.out_of_reach = out_of_reach(lm, self.linear_names)
        self.adapters = Adapters(lm, tokenizer, name, self.linear_names)
        self.virtual_tokens = VirtualTokens(lm, tokenizer, name)
        self.copies = Copies(lm, name, self.linear_names)
        self.heads = nn.ModuleDict()
        self.prefix_cache: PrefixCache | None = None  # set by whoever reads the same rows by several roles
        self.known: dict[str, KnownStates] = {}  # by role, while ``models.roles.together.known_states`` is open
        self.reserved = 0  # positions that virtual tokens take, or will
        if (shards := shards_of(lm)) is not None:
            weakref.finalize(self, shards.give_up)
        self.fingerprint = self.base_fingerprint()
        self._select(None)

    @classmethod
    def load(
        cls,
        spec: BaseModelSpec | str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        four_bits: bool = False,
        divided: Processes | None = None,
    ) -> SharedBase:
        """Load a base: a registry entry or name, a folder, or a hub id.

        Args:
            spec: what it is; folders are relative to the working directory.
            device: where it goes; "auto" is the GPU that torch sees, otherwise the CPU.
            dtype: of its weights; "auto" is the spec's, or bf16 where the device multiplies it faster, else fp32.
            four_bits: put the matrices of its blocks into four bits (NF4).
            divided: processes that hold its weights in parts, all of which call this at the same place.

        Raises:
            UserError: nothing of that name, or it cannot be loaded safely, or not divided.
        """
        if not isinstance(spec, BaseModelSpec):
            spec = resolve_base(str(spec), base_dir=Path.cwd())
        if device == "auto":
            device = torch.accelerator.current_accelerator() or "cpu" if torch.accelerator.is_available() else "cpu"
        place = torch.device(device)
        if not isinstance(dtype, torch.dtype):
            dtype = dtype_of(spec, dtype, place)
        lm, tokenizer = load_lm_and_tokenizer(spec, dtype, torch.device("cpu") if four_bits else place, divided)
        if four_bits:
            quantize(lm, linear_layers(lm), place)
        ids, strings = stop_ids_of(lm), stop_strings_of(lm)
        return cls(lm, tokenizer, name=spec.name, extra_stop_ids=ids, extra_stop_strings=strings)

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return next(self.lm.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the base's weights."""
        return next(self.lm.parameters()).dtype

    @property
    def divided(self) -> bool:
        """Whether several processes hold it in parts."""
        return shards_of(self.lm) is not None

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden states."""
        return self.lm.config.get_text_config().hidden_size

    @property
    def limits(self) -> Limits:
        """Which ids and positions the base takes; without positions that virtual tokens take."""
        found = limits_of_model(self.lm, self.name)
        return found if found.positions is None else replace(found, positions=found.positions - self.reserved)

    @property
    def context_length(self) -> int | None:
        """Positions that the model has for a row's own tokens, where its config says so."""
        found = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None)
        return None if found is None else found - self.reserved

    def base_tensors(self) -> dict[str, Tensor]:
        """Parameters of the base by name, each storage once (tied weights appear under their first name).

        Of a divided base they are this process's parts.
        """
        return tensors_of(self.lm)

    def base_fingerprint(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of the base; the same whatever roles stand on it, and whether or
        not it is divided: then all processes compute it together, a tensor at a time."""
        return fingerprint_of(self.lm)

    # -- roles ---------------------------------------------------------------------------------------------------

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of all roles."""
        return tuple(dict.fromkeys([*self.adapters, *self.virtual_tokens, *self.copies, *self.heads]))

    def add_role(
        self,
        name: str,
        source: AdapterConfig | Artifact | Path | None = None,
        *,
        copy_of: str | None = None,
        trainable: bool = False,
        head: bool = False,
        seed: int = 0,
    ) -> None:
        """Add a role: a fresh adapter (an identity at first), a finished stage's, or a copy of another role's.

        Args:
            name: its name.
            source: the settings of a fresh adapter; or a finished stage (or any folder that ``load_role`` reads), whose
                head comes along. Not needed with ``copy_of``, which takes the other role's settings.
            copy_of: the role to start from. Heads are not copied. Settings of an adapter with it must be that role's
                (see ``unlike``).
            trainable: ask for gradients from now on; a role is frozen otherwise, see also ``training``.
            head: make a fresh head, or demand a stored one.
            seed: of a fresh adapter and head.

        Raises:
            ValueError: the name is taken, there is nothing to start from, or a copy cannot have these settings.
            UserError: the folder does not fit this base.
        """
        if name in self.roles:
            raise ValueError(f"role '{name}' exists already: {', '.join(self.roles)}")
        is_settings = isinstance(source, AdapterConfig)
        if (source is None and copy_of is None) or (source is not None and not is_settings and copy_of is not None):
            raise ValueError(f"role '{name}': give an AdapterConfig, a finished stage, or copy_of; one of them")
        if isinstance(source, Artifact | Path | str):
            folder = source.path if isinstance(source, Artifact) else Path(source)
            self.load_role(name, folder, head=head or (folder / HEAD).is_file())
        else:
            with self._selection_kept():
                if copy_of is not None:
                    self._add_copy(name, source, copy_of, seed, head)
                elif source is not None:
                    self._add_fresh(name, source, seed, head)
        if head and name not in self.heads:
            self.add_head(name, seed)
        if trainable:
            self.copies.make_own(name)
        for p in self.parameters_of(name).values():
            p.requires_grad_(trainable)

    def _add_fresh(self, name: str, adapter: AdapterConfig, seed: int, head: bool) -> None:
        if adapter.tuning.copies:
            self.copies.add_fresh(name, adapter)
        elif adapter.tuning.virtual:
            self.virtual_tokens.add_fresh(name, adapter, seed, head)
        else:
            self.adapters.add_fresh(name, adapter, seed, head)

    def _add_copy(self, name: str, adapter: AdapterConfig | None, of: str, seed: int, head: bool) -> None:
        """The same weights as another role's; with a method that makes copies an adapter is merged into the copy."""
        if of not in self.roles:
            raise ValueError(f"no role '{of}' to start '{name}' from; there are: {', '.join(self.roles) or 'none'}")
        if adapter is not None and (differ := self.unlike(adapter, of)):
            raise ValueError(f"role '{name}' is a copy of '{of}' and cannot have other settings ({differ})")
        if of in self.copies:
            self.copies.add_copy(name, of, adapter)
        elif adapter is not None and adapter.tuning.copies:
            self.copies.add_merged(name, of, adapter)
        elif of in self.virtual_tokens:
            self.virtual_tokens.add_copy(name, of)
        else:
            self._check_adapter(of)
            self.adapters.add_copy(name, of, seed, head)

    def load_role(self, name: str, folder: Path, *, head: bool = False) -> dict[str, float]:
        """Add a frozen role from an artifact, a plain PEFT folder or a plain Transformers folder.

        Args:
            name: its name here.
            folder: what ``models.roles.files.read_role`` reads.
            head: load its head too.

        Returns:
            The numbers stored with the head (``score_mean`` and ``score_std`` of a reward model), or an empty dict.

        Raises:
            UserError: nothing loadable there, pickled weights, a wrong fit, or a head that is asked for and missing.
        """
        found = read_role(folder, head=head)
        with self._selection_kept():
            if found.adapter is not None:
                self._add_stored(name, found.adapter, found.head is not None)
            elif found.model is not None:
                self.copies.add_stored(name, found.model)
        return {} if found.head is None else self._add_stored_head(name, found.head)

    def _add_stored(self, name: str, stored: AdapterFiles, head: bool) -> None:
        if method_of_prompt(stored.config) is not None:
            self.virtual_tokens.add_stored(name, stored)
        else:
            self.adapters.add_stored(name, stored, head)

    def _add_stored_head(self, name: str, stored: HeadFile) -> dict[str, float]:
        made, numbers = stored.build(self.hidden_size)
        self.heads[name] = made.to(self.device).requires_grad_(False)
        return numbers

    def add_head(self, name: str, seed: int = 0) -> ScalarHead:
        """Give a role a fresh, frozen scalar head."""
        g = torch.Generator().manual_seed(derived_seed(seed, f"head/{name}"))
        self.heads[name] = ScalarHead(self.hidden_size, g).to(self.device).requires_grad_(False)
        return self.heads[name]  # type: ignore[return-value]

    def unlike(self, adapter: AdapterConfig, role: str) -> str:
        """In which settings a copy of a role is not as asked; empty where it is, or is merged into a full copy."""
        if role in self.virtual_tokens:
            return self.virtual_tokens.unlike(adapter, role)
        if role in self.copies:
            whole = f"adapter.method: {adapter.method} is asked for, '{role}' is full"
            return "" if adapter.tuning.copies else whole
        if adapter.tuning.copies:
            return ""
        self._check_adapter(role)
        return self.adapters.unlike(adapter, role, head=role in self.heads)

    def drop_roles(self) -> None:
        """Remove every role and head; the base is as it was loaded."""
        self.adapters.clear()
        self.virtual_tokens.clear()
        self.copies.clear()
        self.heads = nn.ModuleDict()
        self._select(None)

    # -- entering a role -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def role(self, name: str) -> Iterator[RoleView]:
        """Enter a role (``"base"`` is the bare base); what was active before is active again afterwards."""
        if name != "base" and name not in self.roles:
            raise ValueError(f"no role '{name}'; there are: base, {', '.join(self.roles)}")
        before = self._active
        self._select(None if name == "base" else name)
        head: Any = self.heads[name] if name in self.heads else None  # noqa: SIM401 (a ModuleDict has no get)
        lm = self.copies.get(name, self.lm)
        try:
            cache, known = self.prefix_cache, self.known.get(name)
            yield RoleView(name=name, lm=lm, head=head, fast=self.fast, prefix_cache=cache, known=known)
        finally:
            self._select(before)

    def _select(self, name: str | None) -> None:
        self._active = name
        self.adapters.select(name)
        self.virtual_tokens.select(name)

    @contextlib.contextmanager
    def _selection_kept(self) -> Iterator[None]:
        """Add a role, which selects others meanwhile; positions of its virtual tokens are no row's own from then on."""
        try:
            yield
        finally:
            self._select(self._active)
        self.reserved = max([self.reserved, *map(self.virtual_tokens.positions, self.virtual_tokens)])

    # -- its adapter ---------------------------------------------------------------------------------------------

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter of a role; None where it has none."""
        return name if name in self.adapters else None

    def adapter_settings(self, name: str) -> dict[str, Any] | None:
        """What, with its weights, makes a role's adapter; None where the role has none."""
        config = self.virtual_tokens.get(name) or self.adapters.get(name)
        return None if config is None else config.to_dict() | {"inference_mode": None}

    def adapter_state(self, name: str) -> dict[str, Tensor]:
        """A role's adapter under PEFT's own file names, on the CPU."""
        if name in self.virtual_tokens:
            return self.virtual_tokens.state(name)
        self._check_adapter(name)
        return self.adapters.state(name)

    def _check_adapter(self, name: str) -> None:
        if name not in self.adapters:
            raise ValueError(f"no adapter role '{name}'; there are: {', '.join(self.roles) or 'none'}")

    # -- trainable parameters ------------------------------------------------------------------------------------

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """Literal names and tensors of a role: its adapter (or its model) and its head."""
        kinds = (self.copies, self.virtual_tokens, self.adapters)
        weights = next((kind.parameters(name) for kind in kinds if name in kind), {})
        head = self.heads[name].named_parameters() if name in self.heads else ()
        out = weights | {f"{name}.head.{n}": p for n, p in head}
        if not out:
            raise ValueError(f"role '{name}' has no parameters; roles: {', '.join(self.roles)}")
        return out

    def trainable_names(self, name: str) -> list[str]:
        """Literal names of a role's tensors that ask for a gradient now."""
        return [n for n, p in self.parameters_of(name).items() if p.requires_grad]

    @contextlib.contextmanager
    def training(self, *names: str) -> Iterator[dict[str, nn.Parameter]]:
        """Make exactly these roles trainable, and everything as it was afterwards. Yields names and tensors."""
        for name in names:
            self.copies.make_own(name)
        before = {id(p) for p in self.all_parameters() if p.requires_grad}
        chosen = {n: p for name in names for n, p in self.parameters_of(name).items()}
        try:
            for p in self.all_parameters():
                p.requires_grad_(False)
            for p in chosen.values():
                p.requires_grad_(True)
            yield chosen
        finally:
            for p in self.all_parameters():
                p.requires_grad_(id(p) in before)
                p.grad = None

    def all_parameters(self) -> Iterable[nn.Parameter]:
        """The tensors of the base, of all roles and of their heads."""
        yield from self.lm.parameters()
        yield from self.heads.parameters()
        for model in self.copies.values():
            yield from trained_parameters(model).values()
