"""The tokenizer of a GGUF file as Transformers has it: vocabulary, splitting of text, special tokens and template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from data.common.errors import UserError
from models.hub.gguf_format import BYTE, CONTROL, SAME_SPLITS, SPLITS, UNKNOWN, UNUSED, USER_DEFINED

NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
"""Special tokens as the file calls them, and as Transformers does."""
DEFAULTS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}}
"""Ids that llama.cpp takes where a file with such a vocabulary names none."""
STOPS = ("eos", "eot", "eom")


def tokenizer_of_gguf(fields: Mapping[str, Any]) -> Any:
    """A fast tokenizer.

    Args:
        fields: of the file, by their names.

    Raises:
        UserError: a vocabulary or a way of splitting text that is not known here.
    """
    kind, kinds = fields.get("tokenizer.ggml.model"), list(fields.get("tokenizer.ggml.token_type") or ())
    tokens = list(fields.get("tokenizer.ggml.tokens") or ())
    if not tokens or len(kinds) != len(tokens):
        raise UserError("it names no tokens, or not the kind of each of them")
    if kind == "gpt2":
        made = _byte_level(fields, tokens, kinds)
    elif kind == "llama":
        made = _sentencepiece(fields, tokens, kinds)
    else:
        raise UserError(
            f"its vocabulary is of the kind '{kind}'; gpt2 (byte-level pairs) and llama (SentencePiece) can be read"
        )
    for i, (text, which) in enumerate(zip(tokens, kinds, strict=True)):
        if which in (CONTROL, UNKNOWN, USER_DEFINED):
            _add(made, AddedToken(text, special=which != USER_DEFINED, normalized=False), i)
    special = special_ids(fields)
    if wrong := next((name for name, i in special.items() if not 0 <= i < len(tokens)), None):
        raise UserError(f"tokenizer.ggml.{wrong}_token_id: {special[wrong]} is beyond its {len(tokens)} tokens")
    made.post_processor = _ends(fields, tokens, special)
    named = {ours: tokens[special[theirs]] for theirs, ours in NAMES.items() if theirs in special}
    template = fields.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        clean_up_tokenization_spaces=False,
        **named,
        **({"chat_template": template} if template else {}),
    )


def special_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """Ids of special tokens by the file's names: bos, eos, eot, eom, unknown, padding."""
    found = dict(DEFAULTS.get(fields["tokenizer.ggml.model"], {}))
    for name in (*NAMES, *STOPS):
        value = fields.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(value, int):
            found[name] = value
    return found


def stops_of(fields: Mapping[str, Any]) -> list[int]:
    """Ids that end a response."""
    special = special_ids(fields)
    return list(dict.fromkeys(special[name] for name in STOPS if name in special))


def _add(made: Tokenizer, token: AddedToken, i: int) -> None:
    """Make a token of the vocabulary one that is found in texts before they are split."""
    (made.add_special_tokens if token.special else made.add_tokens)([token])
    if made.token_to_id(token.content) != i:
        raise UserError(f"its token {token.content!r} stands in the vocabulary twice")


def _vocabulary(tokens: Sequence[str], kinds: Sequence[int]) -> dict[str, int]:
    return {text: i for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}


def _byte_level(fields: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    """Byte-level pairs, whose text is split first by one of the ways that llama.cpp has names for."""
    pre = fields.get("tokenizer.ggml.pre")
    split = SAME_SPLITS.get(str(pre), pre)
    merges = [tuple(pair.split(" ", 1)) for pair in fields.get("tokenizer.ggml.merges") or ()]
    made = Tokenizer(models.BPE(_vocabulary(tokens, kinds), merges, ignore_merges=split == "llama-bpe"))  # type: ignore[arg-type]
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == "gpt-2":
        made.pre_tokenizer = plain
    elif split == "smollm":
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    elif split in SPLITS.values():
        pattern = next(regex for regex, name in SPLITS.items() if name == split)
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), whole])
    else:
        known = ", ".join(sorted({"gpt-2", "smollm", *SPLITS.values(), *SAME_SPLITS}))
        raise UserError(f"its text is split by '{pre}' (tokenizer.ggml.pre), which is not known here; {known} are")
    if split == "qwen2":
        made.normalizer = normalizers.NFC()  # as Qwen's own tokenizers have it
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(fields: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    """SentencePiece's pairs with bytes for what has no token. Which pairs are joined, and in which order, is what the
    scores of the tokens say, as Transformers makes it of SentencePiece's own files."""
    scores = fields.get("tokenizer.ggml.scores") or ()
    if len(scores) != len(tokens):
        raise UserError("its SentencePiece vocabulary has no scores (tokenizer.ggml.scores)")
    if sum(kind == BYTE for kind in kinds) < 256:
        raise UserError("its SentencePiece vocabulary lacks tokens for bytes")
    own = _vocabulary(tokens, kinds)
    unknown = tokens[special_ids(fields)["unknown"]]
    aside = {text for text, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, UNKNOWN, BYTE, UNUSED)}
    merges = generate_merges(own, {text: scores[i] for text, i in own.items()}, skip_tokens=aside)
    made = Tokenizer(models.BPE(own, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    blanks = normalizers.Replace(" ", "\u2581")
    made.normalizer = normalizers.Sequence([*([normalizers.Prepend("\u2581")] if prefix else []), blanks])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return made


def _ends(fields: Mapping[str, Any], tokens: Sequence[str], special: Mapping[str, int]) -> Any:
    """What is put before and behind a text that is no conversation: the file's own flags, or llama.cpp's defaults."""
    pre = SAME_SPLITS.get(str(fields.get("tokenizer.ggml.pre")), fields.get("tokenizer.ggml.pre"))
    first = fields.get("tokenizer.ggml.model") == "llama" or pre == "llama-bpe"
    before = fields.get("tokenizer.ggml.add_bos_token", first) and "bos" in special
    behind = fields.get("tokenizer.ggml.add_eos_token", False) and "eos" in special
    bos, eos = (tokens[special[name]] if wanted else "" for name, wanted in (("bos", before), ("eos", behind)))
    ids = [(text, special[name]) for text, name in ((bos, "bos"), (eos, "eos")) if text]
    if not ids:
        return processors.Sequence([])
    single = [part for part in (bos, "$A", eos) if part]
    pair = [part for part in (bos, "$A", eos, bos and f"{bos}:1", "$B:1", eos and f"{eos}:1") if part]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
