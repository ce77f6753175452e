"""GGUF files as bases: read once into a plain folder, whose numbers, tokens, template and stops are the file's.

A setting or a tensor of the file that is not understood is refused by name: a model that opens and computes something
else helps nobody.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.common.errors import UserError
from data.common.patience import patience, tell
from data.storage.file_hashes import sha256_of
from data.storage.folders import BASES, cache_root
from models.backbone.artifacts import naming
from models.backbone.tensor_files import readable
from models.hub.gguf_format import ROPE_FACTORS, in_halves, rope_factors
from models.hub.gguf_tokenizer import special_ids, stops_of, tokenizer_of_gguf

READ = ("llama", "qwen2", "qwen3")
"""llama.cpp's names of the families that can be read; Mistral's and many others are its llama."""
SHAPE = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""Settings by the file's names, and by Transformers'."""
UNDERSTOOD = {
    *SHAPE,
    *("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base", "vocab_size"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned"),
    "rope.scale_linear",
}
PROBES = (
    "It's 2 or 31 of 4096 foxes; WE'LL see!  Two blanks,\n\n new\tlines \u00e9t\u00e9 \u4f60\u597d :)\r\n",
    " def f(x):\n    return x**2 # \u0e01\u0e33 \u00bd \U0001f600 e\u0301",
)
"""Texts that ways of splitting differ in."""
LLAMA3 = tuple((factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0, 16.0, 4.0, 2.0))
"""Scalings of Llama 3.1 and 3.2, of which a file holds the result: factor, low, high, context before."""


def import_gguf(
    file: Path, to: Path, cast: torch.dtype | None = None, say: Callable[[str], None] = lambda _: None
) -> None:
    """Read a GGUF file into a plain folder of Transformers.

    Args:
        file: the file.
        to: the folder to make; it appears when it is whole, and one that is there is kept.
        cast: precision of the weights; None: the smallest that holds the file's numbers exactly.
        say: hears what was read.

    Raises:
        UserError: a family, a setting, a tensor or a tokenizer that cannot be read, or a damaged file.
    """
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with patience(f"reading {file}"), _readable(file):
            summary = _convert(file, partial, cast)
        with contextlib.suppress(OSError):  # another process was quicker
            partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(summary)


def folder_of_gguf(file: Path) -> Path:
    """The plain folder of a GGUF file in the cache, into which it is read where it is not there; by its contents.

    Raises:
        UserError: it cannot be read, or the cache cannot be written.
    """
    stamp = file.stat()
    to = cache_root(BASES) / f"{file.stem}-{_hash(file.resolve(), stamp.st_size, stamp.st_mtime_ns)[:16]}"
    if (to / "config.json").is_file():
        with contextlib.suppress(OSError):
            os.utime(to)  # it is used: `trivet gc --cache` counts the days from now
        return to
    try:
        import_gguf(file, to, say=lambda text: tell(f"{text}; kept in {to}"))
    except OSError as error:
        raise UserError(
            f"{to}: the base of {file} cannot be written ({error.strerror or error}); set TRIVET_CACHE to another "
            "folder, or read it into one of your own: trivet import"
        ) from error
    return to


@cache
def _hash(file: Path, size: int, time: int) -> str:
    """The hash of a file, read once in a process while its size and time stay."""
    del size, time
    with patience(f"hashing {file}"):
        return sha256_of(file)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Whatever a damaged file makes the libraries raise becomes one message that names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: cannot be read as a base: {error}") from error
    except (MemoryError, OSError):
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: is no readable GGUF file ({first})") from error


def _convert(file: Path, folder: Path, cast: torch.dtype | None) -> str:
    """Write weights, settings and tokenizer; what was read, in a sentence."""
    if find_spec("gguf") is None:
        raise UserError("it needs the gguf package: pip install 'trivet[gguf]'")
    import gguf
    from transformers import AutoModelForCausalLM, GenerationConfig

    reader = gguf.GGUFReader(file)
    fields = {name: _shortest(field.contents()) for name, field in reader.fields.items()}
    family = _family(fields)
    tensors = {one.name: one for one in reader.tensors}
    tokenizer = tokenizer_of_gguf(fields)
    shapes = {name: tuple(map(int, reversed(one.shape))) for name, one in tensors.items()}
    stored = tensors.pop(ROPE_FACTORS, None)
    factors = None if stored is None else torch.tensor(stored.data).float().flatten()
    config = config_of_gguf(fields, shapes, factors)
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    dtype = cast or _exact({one.tensor_type.name for one in reader.tensors if len(one.shape) > 1})
    state = _state(family, lm, tensors, dtype)
    lm.load_state_dict(state, strict=False, assign=True)  # tied output layers are not in it
    lm.tie_weights()
    special, stops = special_ids(fields), stops_of(fields)
    lm.generation_config = GenerationConfig(
        bos_token_id=special.get("bos"),
        eos_token_id=(stops[0] if len(stops) == 1 else stops) if stops else None,
        pad_token_id=special.get("padding"),
    )
    with naming(folder):
        lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if licence := fields.get("general.license"):
            (folder / "README.md").write_text(f"---\nlicense: {json.dumps(str(licence))}\n---\n", encoding="utf-8")
    _check_tokenizer(folder, tokenizer)
    readable(folder)
    kinds = ", ".join(sorted({one.tensor_type.name for one in reader.tensors if len(one.shape) > 1}))
    count = sum(p.numel() for p in lm.parameters())
    return f"read {file.name}: {family}, {count / 1e6:,.1f}M parameters in {kinds}, written as {str(dtype)[6:]}"


def _shortest(value: Any) -> Any:
    """A number of fp32 as people write it: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _check_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Refuse a tokenizer of which Transformers makes another one, by what it knows of the model's family.

    Raises:
        UserError: texts would be other tokens.
    """
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if any(opened(text)["input_ids"] != tokenizer(text)["input_ids"] for text in PROBES):
        raise UserError(
            "tokenizer.ggml.pre: Transformers splits text for models of this family otherwise, whatever their files say"
        )


def _family(fields: Mapping[str, Any]) -> str:
    """llama.cpp's name of the family.

    Raises:
        UserError: it cannot be read, or the file is one of several.
    """
    family = str(fields.get("general.architecture"))
    if family not in READ:
        raise UserError(f"its architecture is '{family}'; {', '.join(READ)} can be read")
    if (parts := fields.get("split.count", 1)) > 1:
        raise UserError(f"it is one of {parts} parts; join them first (llama.cpp's llama-gguf-split --merge)")
    if not fields.get(f"{family}.attention.causal", True):
        raise UserError(f"{family}.attention.causal: it is an encoder")
    names = (name.removeprefix(f"{family}.") for name in fields if name.startswith(f"{family}."))
    odd = [name for name in names if name not in UNDERSTOOD | {"attention.causal"} and fields[f"{family}.{name}"]]
    if odd:
        raise UserError(
            f"{family}.{odd[0]}: is a setting that is not known here ({fields[f'{family}.{odd[0]}']!r:.40})"
        )
    return family


def _exact(kinds: set[str]) -> torch.dtype:
    """The smallest precision that holds all numbers of these types."""
    if kinds <= {"F16"}:
        return torch.float16
    return torch.bfloat16 if kinds <= {"BF16"} else torch.float32


# -- settings ---------------------------------------------------------------------------------------------------------


def config_of_gguf(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: Tensor | None) -> Any:
    """The model's settings as Transformers has them.

    Args:
        fields: of the file, by their names.
        shapes: of its tensors.
        factors: what frequencies are divided by, (size of a head / 2,); None where the file does not scale them so.

    Raises:
        UserError: one is missing, or Transformers has no form for it.
    """
    from transformers import AutoConfig

    family = _family(fields)

    def of(name: str, default: Any = None) -> Any:
        return fields.get(f"{family}.{name}", default)

    settings = {ours: of(theirs) for theirs, ours in SHAPE.items()}
    settings["num_key_value_heads"] = settings["num_key_value_heads"] or settings["num_attention_heads"]
    if missing := [theirs for theirs, ours in SHAPE.items() if not isinstance(settings[ours], int | float)]:
        value = of(missing[0])
        raise UserError(f"{family}.{missing[0]}: {'is missing' if value is None else f'{value!r:.40} is no number'}")
    size = of("attention.key_length") or settings["hidden_size"] // settings["num_attention_heads"]
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if of(name, size) != size:
            raise UserError(f"{family}.{name}: {of(name)}, and a head has {size} numbers")
    if "token_embd.weight" not in shapes:
        raise UserError("it has no tensor 'token_embd.weight'")
    settings |= {
        "head_dim": size,
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "hidden_act": "silu",
        "rope_parameters": _rope(family, of, size, factors),
        "bos_token_id": special_ids(fields).get("bos"),
        "eos_token_id": next(iter(stops_of(fields)), None),
        "pad_token_id": special_ids(fields).get("padding"),
    }
    if family != "qwen2":  # which has them anyway
        settings["attention_bias"] = "blk.0.attn_q.bias" in shapes
    return AutoConfig.for_model(family, **settings)


def _rope(family: str, of: Callable[..., Any], size: int, factors: Tensor | None) -> dict[str, Any]:
    """How queries and keys are turned.

    Raises:
        UserError: scaled in a way that has no form here.
    """
    rope: dict[str, Any] = {"rope_theta": of("rope.freq_base", 10000.0), "rope_type": "default"}
    kind = of("rope.scaling.type", "linear")
    factor = 1.0 if kind == "none" else of("rope.scaling.factor") or of("rope.scale_linear") or 1.0
    if kind not in ("none", "linear"):
        raise UserError(f"{family}.rope.scaling.type: '{kind}' has no form here")
    if factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    if factors is None:
        return rope
    for scale, low, high, context in LLAMA3:
        expected = rope_factors(rope["rope_theta"], size, scale, low, high, context)
        if factor == 1.0 and factors.shape == expected.shape and torch.allclose(factors, expected, atol=0, rtol=1e-4):
            names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            return rope | {"rope_type": "llama3"} | dict(zip(names, (scale, low, high, context), strict=True))
    raise UserError(f"{ROPE_FACTORS}: scales frequencies otherwise than Llama 3.1 and 3.2 do")


# -- weights ----------------------------------------------------------------------------------------------------------


def _state(family: str, lm: Any, tensors: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the model, by its name there.

    Args:
        family: llama.cpp's name.
        lm: the model without weights.
        tensors: of the file, by their names; each goes as it is read.
        dtype: what they become.

    Raises:
        UserError: one is missing, or of another shape, or belongs nowhere, or is of a type that cannot be read.
    """
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], lm.config.num_hidden_layers)
    heads = {"q_proj": lm.config.num_attention_heads, "k_proj": lm.config.num_key_value_heads}
    state: dict[str, Tensor] = {}
    for name, p in lm.named_parameters():
        theirs = str(names.get_name(name, try_suffixes=(".weight", ".bias")))
        stored = tensors.pop(theirs, None)
        if stored is None:
            raise UserError(f"it has no tensor '{theirs}'")
        try:
            values = torch.tensor(gguf.quants.dequantize(stored.data, stored.tensor_type))
        except NotImplementedError:
            raise UserError(f"{theirs}: numbers of the type {stored.tensor_type.name} cannot be read") from None
        if values.shape != p.shape:
            raise UserError(f"{theirs}: is of the shape {tuple(values.shape)}, and should be {tuple(p.shape)}")
        if not bool(values.isfinite().all()):
            raise UserError(f"{theirs}: holds numbers that are not finite")
        count = heads.get(name.split(".")[-2]) if family == "llama" else None
        values = (values if count is None else in_halves(values, count)).to(dtype)
        if not bool(values.isfinite().all()):
            raise UserError(f"{theirs}: holds numbers too large for {str(dtype)[6:]}")
        state[name] = values.contiguous()
    if tensors:
        raise UserError(f"its tensor '{next(iter(tensors))}' belongs to nothing that '{family}' has here")
    return state
