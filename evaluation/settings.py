"""Settings of held-out evaluation, without importing torch."""

from __future__ import annotations

from pydantic import Field

from data.config import Config


class EvaluationConfig(Config):
    """Systems of a run compared on held-out prompts with the same seeds and limits."""

    prompts: int = Field(256, ge=1, description="held-out prompts")
    gold: str | None = Field(None, description="'file.py:function' or 'package.module:function': a programmatic judge")
    samples_per_prompt: int = Field(1, ge=1, description="sampled answers a prompt and system")
    temperature: float = Field(1.0, gt=0, description="of the sampled answers")
    greedy: bool = Field(True, description="evaluate greedy answers as well")
    systems: tuple[str, ...] = Field(
        ("base", "sft", "best_of_4", "ppo"), description="base, sft, ppo and best_of_N (of SFT, by the reward model)"
    )
    max_new_tokens: int | None = Field(None, ge=1, description="longest answer; default: ppo.max_new_tokens")
    batch: int = Field(128, ge=1, description="answers generated at once")
    seed: int | None = Field(None, ge=0, description="of the draws; default: the recipe's seed")
    bootstrap: int = Field(10_000, ge=1, description="resamples behind each interval")
