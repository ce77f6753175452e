"""A recipe: frozen, typed settings of a whole run. ``pipelines.loading.load`` makes one of YAML or a dict.

It knows every stage's settings but nothing of files, models or how a stage runs; it imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, JsonValue

from data.chat_template import TemplateChoice
from data.common.config import Config
from data.sources import DataConfig
from evaluation.settings import EvaluationConfig
from models.backbone.settings import AdapterConfig
from models.sampling.settings import RolloutServers
from stages.settings import (
    CheckpointConfig,
    ContinuedConfig,
    DistilConfig,
    PPOConfig,
    PretrainConfig,
    RankingsConfig,
    RewardConfig,
    SFTConfig,
)


class FromScratch(Config):
    """A base that the run pretrains itself."""

    pretrain: PretrainConfig = Field(description="shape, tokenizer and training of the base")


class RuntimeConfig(Config):
    """Where and how a run computes."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a CUDA GPU if there is one, else the CPU")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of the frozen base; auto: bf16 on a GPU that has it, and on a CPU whose bf16 products are found "
        "to be 1.5 times as fast, for bases at least 512 wide; else float32. float16 trains no adapter",
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; null leaves it to torch")
    quantize: Literal["nf4"] | None = Field(
        None, description="nf4: the frozen base's matrices in four bits (needs the extra nf4); null: as dtype says"
    )
    sharding: Literal["none", "fsdp2", "auto"] = Field(
        "auto",
        description="fsdp2: several processes hold the base in parts, layer by layer, and with adapter.method full "
        "each role's model; auto: on GPUs, where the base takes more than three quarters of what can be used of a card",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="less memory for more time; auto: in stages that would not fit the device's memory"
    )
    offload_activations: bool = Field(
        False,
        description="on a GPU: what layers are computed again from waits in pinned memory of the host, in stages with "
        "gradient_checkpointing",
    )
    fit: str | None = Field(
        None,
        description="'auto' or a size such as 24GB: micro-batches and the like are chosen to fit; null: as given",
    )
    engine: Literal["auto", "plain"] = Field(
        "auto", description="auto: trivet's own loops where they know the model; plain: always Transformers' modules"
    )
    rollouts: RolloutServers = RolloutServers()


class Recipe(Config):
    """Everything that a run depends on. Only ``base`` and ``data`` have no default."""

    name: str = Field("run", description="the run folder is runs/<name> unless --run-dir says otherwise")
    seed: int = Field(0, ge=0, description="of everything random")
    base: str | FromScratch = Field(description="registry name, folder, GGUF file, hub id, or {pretrain: ...}")
    template: str = Field("auto", description="how conversations are rendered; auto: the tokenizer's chat template")
    template_args: dict[str, JsonValue] = Field(
        {}, description="what a chat template asks for besides the conversation, such as {enable_thinking: false}"
    )
    stop: tuple[str | int, ...] = Field((), description="tokens or ids that end a response, instead of the defaults")
    stop_strings: tuple[str, ...] = Field(
        (), description="texts that end a response too, wherever they stand in it, besides the stop tokens"
    )
    stages: tuple[str, ...] = Field((), description="in order; default: those that the settings call for")
    data: DataConfig = Field(description="demonstrations, rankings, prompts, documents, and what is held out")
    adapter: AdapterConfig = AdapterConfig()
    continued: ContinuedConfig | None = Field(None, description="continued pretraining of the base, before the rest")
    sft: SFTConfig = SFTConfig()
    distil: DistilConfig | None = Field(None, description="distillation of a larger model into this base")
    rankings: RankingsConfig | None = Field(None, description="ranked responses sampled from the SFT model")
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        ("tensorboard",), description="where metrics go besides metrics.jsonl; [] for nowhere"
    )
    base_dir: Path = Field(default_factory=Path.cwd, exclude=True, description="relative paths start here")

    @property
    def base_stage(self) -> str | None:
        """The stage whose result is the base of those behind it; None where that is ``base`` itself."""
        return "continued" if self.continued is not None else self.first_base_stage

    @property
    def first_base_stage(self) -> str | None:
        """The stage that makes a base from scratch; None where one is given."""
        return None if isinstance(self.base, str) else "pretrain"

    @property
    def template_source(self) -> TemplateChoice:
        """The template as a renderer takes it: a file's path from the recipe's folder, a name or a text as it is."""
        own = self.template.endswith(".jinja") and "{" not in self.template
        template = str(self.base_dir / Path(self.template).expanduser()) if own else self.template
        return TemplateChoice(template, self.template_args)


def resolved_yaml(recipe: Recipe) -> str:
    """Every setting with its value, in the order of the classes: the same recipe gives the same text."""
    return settings_yaml(recipe.model_dump(mode="json"))


def settings_yaml(settings: Mapping[str, Any]) -> str:
    """The text of a resolved recipe's plain values."""
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)
    # PyYAML writes 1e-05, which YAML 1.1 readers take for text
    return re.sub(r"(?m)(?<=[ \[])(-?\d+)(e[-+]?\d+)(?=$|[,\]])", r"\1.0\2", text)
