"""How roles are tuned: PEFT's configuration for each method, what residual adapters begin with, which tensors of a copy
are trained. ``models.backbone.settings.METHODS`` says in words what each trains.

A PiSSA or OLoRA adapter of PEFT is relative to a base from which its beginning was subtracted. Here the base is shared
and stays: the adapter has twice the rank, its second half is the beginning with the opposite sign and is never trained,
so that it is nothing at first and an ordinary LoRA adapter for everybody who reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as IA3_INPUTS,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS,
)
from torch import Tensor, nn

from data.common.errors import UserError
from models.backbone.encoders import task_of
from models.backbone.settings import AdapterConfig
from models.roles.embeddings import add as add_embeddings
from models.roles.lora import adapted, is_adapters, is_conv1d, lora_config, plain_name
from models.roles.prompts import prompt_config

EXACT = 1024  # matrices with a side up to this are decomposed exactly


def role_config(
    lm: Any, linear_names: Sequence[str], tokenizer: Any, adapter: AdapterConfig, head: bool = False
) -> PeftConfig:
    """PEFT's configuration for these settings, with what is trained beside the adapter of embeddings and output layer.

    Args:
        lm: the base, perhaps without weights.
        linear_names: its linear layers, without those that adapters bring.
        tokenizer: its tokenizer.
        adapter: the settings, of a method that is no copy.
        head: the role has a scalar head, and never reads the output layer.

    Raises:
        UserError: a layer, a module or a token that the base does not have, or on which the method cannot stand.
    """
    config = ADAPTERS[adapter.method](lm, linear_names, adapter)
    return add_embeddings(config, lm, tokenizer, adapter, head)


def _dora(lm: Any, linear_names: Sequence[str], adapter: AdapterConfig) -> LoraConfig:
    config = lora_config(lm, linear_names, adapter)
    config.use_dora = True
    return config


def _residual(lm: Any, linear_names: Sequence[str], adapter: AdapterConfig) -> LoraConfig:
    """Twice the rank at the same scaling: what is trained, and what it began with."""
    config = lora_config(lm, linear_names, adapter)
    modules = dict(lm.named_modules())
    for name in sorted(adapted(lm, config)):
        base: Any = getattr(modules[name], "base_layer", modules[name])  # where adapters stand already
        if not isinstance(base, nn.Linear) and not is_conv1d(base):
            raise UserError(
                f"adapter.targets: adapter.method '{adapter.method}' begins with parts of a linear layer's matrix, and "
                f"'{name}' is none: leave it out"
            )
        if adapter.rank > min(base.weight.shape):
            raise UserError(
                f"adapter.rank: {adapter.rank} is more than the {' x '.join(map(str, base.weight.shape))} matrix of "
                f"'{name}' has, and adapter.method '{adapter.method}' begins with as many of its vectors: lower it"
            )
    config.r, config.lora_alpha = 2 * adapter.rank, adapter.alpha * (2**0.5 if adapter.rslora else 2)  # type: ignore[assignment]
    return config


def _adalora(lm: Any, linear_names: Sequence[str], adapter: AdapterConfig) -> AdaLoraConfig:
    """Its schedule is the stage's (``stages.training.rank_budget``): PEFT's own knows one role that is trained."""
    plain = lora_config(lm, linear_names, adapter)
    return AdaLoraConfig(
        init_r=adapter.first_rank,
        target_r=adapter.rank,
        lora_alpha=plain.lora_alpha,
        lora_dropout=plain.lora_dropout,
        target_modules=plain.target_modules,
        exclude_modules=plain.exclude_modules,
        layers_to_transform=plain.layers_to_transform,
        fan_in_fan_out=plain.fan_in_fan_out,
        task_type=task_of(lm),
        total_step=1,
        inference_mode=True,
    )


def _ia3(lm: Any, linear_names: Sequence[str], adapter: AdapterConfig) -> IA3Config:
    """Factors where PEFT's table puts them for the family; factors of outputs where modules are named."""
    family = lm.config.get_text_config().model_type
    inputs = IA3_INPUTS.get(family, [])
    if adapter.targets == "all-linear":
        if family not in IA3_TARGETS:
            raise UserError(
                f"adapter.method: 'ia3': PEFT does not say where (IA)3 stands on '{family}': name modules with "
                f"adapter.targets (it knows {', '.join(sorted(IA3_TARGETS))})"
            )
        adapter = adapter.model_copy(update={"targets": tuple(IA3_TARGETS[family])})
    where = sorted(adapted(lm, lora_config(lm, linear_names, adapter)))
    return IA3Config(
        target_modules=where,
        feedforward_modules=[name for name in where if any(name.endswith(f".{one}") for one in inputs)],
        fan_in_fan_out=any(map(is_conv1d, lm.modules())),
        task_type=task_of(lm),
    )


Make = Callable[[Any, Sequence[str], AdapterConfig], PeftConfig]


def _prompt(lm: Any, linear_names: Sequence[str], adapter: AdapterConfig) -> PeftConfig:
    return prompt_config(lm, adapter)


ADAPTERS: Mapping[str, Make] = {
    "lora": lora_config,
    "dora": _dora,
    "pissa": _residual,
    "olora": _residual,
    "adalora": _adalora,
    "ia3": _ia3,
    "prompt_tuning": _prompt,
    "p_tuning": _prompt,
    "prefix_tuning": _prompt,
}


def trained_of(lm: Any, linear_names: Sequence[str], adapter: AdapterConfig) -> set[str]:
    """Names of the base's tensors that ``freeze`` trains: those of the modules where a LoRA adapter would stand.

    Raises:
        UserError: a layer or a module that the base does not have.
    """
    where = adapted(lm, lora_config(lm, linear_names, adapter))
    wanted = {id(p) for name, m in lm.named_modules() if name in where for p in m.parameters() if p.is_floating_point()}
    return {plain_name(name) for name, p in lm.named_parameters() if id(p) in wanted and not is_adapters(name)}


# -- residual adapters -------------------------------------------------------------------------------------------------


def _singular(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The largest singular vectors, by the roots of their values (Meng et al. 2024, equations 2 and 3)."""
    if min(weight.shape) <= EXACT:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        v = v.mT
    else:
        u, s, v = torch.svd_lowrank(weight, q=min(4 * rank, *weight.shape), niter=16)
    root = (s[:rank] / scaling).sqrt()
    return root[:, None] * v[:, :rank].mT, u[:, :rank] * root


def _triangular(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The first columns of Q and rows of R (Buyukakyuz 2024, algorithm 1); PEFT likewise does not scale them."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


BEGINNINGS: Mapping[str, Callable[[Tensor, int, float], tuple[Tensor, Tensor]]] = {
    "pissa": _singular,
    "olora": _triangular,
}
"""From a matrix (out, in), rank and scaling: A (rank, in) and B (out, rank), of which scaling times B A is taken."""


@torch.no_grad()
def begin(layers: Sequence[Any], role: str, method: str) -> None:
    """Fill a residual adapter on PEFT's ``layers``: its beginning, and that again with the opposite sign.

    Parts of large matrices are found with numbers of torch's own generator.
    """
    for layer in layers:
        if role not in getattr(layer, "lora_A", ()):
            continue
        a, b, base = layer.lora_A[role].weight, layer.lora_B[role].weight, layer.get_base_layer()
        weight = base.weight.mT if is_conv1d(base) else base.weight
        first, second = BEGINNINGS[method](weight.float(), len(a) // 2, layer.scaling[role])
        a.copy_(torch.cat([first, first]))
        b.copy_(torch.cat([second, -second], dim=1))


def keep_second_half(parameters: Mapping[str, nn.Parameter]) -> None:
    """See to it that the second half of a residual adapter, what it began with, never gets a gradient."""
    for name, p in parameters.items():
        axis = {"lora_A": 0, "lora_B": 1}.get(name.split(".")[-3])
        if axis is not None:
            p.requires_grad_(True).register_hook(partial(_first_half, axis))


def _first_half(axis: int, gradient: Tensor) -> Tensor:
    first, second = gradient.chunk(2, dim=axis)
    return torch.cat([first, torch.zeros_like(second)], dim=axis)
