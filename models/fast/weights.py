"""The weights of a Llama-like decoder and of the adapter now selected on it, read from the modules as they are.

``decoder_of`` gives None for whatever is not known to be exactly this arithmetic - another architecture, a sliding
window, a hook, dropout, DoRA, a quantised base, bf16 - and then the model's own modules run. Nothing here changes a
module. Knows nothing of roles, sampling or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from models.backbone.forward import body_of
from models.fast.matmul import pack

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROTARY = ("default", "linear", "llama3")  # angles that depend on the position alone
DTYPES = (torch.float32, torch.float64)  # in bf16 a small adapter would be lost in the sum with its weight


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

    def parameters(self) -> list[Tensor]:
        """What the adapter can train in this layer, in the order of ``layers.backward``."""
        return [t for p in self.projections() if p.a is not None and p.b is not None for t in (p.a, p.b)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A whole body with one adapter selected."""

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
    layers = [_layer(block, config) for block in body.layers]
    embeddings, norm = body.embed_tokens.weight, body.norm.weight
    fixed = [embeddings, norm, *(t for layer in layers if layer is not None for t in _fixed(layer))]
    if type(body.embed_tokens) is not nn.Embedding or any(layer is None for layer in layers):
        return None
    if any(t.dtype not in DTYPES or t.dtype != norm.dtype or t.device != norm.device for t in fixed):
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


def mixed(lm: Any) -> bool:
    """Whether products are made in another precision than the weights have."""
    return getattr(lm, "compute_dtype", None) is not None or torch.is_autocast_enabled(lm.device.type)


def can_train(decoder: Decoder) -> bool:
    """Whether nothing but adapters asks for a gradient."""
    fixed = (decoder.embeddings, decoder.norm, *(t for layer in decoder.layers for t in _fixed(layer, False)))
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
        norm=block.input_layernorm.weight,
        second_norm=block.post_attention_layernorm.weight,
        q_norm=attention.q_norm.weight if normed else None,
        k_norm=attention.k_norm.weight if normed else None,
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


def _fixed(layer: Layer, adapters: bool = True) -> list[Tensor]:
    projections = list(layer.projections())
    maybe = [t for p in projections for t in ((p.bias, p.a, p.b) if adapters else (p.bias,))]
    norms = [layer.norm, layer.second_norm, layer.q_norm, layer.k_norm]
    return [t for t in (*norms, *maybe, *(p.weight for p in projections)) if t is not None]


class MergedWeights:
    """Weights with the adapter added in, in copies: one buffer a kind of product, written over by the next layer.

    Args:
        keep: rows of a loop that comes back to every layer; each layer then keeps a copy, packed for so many rows.
    """

    def __init__(self, keep: int | None = None) -> None:
        self.keep, self._buffers = keep, dict[str, tuple[Tensor, Tensor | None]]()
        self._kept: dict[tuple[int, str], tuple[Tensor, Tensor | None]] = {}

    def __call__(self, index: int, name: str, group: Sequence[Projection]) -> tuple[Tensor, Tensor | None]:
        """``(weight, bias)`` of a group's one product."""
        if len(group) == 1 and group[0].a is None:
            return group[0].weight, group[0].bias
        if (index, name) in self._kept:
            return self._kept[index, name]
        weight, bias = self._buffer(name, group)
        self._fill(group, weight, bias)
        if self.keep is None:
            return weight, bias
        self._kept[index, name] = self._packed(name, self.keep)
        return self._kept[index, name]

    def _buffer(self, name: str, group: Sequence[Projection]) -> tuple[Tensor, Tensor | None]:
        if name not in self._buffers:
            first, rows = group[0].weight, sum(len(p.weight) for p in group)
            bias = None if all(p.bias is None for p in group) else first.new_zeros(rows)
            self._buffers[name] = (first.new_empty((rows, first.shape[1])), bias)
        return self._buffers[name]

    def _packed(self, name: str, rows: int) -> tuple[Tensor, Tensor | None]:
        """What stands in a buffer, as a loop over ``rows`` rows reads it best."""
        weight, bias = self._buffers[name]
        packed = pack(weight, rows)  # a copy, or where that saves nothing the buffer itself
        if packed is weight:
            del self._buffers[name]
        return packed, bias if bias is None else bias.clone()

    @staticmethod
    @torch.no_grad()
    def _fill(group: Sequence[Projection], weight: Tensor, bias: Tensor | None) -> None:
        start = 0
        for p in group:
            part = slice(start, start + len(p.weight))
            if p.a is None or p.b is None:
                weight[part] = p.weight
            else:
                torch.addmm(p.weight, p.b, p.a, alpha=p.scale, out=weight[part])
            if bias is not None:
                bias[part] = 0.0 if p.bias is None else p.bias
            start += len(p.weight)
