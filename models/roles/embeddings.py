"""Embeddings and output layer that a role trains beside its adapter: whole (PEFT's ``modules_to_save``), or the rows of
new tokens (its ``trainable_token_indices``). The base's own stay as they are, whatever stands around them.

What is trained is kept in at least fp32; a whole module's embeddings leave it in the base's precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn

from data.common.errors import UserError, nearest
from models.backbone.settings import AdapterConfig
from models.roles.lora import rows_of


def wrappers(lm: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of what PEFT has put around embeddings and output layer."""
    return ((name, module) for name, module in lm.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))


def ends(lm: Any) -> tuple[str, str | None, bool]:
    """Names of the embeddings and of the output layer, and whether the base ties the two."""
    first, last = lm.get_input_embeddings(), lm.get_output_embeddings()
    names = {id(module): name for name, module in lm.named_modules()}
    tied = last is not None and _plain(first).weight is _plain(last).weight
    return names[id(first)], None if last is None else names[id(last)], tied or _tied(lm)


def _tied(lm: Any) -> bool:
    return bool(getattr(lm.config.get_text_config(), "tie_word_embeddings", False))


def _plain(module: Any) -> Any:
    return module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module


def add(config: PeftConfig, lm: Any, tokenizer: Any, adapter: AdapterConfig, head: bool) -> PeftConfig:
    """PEFT's configuration with what ``adapter`` trains beside the adapter itself.

    Args:
        config: of the adapter; changed in place.
        lm: the base, whose vocabulary has the new tokens.
        tokenizer: the base's, which has them.
        adapter: the settings.
        head: the role has a scalar head, and never reads the output layer: that is left out.

    Raises:
        UserError: a module that is neither, a token without a row, or a base on which PEFT does it otherwise.
    """
    if not adapter.embeddings_setting:
        return config
    _add_whole(config, lm, adapter)
    if adapter.new_tokens:
        _add_rows(config, lm, tokenizer, adapter)
    return without_output(config, lm) if head else config


def _add_whole(config: Any, lm: Any, adapter: AdapterConfig) -> None:
    if not adapter.modules_to_save:
        return
    first, last, tied = ends(lm)
    known = [name for name in (first, last) if name is not None]
    chosen = dict.fromkeys(_found(one, known) for one in adapter.modules_to_save)
    if on := sorted(set(chosen) & {name for name in known if _adapted(name, config)}):
        raise UserError(f"adapter.modules_to_save: {on[0]} carries an adapter too (adapter.targets): name it once")
    if tied:
        if not isinstance(config, LoraConfig) or first.rsplit(".", 1)[-1] not in EMBEDDING_LAYER_NAMES:
            raise UserError(
                f"adapter.modules_to_save: the base ties {first} and {last}, and with adapter.method "
                f"'{adapter.method}' on this family PEFT would untie them: use adapter.method 'freeze' or 'full', or "
                "another base"
            )
        config.ensure_weight_tying, chosen = True, dict.fromkeys([first])
    config.modules_to_save = list(chosen)


def _found(asked: str, known: list[str]) -> str:
    """The full name of a module that a recipe names."""
    for name in known:
        if name == asked or name.endswith(f".{asked}"):
            return name
    raise UserError(
        f"adapter.modules_to_save: '{asked}' is neither the embeddings nor the output layer of the base "
        f"({', '.join(known)}).{nearest(asked, [name.rsplit('.', 1)[-1] for name in known])} Other modules are trained "
        "by adapter.method 'freeze' with adapter.targets"
    )


def _adapted(name: str, config: Any) -> bool:
    targets = config.target_modules
    return not isinstance(targets, str) and any(name == one or name.endswith(f".{one}") for one in targets)


def _add_rows(config: Any, lm: Any, tokenizer: Any, adapter: AdapterConfig) -> None:
    if adapter.modules_to_save:
        raise UserError("adapter.new_tokens: adapter.modules_to_save trains their rows with all others: remove one")
    first, last, tied = ends(lm)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in adapter.new_tokens]
    count = _plain(lm.get_input_embeddings()).weight.shape[0]
    if missing := [token for token, i in zip(adapter.new_tokens, ids, strict=True) if i is None or not 0 <= i < count]:
        raise UserError(f"adapter.new_tokens: {missing[0]!r} has no row in the base's embeddings")
    if last is not None and not tied and getattr(_plain(lm.get_output_embeddings()), "bias", None) is not None:
        raise UserError(
            f"adapter.new_tokens: the output layer of '{lm.config.model_type}' has a bias, which PEFT's rows lack; "
            "name the embeddings and the output layer in adapter.modules_to_save"
        )
    both = [first] if tied or last is None else [first, last]
    config.trainable_token_indices = {name: list(ids) for name in both}


def without_output(config: Any, lm: Any) -> PeftConfig:
    """The configuration for a role with a scalar head: the output layer is the base's."""
    last = ends(lm)[1]
    if getattr(config, "modules_to_save", None) is not None:
        kept = [one for one in config.modules_to_save if last is None or not last.endswith(one)]
        config.modules_to_save = kept or None
        if hasattr(config, "ensure_weight_tying"):
            config.ensure_weight_tying = False
    if (rows := rows_of(config)) and last is not None:
        config.trainable_token_indices = {name: ids for name, ids in rows.items() if not last.endswith(name)}
    return config


def whole_modules(config: PeftConfig, lm: Any) -> list[str]:
    """Names, or their ends, of the modules that an adapter's file has whole."""
    last = ends(lm)[1] if getattr(config, "ensure_weight_tying", False) else None
    return [*(getattr(config, "modules_to_save", None) or ()), *([] if last is None else [last])]


def tie(config: PeftConfig, lm: Any) -> None:
    """Let PEFT tie what a role trains where the base is tied: by itself it does so for the first adapter alone."""
    tied: Any = config
    whole = getattr(config, "modules_to_save", None) and getattr(config, "ensure_weight_tying", False)
    tied.modules_to_tie = [ends(lm)[1]] if whole else None


def check_stored(lm: Any, config: PeftConfig, file: Path, head: bool) -> None:
    """Refuse a stored adapter that trains other modules whole, or rows that the base does not have.

    Args:
        head: it has a scalar head, so that nothing reads the output layer.

    Raises:
        UserError: names the module or the row.
    """
    first, last, tied = ends(lm)
    for one in getattr(config, "modules_to_save", None) or ():
        if not any(name is not None and (name == one or name.endswith(f".{one}")) for name in (first, last)):
            raise UserError(
                f"{file}: modules_to_save: {one[:60]} is neither the embeddings nor the output layer of the base, and "
                "would change the shared base; merge the adapter into its base and give that folder"
            )
    if (
        tied
        and not head
        and getattr(config, "modules_to_save", None)
        and not getattr(config, "ensure_weight_tying", False)
    ):
        raise UserError(
            f"{file}: modules_to_save without ensure_weight_tying: the base ties its embeddings and output layer, and "
            "this adapter unties them; merge it into its base and give that folder"
        )
    count = _plain(lm.get_input_embeddings()).weight.shape[0]
    for ids in rows_of(config).values():
        if beyond := [i for i in ids if not 0 <= i < count]:
            raise UserError(
                f"{file}: trainable_token_indices: the base has {count} rows and no {beyond[0]}; name its new tokens "
                "in adapter.new_tokens"
            )


def widen(lm: nn.Module, role: str, dtype: torch.dtype) -> None:
    """Keep what a role trains beside its adapter in at least fp32; embeddings leave their module in ``dtype``."""
    for _, wrapper in wrappers(lm):
        if role not in wrapper._adapters:
            continue
        whole = isinstance(wrapper, ModulesToSaveWrapper)
        parameters = (
            list(wrapper.modules_to_save[role].parameters())
            if whole
            else [wrapper.token_adapter.trainable_tokens_delta[role]]
        )
        for p in parameters:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
        module: Any = wrapper.modules_to_save[role] if whole else None
        if isinstance(module, nn.Embedding) and module.weight.dtype != dtype:
            module.register_forward_hook(_Cast(dtype))


class _Cast:
    """A module's output in another precision; a hook that can be copied."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, given: Any, out: Tensor) -> Tensor:
        return out.to(self.dtype)


def select(wrapped: Sequence[Any], role: str | None) -> None:
    """Let the modules of a role act in these wrappers, and where it has none, those of the base."""
    for wrapper in wrapped:
        active = role if role in wrapper._adapters else None
        inner = [wrapper.token_adapter] if isinstance(wrapper, TrainableTokensWrapper) else []
        for one in (wrapper, *inner):
            one._active_adapter = [] if active is None else [active]
            one._disable_adapters = active is None


@contextlib.contextmanager
def passed_over(wrapped: Sequence[Any], role: str) -> Iterator[None]:
    """PEFT reads and fills the state of a role without asking these wrappers for rows that the role does not have.

    It asks every one of them, unless it takes it for tied to another one.
    """
    without = [w.token_adapter for w in wrapped if isinstance(w, TrainableTokensWrapper) and role not in w._adapters]
    before = [layer._tied_adapter for layer in without]
    try:
        for layer in without:
            layer._tied_adapter = [layer]
        yield
    finally:
        for layer, tied in zip(without, before, strict=True):
            layer._tied_adapter = tied


@torch.no_grad()
def unwrap(lm: nn.Module, role: str | None) -> None:
    """Put a role's own embeddings and output layer where they are wrapped; None: the base's. Tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for name, wrapper in list(wrappers(lm)):
        module = wrapper.original_module
        for key, p in list(module.named_parameters()) if role in wrapper._adapters else ():
            if id(p) not in made:
                made[id(p)] = nn.Parameter(_trained(wrapper, key, p, role), requires_grad=False)
            setattr(module, key, made[id(p)])
        parent, _, last = name.rpartition(".")
        setattr(lm.get_submodule(parent), last, module)


def _trained(wrapper: Any, key: str, there: Tensor, role: str | None) -> Tensor:
    """What a role has for a tensor of the base, ``key`` of a wrapped module."""
    if isinstance(wrapper, ModulesToSaveWrapper):
        return dict(wrapper.modules_to_save[role].named_parameters())[key].detach()  # type: ignore[index]
    layer = wrapper.token_adapter
    weight, rows = there.detach(), layer.trainable_tokens_delta[role].detach()
    weight = weight.to(torch.promote_types(weight.dtype, rows.dtype), copy=True)
    return weight.index_copy_(0, torch.tensor(layer.token_indices[role], device=weight.device), rows.to(weight.dtype))
