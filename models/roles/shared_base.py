"""The one frozen base that every stage shares, and the roles that stand on it.

A role is a PEFT adapter (or an fp32 copy of the model, or of the part of it that is trained) and perhaps a scalar head.
Entering one selects its adapter without touching anybody's ``requires_grad`` (PEFT's own ``set_adapter`` flips it) and
is undone in ``finally``. Hold a role through forward *and* backward: with gradient checkpointing the recomputation in
backward runs with whichever adapter is active then. This module knows nothing of data, losses or stages.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from data.common.errors import UserError
from models.backbone.architecture import check_architecture, linear_layers, out_of_reach
from models.backbone.artifacts import Artifact
from models.backbone.divided_copy import divided_copy
from models.backbone.forward import check_logit_path, full_copy, switch_off_dropout
from models.backbone.four_bits import quantize
from models.backbone.processes import Processes
from models.backbone.scalar_head import ScalarHead
from models.backbone.seeds import derived_seed, isolated_rng
from models.backbone.settings import AdapterConfig
from models.backbone.sharding import shards_of
from models.backbone.soft_prompts import HOLDER, add_prompt, prompts_of, remove_prompt, remove_prompts, select_prompt
from models.backbone.trained_shards import trained_parameters
from models.fast.prefix_cache import PrefixCache
from models.hub.limits import Limits, limits_of_model
from models.hub.load import dtype_of, load_causal_lm, load_lm_and_tokenizer, stop_ids_of, stop_strings_of
from models.hub.registry import resolve_base
from models.hub.spec import BaseModelSpec
from models.roles import embeddings
from models.roles import prompts as soft
from models.roles.files import HEAD, read_role
from models.roles.fingerprint import fingerprint_of, tensors_of
from models.roles.lora import CONSTANT, check_same_kind, differences, is_adapters, misfit, own_tensors, plain_name
from models.roles.methods import BEGINNINGS, adapter_config, begin, keep_second_half, trained_of
from models.roles.own_models import copied, delta_of, merged_copy, share_equal, unshare
from models.roles.role_view import RoleView
from models.roles.together import KnownStates, select_adapter


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
        self.peft: PeftModel | None = None
        self.heads = nn.ModuleDict()
        self.prefix_cache: PrefixCache | None = None  # set by whoever reads the same rows by several roles
        self.known: dict[str, KnownStates] = {}  # by role, while ``models.roles.together.known_states`` is open
        self.copies: dict[str, Any] = {}  # methods that train the base's tensors: role -> its own model
        self.partial: dict[str, set[str]] = {}  # role -> the tensors of its copy that are trained; absent: all
        self.prompt_configs: dict[str, PeftConfig] = {}  # of roles with a soft prompt, which the base holds
        self.reserved = 0  # positions that virtual tokens take, or will
        self.residual: dict[str, str] = {}  # role -> the method of a residual adapter, whose second half stays
        if (shards := shards_of(lm)) is not None:
            weakref.finalize(self, shards.give_up)
        self.fingerprint = self.base_fingerprint()
        self._layers: list[BaseTunerLayer] = []
        self._wrapped: list[Any] = []  # embeddings and output layer, where roles have their own
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
        return next(self.lm.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.lm.parameters()).dtype

    @property
    def divided(self) -> bool:
        """Whether several processes hold it in parts."""
        return shards_of(self.lm) is not None

    @property
    def hidden_size(self) -> int:
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
        adapters = [*(self.peft.peft_config if self.peft else ()), *self.prompt_configs]
        return tuple(dict.fromkeys([*adapters, *self.copies, *self.heads]))

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
            self._add_stored(name, source.path if isinstance(source, Artifact) else Path(source), head)
        elif copy_of is not None:
            self._add_copy(name, source, copy_of, seed, head)
        elif source is not None:
            self._add_fresh(name, source, seed, head)
        if head and name not in self.heads:
            self.add_head(name, seed)
        if trainable:
            self._own_all(name)
        for p in self.parameters_of(name).values():
            p.requires_grad_(trainable)

    def _own_all(self, name: str) -> None:
        """Give a stored model that is to be trained tensors of its own where it has the base's."""
        if name in self.copies and name not in self.partial and not self.divided:
            unshare(self.lm, self.copies[name])

    def _full_copy(self, role: str | None) -> Any:
        """A copy of the base in fp32, with a role's adapter merged into it; of a divided base, in parts as well."""
        if self.divided:
            return self._in_parts(divided_copy(self.lm, self.dtype, lambda name: delta_of(self.lm, name, role)))
        return full_copy(merged_copy(self.lm, role), self.dtype)

    def _in_parts(self, lm: Any) -> Any:
        """A divided copy, which goes when this base does."""
        weakref.finalize(self, lm.shards.give_up)
        return lm

    def _settings(self, adapter: AdapterConfig, head: bool) -> PeftConfig:
        """PEFT's configuration of an adapter for a role that has a scalar head, or reads the output layer."""
        config = adapter_config(self.lm, self.linear_names, adapter)
        return embeddings.add(config, self.lm, self.tokenizer, adapter, head)

    def _add_fresh(self, name: str, adapter: AdapterConfig, seed: int, head: bool) -> None:
        """A new adapter, or a copy of the base."""
        if adapter.method == "full":
            self.copies[name] = self._full_copy(None)
        elif adapter.tuning.copies:
            own = self._trained_tensors(adapter)
            self._own_model(name, merged_copy(self.lm, None, own), own)
        elif adapter.tuning.virtual:
            config = self._settings(adapter, head)
            with isolated_rng(derived_seed(seed, f"adapter/{name}")):
                self._add_prompt(name, config, soft.fresh_prompt(self.lm, self.tokenizer, config))
        else:
            self._add_adapter(name, self._settings(adapter, head), seed)
            if adapter.method in BEGINNINGS:
                with isolated_rng(derived_seed(seed, f"beginning/{name}")):
                    begin(self._layers, name, adapter.method)
                self._note_residual(name, adapter.method)

    def _add_prompt(self, name: str, config: PeftConfig, prompt: soft.SoftPrompt) -> None:
        if self.divided:
            raise UserError(f"adapter.method: base {self.name} is held in parts, and virtual tokens read it whole")
        add_prompt(self.lm, name, prompt.eval().requires_grad_(False))
        try:
            select_prompt(self.lm, name)
            soft.check_padding(self.lm, self.name)
        except UserError:
            remove_prompt(self.lm, name)
            raise
        finally:
            self._select(self._active)
        self.prompt_configs[name] = config
        self.reserved = max(self.reserved, prompt.count)

    def _note_residual(self, name: str, method: str) -> None:
        self.residual[name] = method
        keep_second_half(self.parameters_of(name))
        self.freeze(name)

    def _trained_tensors(self, adapter: AdapterConfig) -> set[str] | None:
        """Names of the tensors that a copy's method trains; None: all."""
        if adapter.method != "freeze":
            return None
        if self.divided:
            raise UserError(f"adapter.method: 'freeze' shares tensors with base {self.name}, which is held in parts")
        return trained_of(self.lm, self.linear_names, adapter)

    def _own_model(self, name: str, lm: Any, own: set[str] | None) -> None:
        self.copies[name] = full_copy(lm, self.dtype, keep=own is not None)
        if own is not None:
            self.partial[name] = own

    def _add_copy(self, name: str, adapter: AdapterConfig | None, of: str, seed: int, head: bool) -> None:
        """The same weights as another role's; with method "full" an adapter is merged into the copy."""
        if of not in self.roles:
            raise ValueError(f"no role '{of}' to start '{name}' from; there are: {', '.join(self.roles) or 'none'}")
        if adapter is not None and (differ := self.unlike(adapter, of)):
            raise ValueError(f"role '{name}' is a copy of '{of}' and cannot have other settings ({differ})")
        if of in self.copies:
            there, own = self.copies[of], self.partial.get(of) if adapter is None else self._trained_tensors(adapter)
            if self.divided:
                self.copies[name] = self._in_parts(divided_copy(there, self.dtype))
            else:
                self._own_model(name, copied(there, own), own)
        elif adapter is not None and adapter.tuning.copies:
            self.copies[name] = self._full_copy(of)
            if (own := self._trained_tensors(adapter)) is not None:
                self.partial[name] = own
        elif of in self.prompt_configs:
            config = copy.deepcopy(self.prompt_configs[of])
            vectors = prompts_of(self.lm)[of].vectors()
            self._add_prompt(name, config, soft.stored_prompt(self.lm, config, vectors))
        else:
            config = copy.deepcopy(self._config(of))
            self._add_adapter(name, embeddings.without_output(config, self.lm) if head else config, seed)
            state = self.adapter_state(of)
            self._fill_adapter(name, {key: state[key] for key in self.adapter_state(name)})
            if of in self.residual:
                self._note_residual(name, self.residual[of])

    def unlike(self, adapter: AdapterConfig, role: str) -> str:
        """In which settings a copy of a role is not as asked; empty where it is, or is merged into a full copy."""
        if role in self.prompt_configs:
            return soft.prompt_differences(adapter, self.prompt_configs[role], role)
        if role in self.copies:
            whole = f"adapter.method: {adapter.method} is asked for, '{role}' is full"
            return "" if adapter.tuning.copies else whole
        if adapter.tuning.copies:
            return ""
        asked = adapter.method if adapter.method in BEGINNINGS else "lora"
        if (there := self.residual.get(role, "lora")) != asked:
            return f"method: {adapter.method} is asked for, '{role}' has {there}"
        config = self._settings(adapter, role in self.heads)
        return differences(self.lm, config, self._config(role), role)

    def _add_stored(self, name: str, folder: Path, head: bool) -> None:
        """What a finished stage wrote, with its head where it has one."""
        self.load_role(name, folder, head=head or (folder / HEAD).is_file())

    def add_head(self, name: str, seed: int = 0) -> ScalarHead:
        g = torch.Generator().manual_seed(derived_seed(seed, f"head/{name}"))
        self.heads[name] = ScalarHead(self.hidden_size, g).to(self.device).requires_grad_(False)
        return self.heads[name]  # type: ignore[return-value]

    def drop_roles(self) -> None:
        """Remove every role and head; the base is as it was loaded."""
        if self.peft is not None:
            embeddings.unwrap(self.lm, None)
            lora: Any = self.peft.base_model
            for name in list(self.peft.peft_config):
                lora.delete_adapter(name)
            lora.unload()  # PEFT places a next adapter relative to one that it believes active
        self.peft, self._layers, self._wrapped = None, [], []
        for model in self.copies.values():
            if (shards := shards_of(model)) is not None:
                shards.give_up()
        remove_prompts(self.lm)
        self.prompt_configs.clear()
        self.copies.clear()
        self.partial.clear()
        self.residual.clear()
        self.heads = nn.ModuleDict()
        self._select(None)

    def _config(self, name: str) -> PeftConfig:
        if name in self.prompt_configs:
            return self.prompt_configs[name]
        if self.peft is None or name not in self.peft.peft_config:
            raise ValueError(f"no adapter role '{name}'; there are: {', '.join(self.roles) or 'none'}")
        return self.peft.peft_config[name]

    def adapter_settings(self, name: str) -> dict[str, Any] | None:
        """What, with its weights, makes a role's adapter; None where the role has none."""
        if name not in self.prompt_configs and self.adapter_of(name) is None:
            return None
        return self._config(name).to_dict() | {"inference_mode": None}

    def _add_adapter(self, name: str, config: PeftConfig, seed: int) -> None:
        if self.peft is not None:
            check_same_kind(name, config, next(iter(self.peft.peft_config.values())), self.name)
        trainable = self._trainable_now()
        embeddings.tie(config, self.lm)
        with isolated_rng(derived_seed(seed, f"adapter/{name}")), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(tie_word_embeddings=True|ensure_weight_tying)")  # seen to: `tie`
            first = self.peft is None
            try:
                if self.peft is None:
                    self.peft = get_peft_model(self.lm, config, adapter_name=name)
                else:
                    self.peft.add_adapter(name, config)
            except ValueError as error:
                raise UserError(f"adapter.targets: PEFT cannot place the adapter on {self.name}: {error}") from error
        embeddings.widen(self.lm, name, self.dtype)
        self._wrapped = [wrapper for _, wrapper in embeddings.wrappers(self.lm)]
        self._layers = [m for m in self.lm.modules() if isinstance(m, BaseTunerLayer)]
        # a sorted list instead of PEFT's set: the saved configuration has the same bytes every time
        kept: Any = self._config(name)
        if isinstance(kept.target_modules, set):
            kept.target_modules = sorted(kept.target_modules)
        self._restore_trainable(trainable)
        self.lm.eval()
        self._select(None)
        if first:  # what is trained can be read again
            self._fill_adapter(name, self.adapter_state(name))

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
        adapter = self.adapter_of(name)
        for layer in self._layers:
            select_adapter(layer, adapter)
        embeddings.select(self._wrapped, adapter)
        select_prompt(self.lm, name)

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter of a role; None where it has none."""
        return name if self.peft is not None and name in self.peft.peft_config else None

    # -- trainable parameters ------------------------------------------------------------------------------------

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """Literal names and tensors of a role: its adapter (or its model) and its head."""
        out: dict[str, nn.Parameter] = {}
        if name in self.copies:
            own = self.partial.get(name)
            named = trained_parameters(self.copies[name])
            out |= {f"{name}.{n}": p for n, p in named.items() if own is None or plain_name(n) in own}
        elif name in self.prompt_configs:
            out |= {n: p for n, p in self.lm.named_parameters() if n.startswith(f"{HOLDER}.{name}.")}
        elif self.peft is not None and name in self.peft.peft_config:
            marked = ((n, p) for n, p in self.lm.named_parameters() if is_adapters(n) and CONSTANT not in n)
            out |= {n: p for n, p in marked if f".{name}." in f"{n}."}
        if name in self.heads:
            out |= {f"{name}.head.{n}": p for n, p in self.heads[name].named_parameters()}
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
            self._own_all(name)
        before = self._trainable_now()
        chosen = {n: p for name in names for n, p in self.parameters_of(name).items()}
        try:
            for p in self._all_parameters():
                p.requires_grad_(False)
            for p in chosen.values():
                p.requires_grad_(True)
            yield chosen
        finally:
            self._restore_trainable(before)
            for p in self._all_parameters():
                p.grad = None

    def freeze(self, name: str) -> None:
        for p in self.parameters_of(name).values():
            p.requires_grad_(False)

    def _all_parameters(self) -> Iterable[nn.Parameter]:
        yield from self.lm.parameters()
        yield from self.heads.parameters()
        for model in self.copies.values():
            yield from trained_parameters(model).values()

    def _trainable_now(self) -> set[int]:
        return {id(p) for p in self._all_parameters() if p.requires_grad}

    def _restore_trainable(self, ids: set[int]) -> None:
        for p in self._all_parameters():
            p.requires_grad_(id(p) in ids)

    # -- state ---------------------------------------------------------------------------------------------------

    def adapter_state(self, name: str) -> dict[str, Tensor]:
        """A role's adapter under PEFT's own file names, on the CPU."""
        if name in self.prompt_configs:
            return {soft.STORED: prompts_of(self.lm)[name].vectors().detach().cpu().clone().contiguous()}
        self._config(name)
        with embeddings.passed_over(self._wrapped, name):
            state = get_peft_model_state_dict(self.peft, adapter_name=name, save_embedding_layers=False)
        return {k: v.detach().cpu().clone().contiguous() for k, v in state.items()}

    def _fill_adapter(self, name: str, state: dict[str, Tensor]) -> None:
        """Fill an adapter with weights under PEFT's own file names.

        Raises:
            UserError: PEFT has no place for one of them, which it says nothing about.
        """
        with embeddings.passed_over(self._wrapped, name):
            found: Any = set_peft_model_state_dict(self.peft, state, adapter_name=name)
        lost = found.unexpected_keys
        if lost:
            raise UserError(
                f"base {self.name}: PEFT does not read an adapter's weights back where it wrote them, for Transformers "
                f"renames them ({lost[0]}): name other layers in adapter.targets"
            )

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
        if found.adapter is not None and soft.method_of_prompt(found.adapter.config) is not None:
            source, config = str(found.adapter.file.parent), found.adapter.config
            soft.check_stored_prompt(self.lm, self.name, config, found.adapter.tensors, source)
            self._add_prompt(name, config, soft.stored_prompt(self.lm, config, found.adapter.tensors[soft.STORED]))
        elif found.adapter is not None:
            embeddings.check_stored(self.lm, found.adapter.config, found.adapter.file, found.head is not None)
            whole = embeddings.whole_modules(found.adapter.config, self.lm)
            own = own_tensors(self.lm, self.name, found.adapter.file, found.adapter.tensors, whole)
            self._load_adapter(name, found.adapter.config, own, str(found.adapter.file.parent))
            if found.adapter.residual is not None:
                self._note_residual(name, found.adapter.residual)
        elif found.model is not None:
            self._load_model(name, found.model)
        if found.head is None:
            return {}
        made, numbers = found.head.build(self.hidden_size)
        self.heads[name] = made.to(self.device).requires_grad_(False)
        return numbers

    def _load_model(self, name: str, folder: Path) -> None:
        """A role that is a whole model of this base's shape."""
        shards = shards_of(self.lm)
        divided = None if shards is None else shards.processes
        lm = load_causal_lm(str(folder), None, torch.float32, self.device, divided)
        ours, theirs = self.lm.config.get_text_config(), lm.config.get_text_config()
        if (ours.vocab_size, ours.hidden_size) != (theirs.vocab_size, theirs.hidden_size):
            raise UserError(
                f"{folder}: vocabulary {theirs.vocab_size} and width {theirs.hidden_size} differ from base {self.name} "
                f"({ours.vocab_size}, {ours.hidden_size})"
            )
        lm.config = copy.deepcopy(self.lm.config)  # the base's settings, whoever wrote the folder
        lm.generation_config = copy.deepcopy(self.lm.generation_config)
        if shards is None:
            self.copies[name] = full_copy(lm, self.dtype)
            share_equal(self.lm, self.copies[name])
            return
        check_logit_path(lm, str(folder))  # FSDP learns at the first pass which module is the root
        self.copies[name] = self._in_parts(divided_copy(lm, self.dtype))
        lm.shards.give_up()

    def _load_adapter(self, name: str, config: PeftConfig, state: dict[str, Tensor], source: str) -> None:
        """Add a frozen role from saved weights; every tensor must be there, and no other.

        Raises:
            UserError: names or shapes do not fit this base, naming ``source``.
        """
        self._add_adapter(name, config, seed=0)
        own = self.adapter_state(name)
        if what := misfit(own, state):
            assert self.peft is not None
            self.peft.delete_adapter(name)
            raise UserError(f"{source}: the adapter does not fit base {self.name} ({what})")
        self._fill_adapter(name, state)
        self.freeze(name)
