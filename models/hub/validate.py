"""Model and adapter files that others made: refused where they would do more than hold weights.

Adapters become plain settings: no classes or modules are named by a file, no pattern of its is run as a regular
expression, ranks fit the weights. Model folders stay within themselves, their sizes fit the weights that are there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from data.common.errors import UserError
from data.common.stand_ins import refuse_stand_in
from data.common.strict_json import read_object
from models.backbone.settings import ADAPTER_CONFIG

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor

CONFIG, INDEX = ADAPTER_CONFIG, "model.safetensors.index.json"
PREFIX = "base_model.model."  # PEFT's, before the names of a base
Known = TypeVar("Known", bound=BaseModel)
NAME = re.compile(r"\^?[A-Za-z0-9_.-]{1,200}")
# How an adapter came to be, or what PEFT itself would do with it; without meaning for weights that are given.
IGNORED = {
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "merge_weights"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config", "megatron_core"),
    *("exclude_modules", "qalora_group_size", "modules_to_tie"),
}
# Ways to begin that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take something out of its
# weights, and the adapter means what it says on what is left of them alone.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model")


class _Adapter(BaseModel):
    """What is read of an adapter's settings."""

    model_config = ConfigDict(strict=True)
    r: int = Field(8, ge=1)
    lora_alpha: FiniteFloat | int = 8
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    target_modules: str | list[str] | None = None
    fan_in_fan_out: bool = False
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool = False
    trainable_token_indices: dict[str, list[int]] | list[int] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, FiniteFloat | int] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    task_type: str | None = None


class _IA3(BaseModel):
    """What is read of (IA)3's settings."""

    model_config = ConfigDict(strict=True)
    target_modules: str | list[str] | None = None
    feedforward_modules: str | list[str] | None = None
    fan_in_fan_out: bool = False
    modules_to_save: list[str] | None = None
    task_type: str | None = None


def read_adapter_config(folder: Path, weights: Mapping[str, Tensor], *, head_copied: bool = False) -> PeftConfig:
    """The settings of a folder's LoRA or (IA)3 adapter, for the weights that lie next to it.

    ``head_copied``: a classifier's ``score`` in it is known to be the copy of our own head, and may be named.

    Raises:
        UserError: of another kind, damaged, or settings that would change the base, run patterns, or fit other weights.
    """
    from peft import LoraConfig

    file = folder / CONFIG
    raw = read_object(file, largest=1 << 20)
    if raw.get("peft_type") == "IA3":
        return _ia3(file, raw, weights, head_copied)
    if raw.get("peft_type") == "ADALORA":
        return _adalora(file, raw, weights, head_copied)
    if raw.get("peft_type") in PROMPTS:
        return _prompt(file, raw, weights)
    if raw.get("peft_type") != "LORA":
        raise UserError(
            f"{file}: peft_type is {raw.get('peft_type')!r:.60}; trivet reads LORA, ADALORA and IA3 adapters, and "
            "PROMPT_TUNING, P_TUNING and PREFIX_TUNING"
        )
    known = _validated(_Adapter, file, raw)
    known.modules_to_save = _whole_modules(file, known.modules_to_save, weights, head_copied)
    if known.bias != "none":
        raise UserError(f"{file}: bias would change the shared base; export the adapter without it")
    _check_start(file, raw.get("init_lora_weights", True))
    for name in sorted(set(raw) - set(_Adapter.model_fields) - IGNORED - {"peft_type", "init_lora_weights"}):
        if raw[name]:
            raise UserError(f"{file}: {name[:60]}: trivet reads plain LoRA adapters, without this setting")
    _check_patterns(file, known)
    _check_ranks(file, known, weights)
    if known.trainable_token_indices and not any(".token_adapter." in name for name in weights):
        raise UserError(
            f"{file}: trainable_token_indices: there are no rows for these tokens next to it; export the adapter anew"
        )
    settings = known.model_dump(exclude_none=True)
    settings["task_type"] = "CAUSAL_LM" if known.task_type == "CAUSAL_LM" else None
    if _by_weights(known, raw):
        settings["target_modules"] = _targets(weights)
        settings = {k: v for k, v in settings.items() if k not in ("layers_to_transform", "layers_pattern")}
    # eva/loftq/etc. initialisations would touch the base: the weights are given, so no initialisation is needed
    try:
        return LoraConfig(**settings, init_lora_weights=True, inference_mode=True)
    except (ValueError, TypeError) as error:  # settings that PEFT does not take together
        raise UserError(f"{file}: not a readable LoRA configuration ({' '.join(str(error).split())[:200]})") from error


def _validated(kind: type[Known], file: Path, raw: Mapping[str, Any]) -> Known:
    try:
        return kind.model_validate({k: v for k, v in raw.items() if k in kind.model_fields})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(f"{file}: {'.'.join(map(str, first['loc']))[:100]}: {first['msg']}") from error


def module_of(name: str) -> str:
    """The module of the base on which a tensor of an adapter stands, by its name in a file."""
    return re.split(r"\.(?:lora_|ia3_|token_adapter\.|weight$|bias$)", name.removeprefix(PREFIX), maxsplit=1)[0]


def _ia3(file: Path, raw: Mapping[str, Any], weights: Mapping[str, Tensor], head_copied: bool) -> PeftConfig:
    """(IA)3's settings: the weights say where it stands, and their shapes which of them are factors of inputs."""
    from peft import IA3Config

    known = _validated(_IA3, file, raw)
    whole = _whole_modules(file, known.modules_to_save, weights, head_copied)
    for name in sorted(set(raw) - set(_IA3.model_fields) - IGNORED - {"peft_type", "init_ia3_weights"}):
        if raw[name]:
            raise UserError(f"{file}: {name[:60]}: trivet reads plain (IA)3 adapters, without this setting")
    factors = {module_of(n): w for n, w in weights.items() if ".ia3_" in n}
    inputs = [n for n, w in factors.items() if w.dim() == 2 and w.shape[0] == 1]
    return IA3Config(
        target_modules=sorted(factors),
        feedforward_modules=sorted(inputs),
        fan_in_fan_out=known.fan_in_fan_out,
        modules_to_save=whole,
        task_type="CAUSAL_LM" if known.task_type == "CAUSAL_LM" else None,
        inference_mode=True,
    )


class _Prompt(BaseModel):
    """What is read of the settings of virtual tokens: how they were made is over."""

    model_config = ConfigDict(strict=True)
    num_virtual_tokens: int = Field(ge=1, le=1024)
    token_dim: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_transformer_submodules: int = Field(1, ge=1, le=1)
    task_type: str | None = None


PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def _prompt(file: Path, raw: Mapping[str, Any], weights: Mapping[str, Tensor]) -> PeftConfig:
    """The settings of virtual tokens, next to their vectors alone."""
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    known = _validated(_Prompt, file, raw)
    if set(weights) != {"prompt_embeddings"} or weights["prompt_embeddings"].dim() != 2:
        raise UserError(
            f"{file}: next to it lie {', '.join(sorted(weights))[:100]}, where virtual tokens are a matrix "
            "'prompt_embeddings'"
        )
    kinds: Any = dict(zip(PROMPTS, (PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig), strict=True))
    width = {} if raw["peft_type"] == "PROMPT_TUNING" else {"encoder_hidden_size": known.token_dim}
    made: PeftConfig = kinds[raw["peft_type"]](**known.model_dump(), **width, inference_mode=True)
    return made


class _AdaLora(BaseModel):
    """What is read of AdaLoRA's settings; its schedule is over."""

    model_config = ConfigDict(strict=True)
    init_r: int = Field(12, ge=1)
    target_r: int = Field(8, ge=1)
    lora_alpha: FiniteFloat | int = 8
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    fan_in_fan_out: bool = False
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool = False
    trainable_token_indices: dict[str, list[int]] | list[int] | None = None
    task_type: str | None = None


SCHEDULE = {"tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step", "r", "peft_type"}
ELSEWHERE = {"target_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"}  # the weights say it


def _adalora(file: Path, raw: Mapping[str, Any], weights: Mapping[str, Tensor], head_copied: bool) -> PeftConfig:
    """AdaLoRA's settings, where every matrix has the first rank and ranks that were taken away are zeros."""
    from peft import AdaLoraConfig

    known = _validated(_AdaLora, file, raw)
    for name in sorted(set(raw) - set(_AdaLora.model_fields) - IGNORED - SCHEDULE - ELSEWHERE):
        if raw[name] and not (name == "bias" and raw[name] == "none"):
            raise UserError(f"{file}: {name[:60]}: trivet reads AdaLoRA adapters of one rank, without this setting")
    ranks = {tuple(w.shape) for n, w in weights.items() if ".lora_E" in n}
    if ranks != {(known.init_r, 1)}:
        raise UserError(f"{file}: init_r {known.init_r} does not fit the weights next to it ({sorted(ranks)[:3]})")
    settings = known.model_dump(exclude_none=True, exclude={"modules_to_save", "task_type"})
    return AdaLoraConfig(
        **settings,
        modules_to_save=_whole_modules(file, known.modules_to_save, weights, head_copied),
        target_modules=_targets(weights),
        task_type="CAUSAL_LM" if known.task_type == "CAUSAL_LM" else None,
        total_step=1,
        inference_mode=True,
    )


def _whole_modules(
    file: Path, named: list[str] | None, weights: Mapping[str, Tensor], head_copied: bool
) -> list[str] | None:
    """Modules that an adapter has trained whole, and whose tensors lie next to it; a copy of our own head is none."""
    whole = [name for name in named or () if not (head_copied and name == "score")]
    for name in whole:
        if not NAME.fullmatch(name) or not any(module_of(n).endswith(name) for n in weights if "lora_" not in n):
            raise UserError(
                f"{file}: modules_to_save: {name[:60]!r} has no weights next to it, and would change the shared base; "
                "export the adapter anew"
            )
    return whole or None


def _check_start(file: Path, start: Any) -> None:
    """Refuse weights that are relative to a base which PEFT changed when the adapter was created."""
    if isinstance(start, bool | str | None) and start in PLAIN_STARTS:
        return
    raise UserError(
        f"{file}: init_lora_weights: {start!r:.60} means weights relative to a changed base, which on the plain base "
        "are another model. Convert them: save_pretrained(..., path_initial_model_for_weight_conversion=FOLDER), where "
        "FOLDER holds the adapter as it was before training; or merge it into its base and give that folder"
    )


def _by_weights(known: _Adapter, raw: Mapping[str, Any]) -> bool:
    """Whether the weights say where the adapter stands: a regular expression of others is not run, and modules that
    were excluded have no weights."""
    pattern = isinstance(known.target_modules, str) and known.target_modules != "all-linear"
    return pattern or bool(raw.get("exclude_modules"))


def _check_patterns(file: Path, known: _Adapter) -> None:
    """PEFT reads these as regular expressions: only plain names pass."""
    layers = [known.layers_pattern] if isinstance(known.layers_pattern, str) else known.layers_pattern or []
    for where, names in (
        ("rank_pattern", known.rank_pattern or {}),
        ("alpha_pattern", known.alpha_pattern or {}),
        ("layers_pattern", layers),
    ):
        for name in names:
            if not NAME.fullmatch(name):
                raise UserError(f"{file}: {where}: {name[:60]!r} is a pattern, not a module's name")


def _check_ranks(file: Path, known: _Adapter, weights: Mapping[str, Tensor]) -> None:
    ranks = [w.shape[0] for n, w in weights.items() if ("lora_A" in n or "lora_embedding_A" in n) and w.dim()]
    largest = max([known.r, *(known.rank_pattern or {}).values()])
    if largest > max(ranks, default=0):
        raise UserError(f"{file}: rank {largest} does not fit the weights next to it (largest {max(ranks, default=0)})")


def _targets(weights: Mapping[str, Tensor]) -> list[str]:
    """Full names of the modules that the weights are for."""
    return sorted({module_of(n) for n in weights if ".lora_" in n})


def check_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse adapter or head tensors that are no finite floating-point numbers.

    Raises:
        UserError: names file and tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{file}: {name[:100]} holds {str(tensor.dtype).removeprefix('torch.')}, not weights")
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{file}: {name[:100]} holds numbers that are not finite")


# -- model folders ----------------------------------------------------------------------------------------------------


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")


def check_model(folder: Path) -> None:
    """Refuse a model folder whose files point outside, whose headers are damaged or whose sizes are made up.

    Raises:
        UserError: names the file.
    """
    refuse_stand_in(folder / "config.json", str(folder / "config.json"))
    config = read_object(folder / "config.json", largest=16 << 20)
    for part in _parts(config):
        for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
            if "/" in str(part.get(key) or ""):
                raise UserError(f"{folder / 'config.json'}: {key}: {part[key]!r} is code from elsewhere; remove it")
    files = weight_files(folder)
    for file in (folder / name for name in TOKENIZER_FILES):
        refuse_stand_in(file, str(file))
    count, elements = 0, 0
    for file in files:
        for _, shape in shapes_of(file):
            count, elements = count + 1, elements + math.prod(shape)
    for part in _parts(config):
        _check_sizes(folder / "config.json", part, count, elements)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _parts(value)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that Transformers will read."""
    if (folder / "model.safetensors").is_file() or not (folder / INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    names = read_object(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise UserError(f"{folder / INDEX}: weight_map: must map each tensor to a file")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX}: names {name[:100]!r}, which is no safetensors file of this folder")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing, and {INDEX} names it")
    return [folder / name for name in sorted(set(names.values()))]


def elements_of(folder: Path) -> int:
    """Numbers that a model's files hold, by their headers alone."""
    return sum(math.prod(shape) for file in weight_files(folder) for _, shape in shapes_of(file))


def shapes_of(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes by the header alone; safetensors itself checks its length, offsets, gaps, overlaps and types."""
    from safetensors import SafetensorError, safe_open

    refuse_stand_in(file, str(file))
    try:
        with safe_open(file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                yield name, opened.get_slice(name).get_shape()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({error})") from error


def _check_sizes(file: Path, config: Mapping[str, Any], tensors: int, elements: int) -> None:
    """A model larger than its weights would be made of random numbers, or never be finished."""
    for key in LAYERS:
        layers = config.get(key)
        if isinstance(layers, int) and layers > tensors:
            raise UserError(f"{file}: {key}: {layers:,} layers, and the weights hold {tensors:,} tensors")
    width = next((config[k] for k in WIDTHS if isinstance(config.get(k), int)), 0)
    vocabulary = config.get("vocab_size")
    if isinstance(vocabulary, int) and vocabulary * width > elements > 0:
        raise UserError(
            f"{file}: a vocabulary of {vocabulary:,} and width {width:,} do not fit weights of {elements:,} numbers"
        )
