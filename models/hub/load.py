"""Bases from registry entries, folders and the hub: safetensors only, remote code off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken

from data.common.errors import UserError
from data.common.strict_json import read_object
from data.tokens import check_speed
from models.backbone.architecture import without_weights
from models.backbone.encoders import names_encoder
from models.backbone.processes import Processes, resolve_dtype
from models.backbone.sharding import Shards, check_libraries, check_output_layer, check_shares, unit_names
from models.hub.download import folder_of, local_folder
from models.hub.limits import check_vocabulary, limits_of_model, stop_ids_in, stop_strings_in, width_of_folder
from models.hub.registry import BaseModelSpec, resolve_base
from models.hub.validate import check_model

MARKS = (
    *("_is_distributed_loading_by_transformers", "_is_fsdp_managed_module"),
    *("_mesh_manager", "_device_mesh", "_tp_size", "_fsdp_size"),
)
"""By which Transformers and PEFT know a model in parts: a trainer would sum gradients of adapters by its own hooks."""


def load_causal_lm(
    source: str, revision: str | None, dtype: torch.dtype, device: torch.device, divided: Processes | None = None
) -> Any:
    """A Transformers causal LM, or an encoder as a model that predicts hidden tokens.

    Args:
        source: a folder, or a hub id with its ``revision``.
        dtype: of its weights.
        device: where it goes.
        divided: the processes that share its weights, each of which reads its own part of every tensor alone; each
            has an encoder whole.

    Raises:
        UserError: not reachable, not safetensors, or code of its own.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder = _folder(source, revision)
    check_model(folder)
    encoder = encoder_in(folder)
    divided = None if encoder else divided
    if divided is not None:
        divided.barrier()  # some may still compute with another base in parts
    with _readable_errors(source):
        kind: Any = AutoModelForMaskedLM if encoder else AutoModelForCausalLM
        found: Any = kind.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **({} if divided is None else _divided(folder, source, divided)),
        )
    lm, loading = found
    if encoder:
        loading["missing_keys"] = _without_head(lm, loading["missing_keys"])
        lm.generation_config = None  # such as every causal one has
    lacking = sorted(map(str, loading["missing_keys"])) or sorted(map(str, loading["mismatched_keys"]))
    if lacking:
        raise UserError(
            f"base {source}: its weights lack {len(lacking)} tensors that the model needs (first: {lacking[0]}); "
            "Transformers would fill them with random numbers"
        )
    lm.name_or_path = lm.config._name_or_path = source  # not where a cache happens to lie
    if divided is None:
        return lm.to(device)
    del lm.config.distributed_config
    for name in MARKS:
        lm.__dict__.pop(name, None)
    lm.shards = Shards(lm.eval().requires_grad_(False), divided.divide_bases(), divided)
    return lm


def encoder_in(folder: Path) -> bool:
    """Whether a folder's config describes an encoder."""
    return names_encoder(read_object(folder / "config.json", largest=16 << 20))


@torch.no_grad()
def _without_head(lm: Any, missing: Iterable[str]) -> list[str]:
    """Of the tensors that an encoder's files lack those of its body; the head, which no stage reads, becomes zeros."""
    inside, parameters = f"{lm.base_model_prefix}.", dict(lm.named_parameters(remove_duplicate=False))
    of_body = {id(p) for name, p in parameters.items() if name.startswith(inside)}
    for name in missing:
        if name in parameters and id(parameters[name]) not in of_body:
            parameters[name].zero_()
    return [name for name in missing if name.startswith(inside)]


def _divided(folder: Path, source: str, processes: Processes) -> dict[str, Any]:
    """What Transformers is told to load a model in parts.

    Raises:
        UserError: the libraries are too old, the processes' device is not the one that Transformers would take, or the
            model cannot be divided.
    """
    check_libraries()
    from transformers import AutoConfig
    from transformers.distributed import DistributedConfig

    if torch.accelerator.is_available() and processes.device.type == "cpu":
        raise UserError(
            "runtime.sharding: bases are divided among this machine's GPUs, and runtime.device is 'cpu': set "
            "runtime.sharding: none, or hide the GPUs (CUDA_VISIBLE_DEVICES=)"
        )
    lm = without_weights(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    check_output_layer(lm, source)
    check_shares(lm, source, processes.world_size)
    plan = unit_names(lm)
    return {"distributed_config": DistributedConfig(fsdp_size=processes.world_size, fsdp_plan=plan)}


def load_tokenizer(source: str, revision: str | None = None) -> Any:
    """The base's tokenizer, which also brings chat template, pad and stop tokens."""
    from transformers import AutoTokenizer

    folder = _folder(source, revision)
    with _readable_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    try:
        check_speed(tokenizer)
    except UserError as error:
        raise UserError(f"base {source}: {error}") from None
    return tokenizer


def _folder(source: str, revision: str | None) -> Path:
    return Path(source) if Path(source).is_dir() else folder_of(source, revision)


@contextlib.contextmanager
def _readable_errors(source: str) -> Any:
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # hostile or damaged folders make the libraries raise anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"base {source}: cannot be loaded ({first}). If it is a hub id, check the network or download it first and "
            "name the folder; `trivet models` lists the known names."
        ) from error


def dtype_of(spec: BaseModelSpec, asked: str, device: torch.device) -> torch.dtype:
    """The precision of a base's weights: what is asked for, or where that is 'auto' what its entry says, or where that
    is 'auto' too what suits the device and the base's width."""
    name = spec.dtype if asked == "auto" else asked
    width = width_of_folder(folder_of_spec(spec)) if name == "auto" and device.type == "cpu" else None
    return resolve_dtype(name, device, width)


def folder_of_spec(spec: BaseModelSpec) -> Path:
    """Where a registry entry's files lie; they are fetched first where they are not here."""
    return _folder(spec.source, spec.revision)


def stop_ids_of(lm: Any) -> tuple[int, ...]:
    """Stop ids from the generation config, which holds an int, a list or nothing.

    Raises:
        UserError: it holds anything else.
    """
    eos = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    return stop_ids_in(eos, f"base {lm.name_or_path}, generation config")


def stop_strings_of(lm: Any) -> tuple[str, ...]:
    """Stop strings of the generation config.

    Raises:
        UserError: it holds anything else than texts.
    """
    own = getattr(lm.generation_config, "stop_strings", None)
    return stop_strings_in(own, f"base {lm.name_or_path}, generation config")


def load_lm_and_tokenizer(
    spec: BaseModelSpec, dtype: torch.dtype, device: torch.device, divided: Processes | None = None
) -> tuple[Any, Any]:
    """A registry entry's model and tokenizer, which fit each other; ``divided``: see ``load_causal_lm``."""
    tokenizer = tokenizer_of(spec)
    lm = load_causal_lm(spec.source, spec.revision, dtype, device, divided)
    if spec.new_tokens and divided is not None:
        raise UserError("adapter.new_tokens: a base in parts is given no rows: set runtime.sharding to 'none'")
    if spec.new_tokens:
        add_rows(lm, len(tokenizer))
    check_vocabulary(limits_of_model(lm, spec.name), tokenizer)
    return lm, tokenizer


def add_tokens(tokenizer: Any, spec: BaseModelSpec) -> None:
    """Add an entry's new tokens to the vocabulary: plain ones, which stay in a response's text.

    Raises:
        UserError: one is there already, or is no token.
    """
    for token in spec.new_tokens:
        if not token.strip() or token in tokenizer.get_vocab():
            why = "is empty" if not token.strip() else f"is in the vocabulary of base {spec.name} already: remove it"
            raise UserError(f"adapter.new_tokens: {token!r} {why}")
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])


@torch.no_grad()
def add_rows(lm: Any, count: int) -> None:
    """Rows of the embeddings and the output layer for ``count`` tokens, where there are fewer; new ones are the mean of
    those that are there (as Hewitt 2021 advises), the same at every loading."""
    had = lm.get_input_embeddings().weight.shape[0]
    if count <= had:
        return
    lm.resize_token_embeddings(count, mean_resizing=False)
    for module in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        for p in module.parameters() if module is not None else ():
            p[had:] = p[:had].double().mean(0).to(p.dtype)


def given_tokenizer(source: str, base_dir: Path, fetch: bool = True) -> Any:
    """A tokenizer for a base that is made: of a folder, with or without a model, of a name or a hub id. Where it has a
    class and a separator token alone, these begin and end a text.

    Args:
        source: as the recipe names it.
        base_dir: where relative paths start.
        fetch: it may come from the hub; else None is given where it is not on this machine.

    Raises:
        UserError: it cannot be loaded, or has no token that ends a text.
    """
    folder = base_dir / Path(source).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        tokenizer = load_tokenizer(str(folder))
    else:
        spec = resolve_base(source, base_dir=base_dir)
        if not fetch and local_folder(spec.source, spec.revision) is None:
            return None
        tokenizer = tokenizer_of(spec)
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token, tokenizer.bos_token = tokenizer.sep_token, tokenizer.bos_token or tokenizer.cls_token
    if tokenizer.eos_token is None:
        raise UserError(f"base.pretrain.given_tokenizer: {source} has no token that ends a text (eos_token)")
    return tokenizer


def rows_for(tokenizer: Any) -> int:
    """Rows of embeddings that a tokenizer needs: ids may leave gaps."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))


def tokenizer_of(spec: BaseModelSpec) -> Any:
    """A registry entry's tokenizer, with the entry's own template and padding token. Where an encoder's has a class and
    a separator token alone, these begin and end its rows.

    Raises:
        UserError: it cannot be loaded, or does not know the padding token.
    """
    tokenizer = load_tokenizer(spec.source, spec.revision)
    alone = tokenizer.eos_token is None and tokenizer.sep_token is not None
    if alone and encoder_in(folder_of_spec(spec)):
        tokenizer.eos_token = tokenizer.sep_token
        tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
    if spec.chat_template:
        tokenizer.chat_template = spec.chat_template
    if spec.pad_token:
        if spec.pad_token not in tokenizer.get_vocab():
            raise UserError(f"base {spec.name}: pad_token {spec.pad_token!r} is not in its vocabulary")
        tokenizer.pad_token = spec.pad_token
    add_tokens(tokenizer, spec)
    return tokenizer
