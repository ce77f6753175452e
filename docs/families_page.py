"""The page of model families: what of each the adapters reach, and which passes compute it, from small models of each.

The models are those that the tests take through the roles of a whole run, twice in one process.
"""

from __future__ import annotations

from typing import Any

ABOUT = """\
Bases of these families go through a whole run: a test makes a small model of each from its config, with random weights,
takes it through the roles of SFT, reward model and PPO twice in one process, compares the saved adapter with what
plain PEFT computes with it, and asks that the base is as before, to the bit. Whether the published weights of a family
are any good for alignment is another matter.

- **adapters reach**: the share of the weights inside the blocks that `adapter.targets: all-linear` adapts, in the small
  model; the rest (experts of a mixture that are stacks of matrices, routers, mixers that are no linear layers) stays
  as it is, and `trivet plan` names it.
- **passes**: *fast* are trivet's own ([several times as fast](../measurements/performance.md)); *modules* are
  Transformers', which compute the same.

What is refused, by name and before anything is trained: models without a key-value cache or an attention mask as
Transformers have them (RWKV, Mamba, CPMAnt), encoders that end in more than an output layer (BERT's kind), models that
read several tokens as one (DeepSeek V4), layers whose adapters PEFT does not read back where it wrote them (Laguna's
shared experts, convolutions of Inkling 2: other layers of theirs go, by `adapter.targets`), and encoder-decoders. An
encoder can be a [ready reward model](../how-to/reward_models.md).
"""
COLUMNS = ("family (`model_type`)", "class", "mixes tokens by", "experts", "adapters reach", "passes")


def families_page(note: str) -> str:
    """``families.md``; ``note`` says whose writing it is."""
    from tests.support.architectures import ARCHITECTURES, MORE

    rows = [_row(kind) for kind in sorted(ARCHITECTURES | MORE)]
    head = [f"| {' | '.join(COLUMNS)} |", "| --- | --- | --- | --- | ---: | --- |"]
    return "\n".join(["# Families of bases", "", note, ABOUT, *head, *rows, ""])


def _row(kind: str) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    from models.backbone.architecture import linear_layers
    from models.fast.hidden_states import usable
    from tests.support.architectures import config_of

    lm: Any = AutoModelForCausalLM.from_config(config_of(kind)).requires_grad_(False)
    with torch.no_grad():
        passes = "modules" if usable(lm) is None else "fast"
    experts = "yes" if any("experts" in name for name, _ in lm.named_modules()) else ""
    share = _reached(lm, linear_layers(lm))
    return f"| `{kind}` | {type(lm).__name__} | {_mixers(lm)} | {experts} | {share:.0%} | {passes} |"


def _reached(lm: Any, names: list[str]) -> float:
    """Share of the matrices inside the blocks that are linear layers of these names."""
    from models.backbone.architecture import out_of_reach, text_part

    inside = {
        name: p.numel()
        for name, p in text_part(lm).named_parameters()
        if any(part.isdigit() for part in name.split(".")) and p.dim() >= 2
    }
    left = sum(out_of_reach(lm, names).values())
    return 1 - left / sum(inside.values())


def _mixers(lm: Any) -> str:
    """What its layers mix tokens by, as the config calls it."""
    found = getattr(lm.config.get_text_config(), "layer_types", None) or ["attention"]
    return ", ".join(dict.fromkeys(one.replace("_", " ") for one in found))
