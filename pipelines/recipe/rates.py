"""Learning rates by the base's width and the method, where the recipe gives none. Light: no torch, no network.

The law is that of Schulman et al. 2025 ("LoRA Without Regret"; ``get_lr`` of the Tinker cookbook), fitted on Llama and
Qwen bases of 1 to 70 billion parameters: ``5e-5 x 10 with LoRA x (2000 / width) ^ power``. The reward model takes a
third of SFT's rate (at a width of 4,096 about TRL's 1e-4 with LoRA, 1e-5 without), PPO a tenth (about 3e-6 without
LoRA, Huang et al. 2024, ten times that with it). None is above ``HIGHEST``, the rate with which the bases of 0.2 to 0.7
million parameters in ``docs/measurements`` were trained, but that of virtual tokens: ``VIRTUAL``, whatever the width,
is what PEFT's examples of prompt tuning take.

The width is known of a base from scratch, of a folder and of the catalogue. A hub id outside it keeps the settings'
own defaults whether it is on this machine or not, so that a download changes no finished stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.strict_json import read_object
from models.backbone.settings import METHODS
from models.hub.catalogue import width_of
from models.hub.registry import resolve_base
from pipelines.recipe.errors import models_in
from pipelines.recipe.schema import Recipe

SETTING = "learning_rate"
FULL, LORA = 5e-5, 10.0
WIDTH, POWER, QWEN_POWER = 2000, 0.781, 0.0775
DIVISORS: dict[str, int] = {
    name: config.RATE_DIVISOR  # type: ignore[attr-defined]
    for name, field in Recipe.model_fields.items()
    for config in models_in(field.annotation)
    if hasattr(config, "RATE_DIVISOR")
}
"""Groups of the recipe that have a learning rate by the law, and what SFT's is divided by."""
HIGHEST = 3e-3
VIRTUAL = 3e-2  # of virtual tokens' embeddings, keys and values: with a tenth of it they hardly move
WIDTHS = ("hidden_size", "n_embd", "d_model")  # what configs call it


@dataclass(frozen=True, slots=True)
class Known:
    """What the law asks of a base: its width, and whether it is one of the Qwen family."""

    width: int
    qwen: bool = False


def chosen_rates(data: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """The learning rate of each stage of a recipe, as plain values that nobody has checked yet; none where unknown.

    Args:
        folder: of the recipe, where relative paths start.
    """
    adapter = data.get("adapter")
    method = str(adapter.get("method", "lora")) if isinstance(adapter, Mapping) else "lora"
    found = {}
    for stage, base in bases_of(data).items():
        if (known := known_base(base, folder)) is not None:
            found[stage] = rate_of(stage, known, method)
        elif _is_virtual(method):  # and the width is not asked for
            found[stage] = rate_of(stage, Known(WIDTH), method)
    return found


def bases_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The base under each stage: the reward model may have its own."""
    reward = data.get("reward")
    own = reward.get("base", "same") if isinstance(reward, Mapping) else "same"
    return {stage: data.get("base") if stage != "reward" or own == "same" else own for stage in DIVISORS}


def rate_of(stage: str, known: Known, method: str) -> float:
    """The law's rate, to two digits; a method that nobody knows is taken for LoRA."""
    if _is_virtual(method):
        return float(f"{VIRTUAL / DIVISORS[stage]:.1e}")
    law = _method_rate(method) * (WIDTH / known.width) ** (QWEN_POWER if known.qwen else POWER)
    return float(f"{min(HIGHEST, law / DIVISORS[stage]):.1e}")


def known_base(base: Any, folder: Path) -> Known | None:
    """Width and family of a base; None where the recipe and this machine do not say."""
    if isinstance(base, Mapping):
        pretrain = base.get("pretrain")
        model = pretrain.get("model") if isinstance(pretrain, Mapping) else None
        width = model.get("width", 96) if isinstance(model, Mapping) else 96
        return Known(width) if isinstance(width, int) and width > 0 else None
    try:
        spec = resolve_base(base, base_dir=folder) if isinstance(base, str) else None
        if spec is None:
            return None
        if (width := width_of(spec.name)) is not None:
            return Known(width, spec.family.startswith("Qwen"))
        config = read_object(Path(spec.source) / "config.json", largest=16 << 20) if Path(spec.source).is_dir() else {}
    except (UserError, OSError):  # whoever loads the base says what is wrong
        return None
    text = config.get("text_config")
    inner = {**config, **text} if isinstance(text, Mapping) else config
    widths = [w for w in map(inner.get, WIDTHS) if isinstance(w, int) and w > 0]
    return Known(widths[0], str(inner.get("model_type", "")).startswith("qwen")) if widths else None


def _is_virtual(method: str) -> bool:
    return method in METHODS and METHODS[method].rate == "virtual"


def _method_rate(method: str) -> float:
    kind = METHODS[method].rate if method in METHODS else "lora"
    return {"lora": FULL * LORA, "full": FULL, "highest": math.inf}[kind]


def why(stage: str, base: Any, method: str, folder: Path) -> str:
    """Where a chosen rate is from, in a few words."""
    if _is_virtual(method):
        share = f" / {DIVISORS[stage]}" if DIVISORS[stage] > 1 else ""
        return f"chosen for {method}, whose few numbers take {VIRTUAL:g}{share} on every base (docs/how-to/recipe.md)"
    known = known_base(base, folder)
    if known is None:
        return "the default, since the width of this base is not known: see docs/how-to/recipe.md"
    if math.isinf(_method_rate(method)):
        return f"chosen for {method}, whose few numbers take the highest rate (Liu et al. 2022)"
    share = f" / {DIVISORS[stage]}" if DIVISORS[stage] > 1 else ""
    highest = f", at most {HIGHEST:g}" if rate_of(stage, known, method) == HIGHEST else ""
    words = "LoRA" if method == "lora" else method
    law = f"{_method_rate(method):g} x (2000 / {known.width}) ^ {QWEN_POWER if known.qwen else POWER}"
    return f"chosen for {words} on a base {known.width} wide ({law}{share}{highest}; Schulman et al. 2025)"
