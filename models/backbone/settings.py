"""Settings of adapters, without importing torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data.common.config import Config

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's file: a folder with it holds an adapter


class AdapterConfig(Config):
    """How a role differs from the base: a LoRA adapter, or a full copy of the model."""

    method: Literal["lora", "full"] = Field("lora", description="LoRA adapters on one base, or full fine-tuning")
    rank: int = Field(16, ge=1, description="LoRA rank")
    alpha: float = Field(32, gt=0, description="LoRA scaling numerator: the update is alpha / rank times B A")
    dropout: float = Field(0.0, ge=0, lt=1, description="LoRA dropout in SFT and reward training; PPO uses none")
    targets: str | tuple[str, ...] = Field("all-linear", description="module names, or all linear layers of the blocks")
    layers: Literal["all", "upper_half"] | tuple[int, ...] = Field("all", description="which layers carry adapters")
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (Kalajdzievski 2023)")
