"""The weights of a Llama-like decoder and of the adapter now selected on it, read from the modules as they are.

``decoder_of`` gives None for whatever is not known to be exactly this arithmetic - another architecture, a sliding
window, a hook, dropout, DoRA, a quantised base, fp16 - and then the model's own modules run. Nothing here changes a
module. Knows nothing of roles, sampling or losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from models.backbone.forward import body_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROTARY = ("default", "linear", "llama3")  # angles that depend on the position alone
DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # of the base; fp16 has too small a range for plain sums

_WIDENED = WeakTensorKeyDictionary()  # a bf16 norm -> its version and its copy in fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """``y = x (W + scale B A)^T + bias``; without an adapter ``a`` and ``b`` are None."""

    weight: Tensor  # (out, in), frozen
    bias: Tensor | None  # (out,)
    a: Tensor | None = None  # (rank, in)
    b: Tensor | None = None  # (out, rank)
    scale: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One block. Groups are projections of one input, whose product is one: q, k, v; gate, up."""

    attention: tuple[Projection, Projection, Projection]  # q, k, v
    output: tuple[Projection]
    gated: tuple[Projection, Projection]  # gate, up
    down: tuple[Projection]
    norm: Tensor  # (D,)
    second_norm: Tensor  # (D,)
    q_norm: Tensor | None  # (head size,), Qwen3
    k_norm: Tensor | None

    def projections(self) -> Iterator[Projection]:
        yield from (*self.attention, *self.output, *self.gated, *self.down)

    def norms(self) -> list[Tensor]:
        return [t for t in (self.norm, self.second_norm, self.q_norm, self.k_norm) if t is not None]

    def parameters(self) -> list[Tensor]:
        """What the adapter can train in this layer, in the order of ``layers.backward``."""
        return [t for p in self.projections() if p.a is not None and p.b is not None for t in (p.a, p.b)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A whole body with one adapter selected.

    Norms are in the precision of the states between layers, at least fp32; so are adapters. The weights of embeddings
    and projections are as the base has them.
    """

    embeddings: Tensor  # (V, D)
    layers: tuple[Layer, ...]
    norm: Tensor  # (D,)
    epsilon: float
    heads: int
    key_heads: int
    head_size: int
    rotary: nn.Module

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, 1, head size) of positions (T,)."""
        cos, sin = self.rotary(self.norm, positions[None])
        return cos[0][:, None], sin[0][:, None]

    @property
    def lowest(self) -> int:
        """Index of the lowest layer with an adapter; the number of layers where none has one."""
        return next((i for i, layer in enumerate(self.layers) if layer.parameters()), len(self.layers))

    def trainable(self) -> list[Tensor]:
        return [p for layer in self.layers for p in layer.parameters()]


def decoder_of(lm: Any) -> Decoder | None:
    """The decoder that ``lm`` now is, or None where its own modules must run."""
    kind = type(lm)
    family = kind.__module__.rsplit(".", 2)[-2] if kind.__module__.startswith("transformers.models.") else ""
    if family not in FAMILIES or not _plain_config(lm.config) or mixed(lm):
        return None
    body: Any = body_of(lm)
    if not all(map(untouched, body.modules())) or type(body).__module__ != kind.__module__:
        return None
    config = lm.config
    embeddings, norm = body.embed_tokens.weight, widened(body.norm.weight)
    if type(body.embed_tokens) is not nn.Embedding or embeddings.dtype not in DTYPES:
        return None
    layers = [_layer(block, config) for block in body.layers]
    if any(layer is None or not _alike(layer, embeddings, norm) for layer in layers):
        return None
    return Decoder(
        embeddings=embeddings,
        layers=tuple(layer for layer in layers if layer is not None),
        norm=norm,
        epsilon=config.rms_norm_eps,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        rotary=body.rotary_emb,
    )


def _alike(layer: Layer, embeddings: Tensor, norm: Tensor) -> bool:
    """Whether a layer's weights have the precision of the embeddings, all else that of the last norm, on one device."""
    projections = list(layer.projections())
    base = [t for p in projections for t in (p.weight, p.bias) if t is not None]
    others = [t for p in projections for t in (p.a, p.b) if t is not None] + layer.norms()
    same = all(t.dtype == embeddings.dtype for t in base) and all(t.dtype == norm.dtype for t in others)
    return same and all(t.device == embeddings.device for t in (*base, *others, norm))


def widened(weight: Tensor) -> Tensor:
    """A small frozen weight in at least fp32: itself, or a copy that is made once."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if weight.dtype == dtype or weight.requires_grad:
        return weight.to(dtype)
    version, copy = _WIDENED.get(weight, (-1, weight))
    if version != weight._version or copy.device != weight.device:
        copy = weight.detach().to(dtype)
        _WIDENED[weight] = (weight._version, copy)
    return copy


def mixed(lm: Any) -> bool:
    """Whether products are made in another precision than the weights have."""
    return getattr(lm, "compute_dtype", None) is not None or torch.is_autocast_enabled(lm.device.type)


def can_train(decoder: Decoder) -> bool:
    """Whether nothing but adapters asks for a gradient."""
    fixed = [decoder.embeddings, decoder.norm]
    for layer in decoder.layers:
        fixed += [t for p in layer.projections() for t in (p.weight, p.bias) if t is not None] + layer.norms()
    return not any(t.requires_grad for t in fixed)


def _plain_config(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    return config.hidden_act == "silu" and set(kinds) == {"full_attention"} and window is None and rotary in ROTARY


def untouched(module: nn.Module) -> bool:
    """No hook, and no forward put over the class's own (accelerate's off-loading, kernel replacements)."""
    before, behind = module._forward_pre_hooks, dict(module._forward_hooks)
    for number, hook in module._forward_hooks.items():
        if getattr(hook, "__name__", "") == "make_inputs_require_grads":  # for checkpoints; changes no number
            del behind[number]
    hooks = before, behind, module._backward_hooks, module._backward_pre_hooks
    return "forward" not in vars(module) and not any(hooks)


def _layer(block: Any, config: Any) -> Layer | None:
    attention, mlp = block.self_attn, block.mlp
    if attention.attention_dropout and attention.training:
        return None
    names = [(attention, n) for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
    names += [(mlp, n) for n in ("gate_proj", "up_proj", "down_proj")]
    found = [_projection(getattr(owner, name)) for owner, name in names]
    q, k, v, o, gate, up, down = found
    if not (q and k and v and o and gate and up and down):
        return None
    normed = config.model_type == "qwen3"
    return Layer(
        attention=(q, k, v),
        output=(o,),
        gated=(gate, up),
        down=(down,),
        norm=widened(block.input_layernorm.weight),
        second_norm=widened(block.post_attention_layernorm.weight),
        q_norm=widened(attention.q_norm.weight) if normed else None,
        k_norm=widened(attention.k_norm.weight) if normed else None,
    )


def _projection(module: Any) -> Projection | None:
    if type(module) is nn.Linear:
        return Projection(weight=module.weight, bias=module.bias)
    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear or module.merged:
        return None
    base = module.base_layer
    chosen = [] if module.disable_adapters else [n for n in module.active_adapters if n in module.lora_A]
    if not chosen:
        return Projection(weight=base.weight, bias=base.bias)
    name = chosen[0]
    drop, a, b = (getattr(module, part)[name] for part in ("lora_dropout", "lora_A", "lora_B"))
    dropping = isinstance(drop, nn.Dropout) and drop.p > 0 and drop.training
    strange = name in module.lora_variant or module.fan_in_fan_out or a.bias is not None or b.bias is not None
    if len(chosen) > 1 or strange or dropping or not isinstance(drop, nn.Identity | nn.Dropout):
        return None
    return Projection(weight=base.weight, bias=base.bias, a=a.weight, b=b.weight, scale=module.scaling[name])
