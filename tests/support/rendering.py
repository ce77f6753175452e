"""Small tokenizers and conversations for what renders them."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data.records import Message

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ["user", "assistant", "system", ":", *"abcdef", "the", "cat", "sat", ".", ","]


def word_tokenizer(pad="<pad>", adds_bos=False, extra=(), **kwargs) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<bos>", "<eos>", "<unk>", *extra]
    vocab = {w: i for i, w in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=list(extra), **kwargs,
    )  # fmt: skip


def byte_tokenizer(merges=(), extra=(), **kwargs) -> PreTrainedTokenizerFast:
    """Bytes with the given merges, written as in GPT-2 (``Ġ`` is a blank, ``Ċ`` a line break)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate([*alphabet, *(a + b for a, b in merges), "<|end|>"])}
    inner = Tokenizer(models.BPE(vocab, list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=list(extra),
        **kwargs,
    )


def chat_tokenizer(template=CHATML) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(extra=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = template
    return tokenizer


def chat(*contents: str, system: str | None = None) -> list[Message]:
    roles = ["user", "assistant"] * len(contents)
    head = [Message(role="system", content=system)] if system is not None else []
    return head + [Message(role=r, content=c) for r, c in zip(roles, contents, strict=False)]  # type: ignore[arg-type]
