"""What an architecture must have before any role can stand on it, and which of its weights adapters can reach."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from typing import Any

import torch
from torch import nn

from data.common.errors import UserError
from models.backbone.encoders import is_encoder, names_encoder
from models.backbone.forward import body_of

OF_TOKENS = (nn.Embedding, nn.Conv1d)


def check_architecture(lm: Any, name: str) -> None:
    """Refuse a model whose body takes no attention mask or no key-value cache, by its signature alone.

    Padding would change a recurrent model's states (RWKV, Mamba), and a cache that it does not know would be ignored;
    one that takes a cache of its own class alone would refuse the common one at the first sample.

    Raises:
        UserError: it is of such a kind.
    """
    takes = inspect.signature(body_of(lm).forward).parameters
    encoder = is_encoder(lm)  # samples nothing, and so keeps no cache
    lacking = [what for key, what in _NEEDED.items() if key not in takes and not (encoder and key == CACHE)]
    kind = getattr(lm.config, "model_type", type(lm).__name__)
    if lacking or kind in RECURRENT:
        raise UserError(
            f"base {name}: '{kind}' models have no {' and no '.join(lacking or _NEEDED.values())} as transformers do: "
            "rows of unequal length would change each other's results. Choose a base with attention (`trivet models`)"
        )
    if getattr(lm.config.get_text_config(), "compress_rates", None):
        raise UserError(
            f"base {name}: '{kind}' models read several tokens as one, counted from the beginning of a row with its "
            "padding, so that a row's results would depend on the other rows of its batch. Choose another base "
            "(`trivet models`)"
        )
    if encoder:
        return
    own = set(re.findall(r"\w*Cache\b", str(takes["past_key_values"].annotation))) - COMMON_CACHES
    if own:
        raise UserError(
            f"base {name}: '{kind}' models take a key-value cache of their own alone ({', '.join(sorted(own))}), and "
            "sampling gives the common one of transformers. Choose another base (`trivet models`)"
        )


CACHE = "past_key_values"
_NEEDED = {"attention_mask": "attention mask", CACHE: "key-value cache"}
COMMON_CACHES = {"Cache", "DynamicCache", "EncoderDecoderCache"}
RECURRENT = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "xlstm"})
"""Architectures without any attention, whatever arguments their code takes."""


def linear_layers(lm: Any) -> list[str]:
    """Last names of the linear layers inside the transformer's blocks, never embeddings, output layer or heads.

    GPT-2's ``Conv1D`` counts as linear; one without a name of its own (the third of a list) does not, nor does the
    router of a mixture, whatever class it is, nor a name that PEFT reads as something else (``renamed_by_peft``), nor
    one past which the model's code goes (``passed_over``). Of a model that sees or hears, only the part that reads
    text. Sorted, so that an adapter's configuration has the same bytes every time.

    Raises:
        UserError: there is none.
    """
    from transformers.pytorch_utils import Conv1D

    output = lm.get_output_embeddings()
    names, others = set[str](), set[str]()
    for path, module in text_part(lm).named_modules():
        name = path.rsplit(".", 1)[-1]
        if (
            not isinstance(module, nn.Linear | Conv1D)
            or module is output
            or name.isdigit()  # one of a list: PEFT would take "0" for the first block as well
            or not any(p.isdigit() for p in path.split("."))
        ):
            continue
        (others if "Router" in type(module).__name__ else names).add(name)
    plain = sorted(names - others)
    found = sorted(set(plain) - passed_over(lm) - renamed_by_peft(lm, plain))
    if not found:
        raise UserError(f"adapter.targets: {type(lm).__name__} has no linear layers that LoRA could use")
    return found


def text_part(lm: Any) -> nn.Module:
    """What reads text in a causal LM: its body, or one part of the body where others see or hear."""
    body, decoder = body_of(lm), lm.get_decoder()
    return decoder if decoder is not None and any(m is decoder for m in body.modules()) else body


def other_senses(lm: Any) -> str | None:
    """A pattern of the modules outside the part that reads text, which carry no adapter; None where there are none."""
    text, inside = text_part(lm), {id(m) for m in text_part(lm).modules()}
    if text is body_of(lm):
        return None
    holders = {id(m) for m in body_of(lm).modules() if any(child is text for child in m.modules())}
    others = [name for name, m in lm.named_modules() if id(m) not in inside | holders and m is not lm]
    roots = [n for n in others if not any(n.startswith(f"{o}.") for o in others)]
    return "|".join(rf"{re.escape(root)}(\..*)?" for root in sorted(roots)) or None


def passed_over(lm: Any) -> set[str]:
    """Last names of layers whose weight the model's own code takes without calling the layer, as mixers of the Mamba
    kind do in some of their paths: an adapter there would train nothing and change nothing."""
    modules = {type(module).__module__ for module in text_part(lm).modules()}
    return set[str]().union(*(_weights_taken(name) for name in modules if not name.startswith("torch.")))


@functools.cache
def _weights_taken(module: str) -> frozenset[str]:
    """Names ``x`` of ``self.x.weight`` that the source of a Python module multiplies by or hands on."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):  # made at run time: there is none
        return frozenset()
    return frozenset(WEIGHT_ALONE.findall(source))


WEIGHT_ALONE = re.compile(r"(?<!isinstance\()self\.(\w+)\.weight\s*[@,]")


def renamed_by_peft(lm: Any, names: list[str]) -> set[str]:
    """The names that PEFT takes for experts of this architecture as Transformers 4 had them.

    On such a base it would put the adapter on the experts' common tensors instead of the layers that are meant, here
    and wherever the adapter is opened.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    out = set()
    for name in names:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, lm, None)
        except ValueError:  # a part of what is one tensor here
            out.add(name)
        else:
            if name not in (config.target_modules or ()):
                out.add(name)
    return out


def out_of_reach(lm: Any, names: list[str]) -> dict[str, int]:
    """Weights inside the blocks that an adapter on ``names`` leaves as they are: number of elements by last name.

    Of matrices and stacks of matrices alone (the experts of a mixture, say): norms and biases carry no adapter anyway.
    """
    out: dict[str, int] = {}
    for path, module in text_part(lm).named_modules():
        parts = path.split(".")
        if not any(p.isdigit() for p in parts) or isinstance(module, OF_TOKENS) or parts[-1] in names:
            continue
        for name, p in module.named_parameters(recurse=False):
            if p.dim() >= 2 and p.numel() > max(p.shape):
                last = name if name != "weight" else parts[-1]
                out[last] = out.get(last, 0) + p.numel()
    return out


def reach_sentence(lm: Any, names: list[str]) -> str:
    """What ``all-linear`` does not reach of a base, for the user; '' where that is nothing worth a word."""
    left = out_of_reach(lm, names)
    whole = sum(p.numel() for p in text_part(lm).parameters())
    if not left or sum(left.values()) < SHARE * whole:
        return ""
    parts = ", ".join(f"{name} ({count / whole:.0%})" for name, count in sorted(left.items(), key=lambda x: -x[1]))
    return (
        f"adapter.targets: of the weights of this base, adapters do not reach {parts}: they are no linear layers (the "
        "experts of a mixture, say) and stay as they are"
    )


SHARE = 0.01
"""Of a base's weights, below which nothing is said."""


def without_weights(config: Any) -> Any:
    """The causal LM or encoder of a config on the meta device: names and shapes, no memory."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    kind: Any = AutoModelForMaskedLM if names_encoder(config.to_dict()) else AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(config)
