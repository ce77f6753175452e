"""LoRA adapters on a base: PEFT's configuration for our settings, and which tensors of a file are the adapter's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from data.common.errors import UserError, nearest
from models.backbone.architecture import other_senses, passed_over, renamed_by_peft
from models.backbone.encoders import task_of
from models.backbone.settings import AdapterConfig
from models.backbone.sharding import wait_for_passes, whole_of
from models.hub.validate import PREFIX

WRAPPERS = (".base_layer.", ".original_module.", ".token_adapter.")  # what PEFT puts into names of the base's tensors
CONSTANT = ".ranknum."  # AdaLoRA's first rank, which PEFT keeps as a parameter
MARKS = (
    ".lora_",
    ".ranknum.",
    ".ia3_",
    ".modules_to_save.",
    ".trainable_tokens_",
    "soft_prompts.",
)  # what PEFT calls the tensors of an adapter


def is_adapters(name: str) -> bool:
    """Whether a tensor or module of this name belongs to an adapter, not to the base."""
    return any(mark in name for mark in MARKS)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a linear layer keeps its matrix the other way round, as GPT-2's do."""
    return type(module).__name__ == "Conv1D"


def adapted(lm: Any, config: PeftConfig) -> set[str]:
    """Names of the base's modules that an adapter of this configuration stands on."""
    own = (name for name, _ in lm.named_modules() if not is_adapters(name) and not name.endswith(".base_layer"))
    return {name for name in own if check_target_module_exists(config, name)}


def lora_config(lm: Any, linear_names: Sequence[str], adapter: AdapterConfig) -> LoraConfig:
    """PEFT's configuration for these settings.

    Args:
        lm: the base.
        linear_names: of its linear layers, without those that adapters bring.
        adapter: the settings; layers are chosen by index.

    Raises:
        UserError: a layer or a module that the base does not have.
    """
    targets = list(linear_names) if adapter.targets == "all-linear" else _named(lm, list(adapter.targets))
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=adapter.dropout,
        target_modules=targets,
        exclude_modules=other_senses(lm),
        layers_to_transform=_chosen_layers(lm.config.get_text_config().num_hidden_layers, adapter),
        use_rslora=adapter.rslora,
        init_lora_weights="gaussian" if adapter.init == "gaussian" else True,
        fan_in_fan_out=any(map(is_conv1d, lm.modules())),
        task_type=task_of(lm),
    )


def differences(lm: Any, asked: PeftConfig, there: PeftConfig, role: str) -> str:
    """In which settings the adapter of a role, on this base, is not as asked; empty where it is."""
    if method_of(asked) != method_of(there):
        return f"method: {method_of(asked)} is asked for, '{role}' has {method_of(there)}"
    rows: tuple[tuple[str, Any, Any], ...] = (
        ("whole modules", _whole(asked), _whole(there)),
        *(_lora_settings(asked, there) if isinstance(asked, LoraConfig) and isinstance(there, LoraConfig) else ()),
        ("modules", len(adapted(lm, asked)), len(adapted(lm, there))),
    )
    found = [f"{word}: {ours} is asked for, '{role}' has {theirs}" for word, ours, theirs in rows if ours != theirs]
    if not found and adapted(lm, asked) != adapted(lm, there):
        found = [f"modules: '{role}' has others than those that are asked for"]
    return "; ".join(found)


def method_of(config: PeftConfig) -> str:
    """The method of an adapter, as far as its configuration says: a residual one is plain LoRA in its file."""
    if isinstance(config, AdaLoraConfig):
        return "adalora"
    if isinstance(config, LoraConfig):
        return "dora" if config.use_dora else "lora"
    return "ia3" if isinstance(config, IA3Config) else str(getattr(config.peft_type, "value", config.peft_type)).lower()


def check_same_kind(name: str, config: PeftConfig, there: PeftConfig, base_name: str) -> None:
    """Refuse an adapter beside one of another kind: PEFT has one kind on a model.

    Raises:
        UserError: names both kinds.
    """
    if config.peft_type != there.peft_type:
        ours, theirs = (getattr(c.peft_type, "value", c.peft_type) for c in (config, there))
        raise UserError(
            f"role '{name}' is a {ours} adapter, and others on base {base_name} are {theirs}: adapters of two kinds "
            "cannot share a base; set adapter.method to theirs, or merge one into a model first"
        )


def _whole(config: PeftConfig) -> str:
    """What is trained whole or by rows beside an adapter."""
    saved = sorted(name.rsplit(".", 1)[-1] for name in getattr(config, "modules_to_save", None) or ())
    rows = rows_of(config)
    more = [f"{len(ids)} rows of {name.rsplit('.', 1)[-1]}" for name, ids in sorted(rows.items())]
    return ", ".join([*saved, *more]) or "none"


def rows_of(config: PeftConfig) -> dict[str, list[int]]:
    """Which rows of which modules are trained."""
    found = getattr(config, "trainable_token_indices", None) or {}
    return {"embed_tokens": list(found)} if isinstance(found, list) else {k: list(v) for k, v in found.items()}


def _lora_settings(asked: LoraConfig, there: LoraConfig) -> tuple[tuple[str, Any, Any], ...]:
    if isinstance(asked, AdaLoraConfig) and isinstance(there, AdaLoraConfig):
        return (
            ("init_rank", asked.init_r, there.init_r),
            ("rank", asked.target_r, there.target_r),
            ("alpha", asked.lora_alpha, there.lora_alpha),
            ("dropout", asked.lora_dropout, there.lora_dropout),
        )
    by_module = bool(there.rank_pattern or there.alpha_pattern)
    return (
        ("rank", asked.r, "one by module" if by_module else there.r),
        ("alpha", asked.lora_alpha, "one by module" if by_module else there.lora_alpha),
        ("dropout", asked.lora_dropout, there.lora_dropout),
        ("rslora", asked.use_rslora, there.use_rslora),
    )


def _named(lm: Any, targets: list[str]) -> list[str]:
    """Targets that a recipe names."""
    modules = [name for name, _ in lm.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            last = sorted({name.rsplit(".", 1)[-1] for name in modules if name})
            raise UserError(f"adapter.targets: the base has no module '{target}'.{nearest(target, last)}")
    if taken := sorted(renamed_by_peft(lm, targets)):
        raise UserError(
            f"adapter.targets: on '{lm.config.model_type}' PEFT takes {', '.join(taken)} for experts, which are one "
            "tensor here, and would adapt something else; leave them out"
        )
    if past := sorted(passed_over(lm) & {target.rsplit(".", 1)[-1] for target in targets}):
        raise UserError(
            f"adapter.targets: the code of '{lm.config.model_type}' takes the weight of {', '.join(past)} without "
            "calling the layer, so that an adapter there would be passed over; leave it out"
        )
    return targets


def _chosen_layers(count: int, adapter: AdapterConfig) -> list[int] | None:
    """Indices of the layers that carry the adapter; None: all ``count`` of them."""
    layers = adapter.layers
    if layers == "upper_half":
        return list(range(count // 2, count))
    chosen = None if layers == "all" else list(layers)
    if chosen is not None and (not chosen or max(chosen) >= count or min(chosen) < 0):
        raise UserError(f"adapter.layers: {list(layers)} is outside the {count} layers (0 to {count - 1}) of the base")
    return chosen


def own_tensors(
    lm: Any, base_name: str, file: Path, tensors: dict[str, Tensor], whole: Sequence[str] = ()
) -> dict[str, Tensor]:
    """An adapter's own tensors, without the copies of embeddings that PEFT writes with an adapter on them.

    Args:
        whole: names, or their ends, of modules that the adapter has trained whole.

    Raises:
        UserError: such a tensor is not what this base has; it was trained or resized, and would change the shared base.
    """
    named = lm.named_parameters(remove_duplicate=False)
    own = {plain_name(name): p for name, p in named if not is_adapters(name)}
    wait_for_passes(lm)
    for name, tensor in tensors.items():
        if is_adapters(name) or trained_whole(name, whole) or (there := own.get(plain_name(name))) is None:
            continue
        if there.shape != tensor.shape or not torch.equal(tensor.to(there.device, there.dtype), whole_of(there)):
            raise UserError(
                f"{file}: {name[:100]} is not what base {base_name} has there: it was trained or resized next to the "
                "adapter, and would change the shared base. Merge the adapter into its base and give that folder"
            )
    return {n: t for n, t in tensors.items() if is_adapters(n) or trained_whole(n, whole) or plain_name(n) not in own}


def misfit(own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """How an adapter's stored tensors differ from those that it has on a base, by names and shapes; empty: they fit."""
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if not (missing or unknown or wrong):
        return ""
    what = f"{len(missing)} missing, {len(unknown)} unknown, {len(wrong)} of another shape"
    return f"{what}; first: {(missing + unknown + wrong)[0]}"


def trained_whole(name: str, whole: Sequence[str]) -> bool:
    """Whether a tensor is of a module that an adapter names in ``modules_to_save``, as PEFT finds it."""
    return any(name.rpartition(".")[0].endswith(one) for one in whole)


def plain_name(name: str) -> str:
    """A tensor's name in the base, without what PEFT puts around it."""
    for part in WRAPPERS:
        name = name.replace(part, ".")
    return name.removeprefix(PREFIX)
