"""The shape of a base, from the recipe or from its configuration and the headers of its files; no weights are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.strict_json import read_object
from models.backbone.settings import AdapterConfig
from models.hub.download import local_folder
from models.hub.registry import resolve_base
from models.hub.validate import shapes_of, weight_files
from pipelines.recipe.schema import Recipe
from stages.settings import PretrainConfig

HEAD = "lm_head.weight"
HEAD_EXTRAS = ("logit_scale", "logits_scaling", "final_logit_softcapping")
HEAD_NORMED = ("qwen3", "gemma3_text", "olmo2")  # families that norm queries and keys
NORMED_AFTER = ("gemma2", "gemma3_text", "olmo2")  # families with norms behind attention and the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A base and one adapter on it; counts are numbers, not bytes."""

    parameters: int
    linear: int  # of them, those of the blocks' matrices
    adapter: int  # of one role; with full fine-tuning those of a copy
    layers: int
    trained_layers: int  # from the lowest adapted layer up
    width: int
    inner: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    family: str = "llama"
    window: int | None = None  # keys that a sliding layer needs
    sliding: int = 0  # how many layers have such a window
    plain_head: bool = True  # logits are the product with the output layer and nothing else

    @property
    def size(self) -> str:
        """Parameters, layers and width in words."""
        return f"{parameters_text(self.parameters)} parameters, {self.layers} layers, {self.width} wide"

    @property
    def queries(self) -> int:
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of keys, which is that of values."""
        return self.key_heads * self.head_size


def parameters_text(number: int) -> str:
    """A number of parameters, as bases are called by it."""
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.{0 if number >= 1e8 else 2}f} M"


def shape_of(recipe: Recipe, base: str | None = None) -> Shape | None:
    """The base's shape: of a base from scratch by the recipe, else by its files; None for one that is not here.

    Args:
        base: another base of the recipe, by name: that of the reward model.
    """
    if base is None and not isinstance(recipe.base, str):
        return _from_scratch(recipe)
    spec = resolve_base(base or str(recipe.base), base_dir=recipe.base_dir)
    folder = local_folder(spec.source, spec.revision)
    if folder is None:
        return None
    try:
        return shape_of_folder(folder, recipe.adapter)
    except UserError:
        return None


def _from_scratch(recipe: Recipe) -> Shape:
    assert not isinstance(recipe.base, str)
    m, vocabulary = recipe.base.pretrain.model, _vocabulary(recipe.base.pretrain, recipe.base_dir)
    matrices = [(m.width, m.width)] * 4 + [(m.width, m.feed_forward)] * 3
    linear = m.layers * sum(a * b for a, b in matrices)
    parameters = vocabulary * m.width + linear + (2 * m.layers + 1) * m.width
    layers = adapted_layers(recipe.adapter, m.layers)
    trained = tuned_numbers(recipe.adapter, [m for _ in layers for m in matrices], parameters)
    trained += virtual_numbers(recipe.adapter, m.width, m.layers, m.width)
    trained += embedding_numbers(recipe.adapter, vocabulary, m.width, tied=True)
    return Shape(
        parameters=parameters,
        linear=linear,
        adapter=trained,
        layers=m.layers,
        trained_layers=m.layers - (0 if recipe.adapter.embeddings_setting else min(layers)),
        width=m.width,
        inner=m.feed_forward,
        heads=m.heads,
        key_heads=m.heads,
        head_size=m.width // m.heads,
        vocabulary=vocabulary,
    )


def _vocabulary(config: PretrainConfig, base_dir: Path) -> int:
    """Tokens of the base that is made: of a given tokenizer its own, where it is here."""
    if config.given_tokenizer is None:
        return config.vocabulary
    from models.hub.load import given_tokenizer, rows_for

    try:
        tokenizer = given_tokenizer(config.given_tokenizer, base_dir, fetch=False)
    except UserError:  # which the stage says
        return config.vocabulary
    return config.vocabulary if tokenizer is None else rows_for(tokenizer)


def tuned_numbers(adapter: AdapterConfig, matrices: Sequence[Sequence[int]], parameters: int) -> int:
    """Numbers that a role's method keeps and trains, of matrices where it stands and of ``parameters`` in all.

    (IA)3 is counted with the longer side of each, which is more than it has.
    """
    if adapter.tuning.virtual:
        return 0
    if adapter.method == "full":
        return parameters
    if adapter.method == "freeze":
        return sum(map(math.prod, matrices))
    if adapter.method == "ia3":
        return sum(map(max, matrices))
    if adapter.method == "adalora":
        return adapter.first_rank * sum(sum(m) + 1 for m in matrices)
    rows = sum(m[0] for m in matrices) if adapter.method == "dora" else 0
    return adapter.written_rank * sum(map(sum, matrices)) + rows


def virtual_numbers(adapter: AdapterConfig, width: int, layers: int, keys: int) -> int:
    """Numbers that make a role's virtual tokens, on a base of this width with so many keys a token and layer."""
    count, inner = adapter.positions, adapter.encoder_width or width
    if adapter.tuning.past:
        return count * layers * 2 * keys
    if adapter.method != "p_tuning":
        return count * width
    if adapter.encoder == "mlp":
        return count * width + (width + 1) * inner + (inner + 1) * inner + (inner + 1) * width
    lstm = 8 * inner * (width + inner + 2) + 8 * inner * (3 * inner + 2)  # two layers, both ways
    return count * width + lstm + (2 * inner + 1) * 2 * inner + (2 * inner + 1) * width


def embedding_numbers(adapter: AdapterConfig, vocabulary: int, width: int, tied: bool) -> int:
    """Numbers of embeddings and output layer that a role trains beside its adapter."""
    if not adapter.embeddings_setting:
        return 0
    rows, modules = len(adapter.new_tokens), len(adapter.modules_to_save)
    return width * (rows * (1 if tied else 2) + vocabulary * min(modules, 1 if tied else 2))


def adapted_layers(adapter: AdapterConfig, layers: int) -> Sequence[int]:
    """Indices of the layers that carry an adapter."""
    if adapter.layers == "all" or adapter.method == "full":
        return range(layers)
    if adapter.layers == "upper_half":
        return range(layers // 2, layers)
    return [i for i in adapter.layers if i < layers] or range(layers)


def shape_of_folder(folder: Path, adapter: AdapterConfig) -> Shape:
    """The shape of a base in a folder.

    Raises:
        UserError: its configuration or the headers of its weights cannot be read.
    """
    raw = read_object(folder / "config.json")
    config: dict[str, Any] = raw.get("text_config") or raw
    named = [pair for file in weight_files(folder) for pair in shapes_of(file)]
    tied = config.get("tie_word_embeddings", raw.get("tie_word_embeddings")) is True
    if tied:
        named = _once(named)
    layers = _first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    width = _first(config, "hidden_size", "n_embd", "d_model")
    heads = _first(config, "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads") or 1
    vocabulary = _first(config, "vocab_size")
    matrices = [(n.split("."), s) for n, s in named if len(s) == 2]
    inside = [(parts, s) for parts, s in matrices if any(p.isdigit() for p in parts)]
    adapted = set(adapted_layers(adapter, layers))
    chosen = [
        s for parts, s in inside if next(int(p) for p in parts if p.isdigit()) in adapted and _aimed(adapter, parts)
    ]
    parameters = sum(math.prod(shape) for _, shape in named)
    key_heads, head_size = _first(config, "num_key_value_heads") or heads, _first(config, "head_dim") or width // heads
    return Shape(
        parameters=parameters,
        linear=sum(math.prod(s) for _, s in inside),
        adapter=tuned_numbers(adapter, chosen, parameters)
        + virtual_numbers(adapter, width, layers, key_heads * head_size)
        + embedding_numbers(
            adapter, vocabulary, width, tied=tied or not any(n.startswith("lm_head.") for n, _ in named)
        ),
        layers=layers,
        trained_layers=layers - (0 if adapter.embeddings_setting else min(adapted, default=0)),
        width=width,
        inner=_first(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * width,
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        vocabulary=vocabulary,
        family=str(config.get("model_type", "")),
        window=config.get("sliding_window") if config.get("use_sliding_window", True) else None,
        sliding=_sliding(config, layers),
        plain_head=not any(config.get(name) for name in HEAD_EXTRAS),
    )


def _once(named: Sequence[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """Matrices of a base with tied embeddings, the tied one once: files hold it by either name, or by both."""
    embeddings = [s for n, s in named if n != HEAD and not any(p.isdigit() for p in n.split("."))]
    return [(n, s) for n, s in named if n != HEAD or s not in embeddings]


def _aimed(adapter: AdapterConfig, parts: Sequence[str]) -> bool:
    """Whether the recipe's targets name this matrix."""
    return isinstance(adapter.targets, str) or bool(
        {parts[-1], *parts[-2:-1]} & {t.split(".")[-1] for t in adapter.targets}
    )


def _sliding(config: dict[str, Any], layers: int) -> int:
    """Layers with a window."""
    if not config.get("sliding_window") or not config.get("use_sliding_window", True):
        return 0
    kinds = config.get("layer_types")
    return sum(kind == "sliding_attention" for kind in kinds) if isinstance(kinds, list) else layers


def _first(config: dict[str, Any], *names: str) -> int:
    """The first of these numbers that a config has; of a list, one number a layer, the largest."""
    found = (max(v, default=0) if isinstance(v := config.get(n), list) else v for n in names)
    return next((v for v in found if isinstance(v, int)), 0)
