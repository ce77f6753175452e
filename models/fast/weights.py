"""The weights of a Llama-like decoder and of the adapter now selected on it, read from the modules as they are.

``decoder_of`` gives None for whatever is not known to be exactly this arithmetic - another architecture, a hook,
dropout, DoRA, a base quantised by others, fp16 - and then the model's own modules run. Nothing here changes a module.
Knows nothing of roles, sampling or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from models.backbone.forward import body_of
from models.backbone.four_bits import PackedWeight, is_packed
from models.backbone.sharding import shards_of
from models.backbone.soft_prompts import active_prompt

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "phi3", "granite", "gemma2", "gemma3_text")
FOLDERS = {"gemma3_text": "gemma3"}  # of Transformers, where it is not named as the configuration is
WINDOWED = ("mistral", "phi3")  # a window in every layer
WINDOWED_BY_LAYER = ("qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text")  # in layers of that type
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
ROTARY = ("default", "linear", "llama3")  # angles that depend on the position alone
DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # of the base; fp16 has too small a range for plain sums

_WIDENED = WeakTensorKeyDictionary()  # the weight of a norm -> its version and its copy in fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """``y = x (W + scale B A)^T + bias``; without an adapter ``a`` and ``b`` are None."""

    weight: Tensor | PackedWeight  # (out, in), frozen
    bias: Tensor | None  # (out,)
    a: Tensor | None = None  # (rank, in)
    b: Tensor | None = None  # (out, rank)
    scale: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One block. Groups are projections of one input, whose product is one: q, k, v; gate, up. Phi3 has them so."""

    attention: tuple[Projection, ...]
    output: tuple[Projection]
    gated: tuple[Projection, ...]
    down: tuple[Projection]
    norm: Tensor | None  # (D,) of what attention reads; OLMo 2 has none
    second_norm: Tensor | None  # (D,) of what gate and up read
    post_norm: Tensor | None  # (D,) of what attention adds to the states: Gemma, OLMo 2
    second_post_norm: Tensor | None  # (D,) of what the rest adds
    q_norm: Tensor | None  # (head size,) of each head: Qwen3, Gemma 3; (H * d,) of all of them: OLMo 2
    k_norm: Tensor | None
    angles: str | None  # which of the decoder's rotations; None: positions are not told (some layers of SmolLM3)
    window: int | None  # keys that a token sees, itself among them; None: all before it

    def projections(self) -> Iterator[Projection]:
        """Every matrix of the layer, in the order in which they are multiplied with."""
        yield from (*self.attention, *self.output, *self.gated, *self.down)

    def norms(self) -> list[Tensor]:
        """The weights of its norms."""
        norms = (self.norm, self.second_norm, self.post_norm, self.second_post_norm, self.q_norm, self.k_norm)
        return [t for t in norms if t is not None]

    @property
    def packed(self) -> bool:
        """Whether its matrices are in four bits."""
        return any(isinstance(p.weight, PackedWeight) for p in self.projections())

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
    activation: str = "silu"  # or "gelu", by its tanh form
    embedding_scale: float = 1.0  # times embeddings: Gemma, Granite
    residual_scale: float = 1.0  # times what a block adds to the states: Granite
    attention_scale: float | None = None  # times queries; None: head size ** -0.5
    soft_cap: float | None = None  # of attention's scores: Gemma 2

    def angles(self, positions: Tensor) -> dict[str | None, tuple[Tensor, Tensor]]:
        """Cosines and sines (T, 1, head size) of positions (T,), for each rotation that a layer names."""
        found: dict[str | None, tuple[Tensor, Tensor]] = {}
        for name in {layer.angles for layer in self.layers} - {None}:
            cos, sin = (
                x.to(self.norm.dtype) for x in self.rotary(self.norm, positions[None], *([name] if name else []))
            )
            found[name] = cos[0][:, None], signed(sin[0][:, None])
        return found

    @property
    def lowest(self) -> int:
        """Index of the lowest layer with an adapter; the number of layers where none has one."""
        return next((i for i, layer in enumerate(self.layers) if layer.parameters()), len(self.layers))

    def trainable(self) -> list[Tensor]:
        """Tensors of the adapters, layer by layer."""
        return [p for layer in self.layers for p in layer.parameters()]


def signed(sin: Tensor) -> Tensor:
    """Sines as a rotation multiplies with them: the first half of the coordinates is subtracted."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def decoder_of(lm: Any) -> Decoder | None:
    """The decoder that ``lm`` now is, or None where its own modules must run."""
    if shards_of(lm) is not None or active_prompt(lm) is not None:  # hooks of its modules gather it; virtual tokens
        return None
    kind, config = type(lm), lm.config
    folder = kind.__module__.rsplit(".", 2)[-2] if kind.__module__.startswith("transformers.models.") else ""
    family = config.model_type
    if family not in FAMILIES or FOLDERS.get(family, family) != folder or not _plain_config(config) or mixed(lm):
        return None
    body: Any = body_of(lm)
    if not all(map(untouched, body.modules())) or type(body).__module__ != kind.__module__:
        return None
    embeddings, norm = body.embed_tokens.weight, _norm(body.norm)
    scale = _embedding_scale(body.embed_tokens, config)
    if scale is None or embeddings.dtype not in DTYPES or norm is None:
        return None
    layers = [_layer(block, config, index) for index, block in enumerate(body.layers)]
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
        activation=ACTIVATIONS[_activation(config)],
        embedding_scale=scale,
        residual_scale=getattr(config, "residual_multiplier", 1.0),
        attention_scale=_attention_scale(config),
        soft_cap=getattr(config, "attn_logit_softcapping", None),
    )


def _alike(layer: Layer, embeddings: Tensor, norm: Tensor) -> bool:
    """Whether a layer's weights have the precision of the embeddings, all else that of the last norm, on one device."""
    projections = list(layer.projections())
    base = [t for p in projections for t in (p.weight, p.bias) if t is not None]
    others = [t for p in projections for t in (p.a, p.b) if t is not None] + layer.norms()
    same = all(t.dtype == embeddings.dtype for t in base) and all(t.dtype == norm.dtype for t in others)
    return same and all(t.device == embeddings.device for t in (*base, *others, norm))


def widened(weight: Tensor, plus: float = 0.0) -> Tensor:
    """A small frozen weight in at least fp32, with something added: itself, or a copy that is made once."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if weight.requires_grad or (weight.dtype == dtype and not plus):
        return weight.to(dtype) + plus if plus else weight.to(dtype)
    version, copy = _WIDENED.get(weight, (-1, weight))
    if version != weight._version or copy.device != weight.device:
        copy = weight.detach().to(dtype) + plus
        _WIDENED[weight] = (weight._version, copy)
    return copy


def mixed(lm: Any) -> bool:
    """Whether products are made in another precision than the weights have."""
    return getattr(lm, "compute_dtype", None) is not None or torch.is_autocast_enabled(lm.device.type)


def can_train(decoder: Decoder) -> bool:
    """Whether nothing but adapters asks for a gradient."""
    fixed = [decoder.embeddings, decoder.norm]
    for layer in decoder.layers:
        fixed += [t for p in layer.projections() for t in (p.weight, p.bias) if isinstance(t, Tensor)] + layer.norms()
    return not any(t.requires_grad for t in fixed)


def _plain_config(config: Any) -> bool:
    kinds = set(getattr(config, "layer_types", None) or [])
    given = getattr(config, "rope_parameters", None) or {}
    rotary = [part.get("rope_type") for part in given.values() if isinstance(part, dict)] or [given.get("rope_type")]
    plain = kinds <= {"full_attention", "sliding_attention"} and all(kind in ROTARY for kind in rotary)
    both_ways = getattr(config, "use_bidirectional_attention", False)
    return plain and _activation(config) in ACTIVATIONS and not both_ways


def _activation(config: Any) -> str:
    return getattr(config, "hidden_activation", None) or config.hidden_act


def _attention_scale(config: Any) -> float | None:
    if getattr(config, "query_pre_attn_scalar", None):
        return float(config.query_pre_attn_scalar**-0.5)
    return getattr(config, "attention_multiplier", None)


def _embedding_scale(module: Any, config: Any) -> float | None:
    """What embeddings are multiplied with; None where the module does something else."""
    if type(module) is nn.Embedding:
        return float(getattr(config, "embedding_multiplier", 1.0))
    if type(module).__name__ in ("Gemma2TextScaledWordEmbedding", "Gemma3TextScaledWordEmbedding"):
        return float(module.embed_scale.to(module.weight.dtype))
    return None


def _window(config: Any, index: int) -> int | None:
    family = config.model_type
    by_layer = family in WINDOWED_BY_LAYER and config.layer_types[index] == "sliding_attention"
    windowed = by_layer or family in WINDOWED
    return getattr(config, "sliding_window", None) if windowed else None


def _angles(config: Any, index: int) -> str | None:
    """Gemma 3 has a rotation for each kind of layer; some layers of SmolLM3 have none."""
    if config.model_type == "gemma3_text":
        return str(config.layer_types[index])
    rotated = getattr(config, "no_rope_layers", None)  # 1 where there is a rotation
    return None if rotated is not None and not rotated[index] else ""


def _norm(module: Any) -> Tensor | None:
    """The factors of an RMS norm, in at least fp32; None where there is no norm."""
    if module is None:
        return None
    if type(module).__name__.startswith("Gemma"):
        return widened(module.weight, 1.0)
    return widened(module.weight)


def untouched(module: nn.Module) -> bool:
    """No hook, and no forward put over the class's own (accelerate's off-loading, kernel replacements)."""
    before, behind = module._forward_pre_hooks, dict(module._forward_hooks)
    for number, hook in module._forward_hooks.items():
        if getattr(hook, "__name__", "") == "make_inputs_require_grads":  # for checkpoints; changes no number
            del behind[number]
    hooks = before, behind, module._backward_hooks, module._backward_pre_hooks
    return "forward" not in vars(module) and not any(hooks)


def _layer(block: Any, config: Any, index: int) -> Layer | None:
    attention, mlp = block.self_attn, block.mlp
    dropouts = [attention.attention_dropout, *(getattr(config, n, 0.0) for n in ("resid_pdrop", "embd_pdrop"))]
    if any(dropouts) and attention.training:
        return None
    joined = config.model_type == "phi3"
    q_k_v = _group(attention, ("qkv_proj",) if joined else ("q_proj", "k_proj", "v_proj"))
    gate_up = _group(mlp, ("gate_up_proj",) if joined else ("gate_proj", "up_proj"))
    output, down = _group(attention, ("o_proj",)), _group(mlp, ("down_proj",))
    if not (q_k_v and gate_up and output and down):
        return None
    # where a norm stands behind attention, the name of the one before gate and up is another
    behind = hasattr(block, "post_feedforward_layernorm")
    after, before = block.post_attention_layernorm, getattr(block, "pre_feedforward_layernorm", None)
    return Layer(
        attention=q_k_v,
        output=(output[0],),
        gated=gate_up,
        down=(down[0],),
        norm=_norm(getattr(block, "input_layernorm", None)),
        second_norm=_norm(before if behind else after),
        post_norm=_norm(after if behind else None),
        second_post_norm=_norm(block.post_feedforward_layernorm if behind else None),
        q_norm=_norm(getattr(attention, "q_norm", None)),
        k_norm=_norm(getattr(attention, "k_norm", None)),
        angles=_angles(config, index),
        window=_window(config, index),
    )


def _group(owner: Any, names: Sequence[str]) -> tuple[Projection, ...] | None:
    found = [_projection(getattr(owner, name)) for name in names]
    return None if any(p is None for p in found) else tuple(p for p in found if p is not None)


def _weight(module: Any) -> Tensor | PackedWeight | None:
    """The matrix of a plain linear layer, or of one in four bits."""
    if is_packed(module):
        return PackedWeight(module.weight)
    return module.weight if type(module) is nn.Linear else None


def _projection(module: Any) -> Projection | None:
    if (weight := _weight(module)) is not None:
        bias: Any = module.bias
        return Projection(weight=weight, bias=bias)
    if type(module) is not LoraLinear or (weight := _weight(module.base_layer)) is None or module.merged:
        return None
    base: Any = module.base_layer
    chosen = [] if module.disable_adapters else [n for n in module.active_adapters if n in module.lora_A]
    if not chosen:
        return Projection(weight=weight, bias=base.bias)
    name = chosen[0]
    drop, a, b = (getattr(module, part)[name] for part in ("lora_dropout", "lora_A", "lora_B"))
    dropping = isinstance(drop, nn.Dropout) and drop.p > 0 and drop.training
    strange = name in module.lora_variant or module.fan_in_fan_out or a.bias is not None or b.bias is not None
    if len(chosen) > 1 or strange or dropping or not isinstance(drop, nn.Identity | nn.Dropout):
        return None
    return Projection(weight=weight, bias=base.bias, a=a.weight, b=b.weight, scale=module.scaling[name])
