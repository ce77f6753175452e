"""Encoders: models that predict hidden tokens, each of whose positions sees the whole row. They write nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.common.errors import UserError

KIND = "ForMaskedLM"
CAUSAL = ("ForCausalLM", "LMHeadModel")


def is_encoder(lm: Any) -> bool:
    """Whether a loaded model is an encoder."""
    return type(lm).__name__.endswith(KIND)


def task_of(lm: Any) -> str | None:
    """PEFT's name of what a model does: it asks one that writes for ways to do so."""
    return None if is_encoder(lm) else "CAUSAL_LM"


def names_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` describes an encoder, with whatever head: its family has a model that predicts hidden
    tokens, and the config says nothing of a decoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    if config.get("is_decoder") or config.get("is_encoder_decoder"):
        return False
    named = config.get("architectures") or []
    causal = any(str(name).endswith(CAUSAL) for name in named if isinstance(named, list))
    return not causal and str(MASKED.get(str(config.get("model_type")), "")).endswith(KIND)


def refusal(name: str) -> UserError:
    """What is said where an encoder is to write text."""
    return UserError(
        f"base {name} is an encoder, which predicts hidden tokens and writes no text: choose a causal base, and give "
        "this one to the reward model (reward.base), or train it further alone (stages: [continued])"
    )


def check_method(name: str, method: str, virtual: bool) -> None:
    """Whether a method of tuning goes with an encoder.

    Raises:
        UserError: it puts virtual tokens before rows, which these passes do not have.
    """
    if virtual:
        raise UserError(
            f"reward.base: {name} is an encoder, whose rows take no virtual tokens here: use adapter.method 'lora' or "
            f"another one, instead of '{method}'"
        )
