"""A model as a GGUF file for llama.cpp and what stands on it (Ollama, LM Studio), written by the ``gguf`` package.

Families are those whose tensors llama.cpp reads as Transformers names them, tokenizers those whose splitting of text it
knows by a name; everything else is refused by name, since a file that opens and says something else helps nobody.
The format is that of the GGUF specification (github.com/ggml-org/ggml).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.common.errors import UserError, nearest
from models.backbone.artifacts import naming
from models.hub.gguf_format import (
    BYTE,
    CONTROL,
    FAMILIES,
    NORMAL,
    ROPE_FACTORS,
    SPLITS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Family,
    neighbouring,
    rope_factors,
)

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
QUANTISED = TYPES[3:]
"""Types of whole numbers with a scale for each block of 32."""
BLOCK = 32


def write_gguf(lm: Any, tokenizer: Any, file: Path, *, kind: str, name: str, stops: Sequence[int]) -> list[str]:
    """Write a causal model, without adapters, with its tokenizer and template.

    Args:
        lm: the model, at least fp32.
        tokenizer: its own, with the template that the file is to have.
        file: where to.
        kind: one of ``TYPES``: of the matrices; vectors stay fp32, and embeddings and output layer have eight bits
            where the others have four or five.
        name: what the file calls the model.
        stops: ids that end a response.

    Returns:
        Names of matrices that are in fp16 instead, since their rows are no multiple of a block.

    Raises:
        UserError: a family, a setting or a tokenizer that llama.cpp does not have.
        ImportError: there is no ``gguf``; ``check_gguf`` says so in a sentence.
    """
    import gguf

    family, config = family_of(lm.config), lm.config
    words = vocabulary(tokenizer, lm.get_input_embeddings().weight.shape[0])
    writer = gguf.GGUFWriter(file, family.name)
    writer.add_name(name)
    _add_shape(writer, config, getattr(gguf.LlamaFileType, _FILE_TYPES[kind]))
    _add_vocabulary(writer, words, tokenizer, stops)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.name.upper()], config.num_hidden_layers)
    if (config.rope_parameters or {}).get("rope_type") == "llama3":
        writer.add_tensor(ROPE_FACTORS, _factors(config).numpy())
    whole = []
    for tensor, values in _tensors(lm, family):
        found = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"--gguf: llama.cpp's '{family.name}' has no tensor '{tensor}'")
        if _add_tensor(writer, gguf, found, values, kind):
            whole.append(found)
    with naming(file):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return whole


_FILE_TYPES = {"f32": "ALL_F32"} | {kind: f"MOSTLY_{kind.upper()}" for kind in TYPES[1:]}


def check_gguf(config: Any, tokenizer: Any, kind: str) -> None:
    """Refuse early what ``write_gguf`` would refuse.

    Raises:
        UserError: see there.
    """
    if kind not in TYPES:
        raise UserError(f"--gguf {kind}: one of {', '.join(TYPES)}.{nearest(kind, TYPES)}")
    if find_spec("gguf") is None:
        raise UserError("--gguf: needs the gguf package: pip install 'trivet[gguf]'")
    family_of(config)
    vocabulary(tokenizer, max(len(tokenizer), config.vocab_size))


# -- Ollama ----------------------------------------------------------------------------------------------------------


def modelfile(file: str, render: Callable[[Sequence[Mapping[str, str]]], str], stops: Sequence[str]) -> str:
    """Ollama's description of a model: its file, the run's template in Ollama's form, the run's stops and sampling.

    Args:
        file: the GGUF file beside it.
        render: the text of a conversation, up to where a response begins.
        stops: texts that end a response.
    """
    asked, system = "\x02asked\x02", "\x02system\x02"
    before, _, after = render([{"role": "user", "content": asked}]).partition(asked)
    template = f"{before}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}"
    try:
        both = render([{"role": "system", "content": system}, {"role": "user", "content": asked}])
    except UserError:  # a template without a system message
        both = ""
    first, found, rest = both.partition(system)
    if found and asked in rest:
        between = rest.partition(asked)[0]
        opening = f"{{{{ if .System }}}}{first}{{{{ .System }}}}{between}{{{{ else }}}}{before}{{{{ end }}}}"
        template = f"{opening}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}"
    lines = [f"FROM ./{file}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops if stop]
    lines += ["PARAMETER temperature 1", "PARAMETER top_k 0", "PARAMETER top_p 1", "PARAMETER repeat_penalty 1"]
    return "\n".join(lines) + "\n"


# -- the model -------------------------------------------------------------------------------------------------------


def family_of(config: Any) -> Family:
    """llama.cpp's family of a model.

    Raises:
        UserError: it has none here, or the model has something that it computes otherwise.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise UserError(f"--gguf: '{kind}' cannot be written; {', '.join(FAMILIES)} can")
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    odd = {
        "hidden_act": config.hidden_act != "silu",
        "rope_parameters": rope.get("rope_type", "default")
        not in ("default", *(["llama3"] if FAMILIES[kind].name == "llama" else [])),
        "sliding_window": window is not None and window < config.max_position_embeddings,
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0) != 1.0,
    }
    if found := [key for key, is_odd in odd.items() if is_odd]:
        raise UserError(f"--gguf: config.json: {found[0]}: llama.cpp computes this '{kind}' otherwise")
    return FAMILIES[kind]


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_shape(writer: Any, config: Any, file_type: int) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_file_type(file_type)


def _factors(config: Any) -> Tensor:
    """What llama.cpp divides the frequencies by, where they are scaled as Llama 3.1's are: (size of a head / 2,)."""
    rope = config.rope_parameters
    return rope_factors(
        rope["rope_theta"],
        _head_size(config),
        rope["factor"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )


def _tensors(lm: Any, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Every tensor once; an output layer that is the embeddings is not written, as llama.cpp has it."""
    config, tied = lm.config, lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, p in lm.named_parameters():
        if tied and name == "lm_head.weight":
            continue
        count = heads.get(name.split(".")[-2]) if family.neighbours else None
        values = p.detach().float().cpu()
        yield name, values if count is None else neighbouring(values, count)


ENDS = ("token_embd.weight", "output.weight")  # what every token goes through; llama.cpp's own files spare them too


def _add_tensor(writer: Any, gguf: Any, name: str, values: Tensor, kind: str) -> bool:
    """Add a tensor; whether it is in fp16 since its rows are no multiple of a block."""
    types = gguf.GGMLQuantizationType
    named = "q8_0" if kind in QUANTISED and name in ENDS else kind
    own = types.F32 if values.dim() == 1 or kind == "f32" else types[named.upper()]
    odd = values.dim() > 1 and kind in QUANTISED and values.shape[-1] % BLOCK > 0
    if odd:
        own = types.F16
    if own in (types.F32, types.F16):
        writer.add_tensor(name, values.to(torch.float32 if own == types.F32 else torch.float16).numpy())
        return odd
    writer.add_tensor(name, gguf.quants.quantize(values.numpy(), own), raw_dtype=own)
    return odd


# -- the tokenizer ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A vocabulary as llama.cpp keeps it: ``model`` "gpt2" (byte-level pairs) or "llama" (SentencePiece)."""

    model: str
    split: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()


def vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """A fast tokenizer's vocabulary, filled up to the ``rows`` of the embeddings.

    Raises:
        UserError: it splits or joins text as llama.cpp does not.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("--gguf: the tokenizer has no tokenizer.json, which llama.cpp's form is made from")
    raw = json.loads(backend.to_str())
    if raw["model"]["type"] != "BPE":
        raise UserError(f"--gguf: llama.cpp has no form for a tokenizer of kind '{raw['model']['type']}' here")
    own: Mapping[str, int] = raw["model"]["vocab"]
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    unknown = raw["model"].get("unk_token")
    for text, i in own.items():
        tokens[i], kinds[i] = text, BYTE if _is_byte(text) and raw["model"].get("byte_fallback") else NORMAL
    for added in raw["added_tokens"]:
        control = CONTROL if added["special"] else USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], UNKNOWN if added["content"] == unknown else control
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in raw["model"]["merges"]]
    if _is_sentencepiece(raw):
        if (found := sum(kind == BYTE for kind in kinds)) < 256:
            raise UserError(
                f"--gguf: the tokenizer has tokens for {found} of 256 bytes, and llama.cpp needs all of them"
            )
        _check_joins(own, {left + right for left, right in pairs})
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(pairs):
            ranks.setdefault(left + right, rank)
        scores = [-float(ranks.get(token, len(pairs))) for token in tokens]
        return Vocabulary(model="llama", split="default", tokens=tokens, kinds=kinds, scores=scores)
    split = _split_of(raw)
    return Vocabulary(model="gpt2", split=split, tokens=tokens, kinds=kinds, merges=[" ".join(p) for p in pairs])


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _is_sentencepiece(raw: Mapping[str, Any]) -> bool:
    """Blanks as U+2581, one before all texts between special tokens, and bytes for what has no token: Llama 2's way.

    One before the first of them alone is another way, in which llama.cpp would split what follows a special token
    otherwise.
    """
    normal, before = raw.get("normalizer") or {}, raw.get("pre_tokenizer") or {}
    steps = [step.get("type") for step in normal.get("normalizers", ())]
    by_normalizer = steps == ["Prepend", "Replace"] and not before
    whole = before.get("type") == "Metaspace" and not before.get("split", True)
    by_split = not normal and whole and before.get("prepend_scheme") == "always"
    return bool(raw["model"].get("byte_fallback")) and (by_normalizer or by_split)


def _check_joins(own: Mapping[str, int], joined: set[str]) -> None:
    """Refuse a vocabulary in which llama.cpp, which joins whatever makes a token, would join what no merge does.

    Raises:
        UserError: names the token.
    """
    for token in own:
        parts = ((token[:i], token[i:]) for i in range(1, len(token)))
        if token not in joined and not _is_byte(token) and any(a in own and b in own for a, b in parts):
            raise UserError(
                f"--gguf: llama.cpp would join neighbours to the token {token!r}, and the tokenizer does not"
            )


def _split_of(raw: Mapping[str, Any]) -> str:
    """llama.cpp's name of the way in which a byte-level tokenizer splits text.

    Raises:
        UserError: it has none.
    """
    before, normal = raw.get("pre_tokenizer") or {}, (raw.get("normalizer") or {}).get("type")
    steps = before.get("pretokenizers", [before])
    last = steps[-1] if steps else {}
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space", True)
    kinds = [step.get("type") for step in steps]
    if plain and kinds == ["ByteLevel"] and normal is None:
        return "gpt-2"
    if plain and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and normal is None:
        return "smollm"
    if plain and kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        found = SPLITS.get(str((steps[0].get("pattern") or {}).get("Regex")))
        if found is not None and normal == ("NFC" if found == "qwen2" else None):
            return found
    raise UserError(
        f"--gguf: llama.cpp has no name for how this tokenizer splits text ({' and '.join(map(str, kinds))}"
        f"{f' behind {normal}' if normal else ''}); byte-level ones of GPT-2, SmolLM, Qwen 2 and Llama 3 and "
        "SentencePiece's of Llama 2 can be written"
    )


def _add_vocabulary(writer: Any, words: Vocabulary, tokenizer: Any, stops: Sequence[int]) -> None:
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.split)
    writer.add_token_list(list(words.tokens))
    writer.add_token_types(list(words.kinds))
    if words.merges:
        writer.add_token_merges(list(words.merges))
    if words.scores:
        writer.add_token_scores(list(words.scores))
        writer.add_add_space_prefix(True)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(
        tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    )
    writer.add_eos_token_id(stops[0])
    if len(stops) > 1:
        writer.add_eot_token_id(stops[1])
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
