"""BaseModelSpec: what a registry entry says of a base model. Knows nothing of where entries come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from data.common.config import Config


class BaseModelSpec(Config):
    """A base model: where it lies and how it is used.

    Chat template, pad and stop tokens come from the tokenizer when it loads; an entry overrides one only where that is
    documented, and then names the source.
    """

    name: str = Field(description="what a recipe's `base` says")
    source: str = Field(description="hub id (org/name) or folder")
    revision: str | None = Field(None, description="branch, tag or commit on the hub; null is the default branch")
    family: str = Field("", description="models that behave alike")
    lora_targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="what adapter.targets 'all-linear' stands for: every linear layer of the blocks"
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bf16 where the device multiplies it faster"
    )
    licence: str = Field("not stated", description="of the weights")
    note: str = Field("", description="size and use")
    chat_template: str | None = Field(None, description="instead of the tokenizer's (Jinja)")
    stop: tuple[str | int, ...] = Field((), description="further stop tokens")
    pad_token: str | None = Field(None, description="instead of the tokenizer's")
    new_tokens: tuple[str, ...] = Field((), description="added to the vocabulary, and rows to the embeddings for them")
    override_source: str | None = Field(None, description="where the overrides are documented")

    @model_validator(mode="after")
    def _overrides_are_sourced(self) -> BaseModelSpec:
        if (self.chat_template or self.stop or self.pad_token) and not self.override_source:
            raise ValueError("chat_template, stop and pad_token override the tokenizer: name override_source as well")
        return self
