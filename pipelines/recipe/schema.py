"""A recipe: YAML (or a dict) -> frozen, typed settings of a whole run; unknown keys and wrong values refused by place.

It knows every stage's settings but nothing of files, models or how a stage runs; it imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from data.common.config import Config
from data.common.errors import UserError
from data.sources import DataConfig
from evaluation.settings import EvaluationConfig
from models.backbone.settings import AdapterConfig
from pipelines.recipe.checks import default_stages, fill_in, problems_across
from pipelines.recipe.errors import coerced, problems_of, recipe_error, unknown_keys
from pipelines.recipe.idle import idle
from pipelines.recipe.renamed import in_new_names, old_names
from pipelines.recipe.yaml_source import Source, apply_override, read_text
from pipelines.workspace.run_folder import RECIPE, is_run
from stages.settings import CheckpointConfig, PPOConfig, PretrainConfig, RankingsConfig, RewardConfig, SFTConfig


class FromScratch(Config):
    """A base that the run pretrains itself."""

    pretrain: PretrainConfig = Field(description="shape, tokenizer and training of the base")


class RuntimeConfig(Config):
    """Where and how a run computes."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a CUDA GPU if there is one, else the CPU")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the frozen base; auto: bf16 on a GPU that has it, else float32"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; null leaves it to torch")
    gradient_checkpointing: bool = Field(False, description="less memory for more time")
    engine: Literal["auto", "plain"] = Field(
        "auto", description="auto: trivet's own loops where they know the model; plain: always Transformers' modules"
    )


class Recipe(Config):
    """Everything that a run depends on. Only ``base`` and ``data`` have no default."""

    name: str = Field("run", description="the run folder is runs/<name> unless --run-dir says otherwise")
    seed: int = Field(0, ge=0, description="of everything random")
    base: str | FromScratch = Field(description="registry name, folder, hub id, or {pretrain: ...} from scratch")
    template: str = Field("auto", description="how conversations are rendered; auto: the tokenizer's chat template")
    stop: tuple[str | int, ...] = Field((), description="tokens or ids that end an answer, instead of the default ones")
    stages: tuple[str, ...] = Field((), description="in order; default: those that the settings call for")
    data: DataConfig = Field(description="demonstrations, rankings, prompts, documents, and what is held out")
    adapter: AdapterConfig = AdapterConfig()
    sft: SFTConfig = SFTConfig()
    rankings: RankingsConfig | None = Field(None, description="ranked answers sampled from the SFT model")
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        ("tensorboard",), description="where metrics go besides metrics.jsonl; [] for nowhere"
    )
    base_dir: Path = Field(default_factory=Path.cwd, exclude=True, description="relative paths start here")

    @model_validator(mode="after")
    def _stages(self) -> Recipe:
        if "stages" not in self.model_fields_set:
            object.__setattr__(self, "stages", default_stages(self))
        return self


def load_recipe(
    recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), may_idle: bool = False
) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: a YAML file, or the same as a dict.
        overrides: dotted settings such as ``ppo.kl_coef=0.1``; the value is YAML.
        may_idle: let settings pass that cannot act, as where a finished run is evaluated in another way.

    Raises:
        UserError: names file, line and key of everything that is wrong, and the fix.
    """
    if isinstance(recipe, Mapping):
        source, folder = Source(name="recipe", data=json.loads(json.dumps(recipe, default=_plain))), Path.cwd()
    else:
        source, folder = _read(Path(recipe)), Path(recipe).resolve().parent
        if Path(recipe).name == RECIPE and is_run(folder):  # trivet wrote it, perhaps with names of before
            source = in_new_names(source)
    for override in overrides:
        apply_override(source, override)
    renamed = old_names(source.data)
    at = {path for path, _ in renamed}
    if problems := [*renamed, *(p for p in unknown_keys(source.data, [Recipe]) if p[0] not in at)]:
        raise recipe_error(source, problems)
    fill_in(source.data)
    try:
        made = Recipe.model_validate(source.data | {"base_dir": folder})
    except ValidationError as error:
        raise recipe_error(source, problems_of(error, source)) from None
    if problems := coerced(source.data, made) or problems_across(made) or ([] if may_idle else idle(made)):
        raise recipe_error(source, problems)
    return made


def _read(path: Path) -> Source:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml"))[:5] if path.parent.is_dir() else []
        hint = f" There is: {', '.join(near)}." if near else ""
        raise UserError(f"{path}: no such recipe.{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the recipe in it, for example {path / RECIPE}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return read_text(text, str(path))


def resolved_yaml(recipe: Recipe) -> str:
    """Every setting with its value, in the order of the classes: the same recipe gives the same text."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    # PyYAML writes 1e-05, which YAML 1.1 readers take for text
    return re.sub(r"(?m)(?<=[ \[])(-?\d+)(e[-+]?\d+)(?=$|[,\]])", r"\1.0\2", text)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Path):
        return str(value)
    raise UserError(f"recipe: {value!r} is no plain value (text, number, true or false, list, mapping)")
