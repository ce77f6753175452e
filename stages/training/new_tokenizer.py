"""A tokenizer trained on the user's documents. The same documents give the same one, in every process.

The two trainers of the ``tokenizers`` library that do not promise that are not used as they are: WordPiece's gets ids
of single characters before it counts, so that ties between merges never hang on the order of a hash map, and unigram is
SentencePiece's (Kudo 2018, https://arxiv.org/abs/1804.10959), on one thread.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import regex
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data.common.errors import UserError
from data.common.patience import patience
from stages.settings import PretrainConfig

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
MASK = "<mask>"
SPECIAL = [PAD, BOS, EOS, UNKNOWN]

CONTINUES = "##"
"""What WordPiece writes before a token that continues a word."""
LONGEST_WORD = 100
"""Characters of a WordPiece word without its space: longer runs are several words."""
HAN = r"\p{Han}"
WORDS = (
    rf"{HAN}"
    rf"| ?[^\s\p{{P}}\p{{S}}{HAN}]{{1,{LONGEST_WORD}}}"
    r"| ?[\p{P}\p{S}]"
    rf"|\s{{1,{LONGEST_WORD}}}(?!\S)"
    r"|\s"
)
"""WordPiece's words, with the space before them; every character is in one. An ideograph is a word by itself, and so is
a mark of punctuation, as BERT has it: no word begins with ``##``."""
BYTES = 256
"""Tokens of single bytes that a unigram model has: ``<0x00>`` to ``<0xFF>``."""
ENDS = "\n\r\0"
"""Characters that unigram's tokens do not have in them."""
SENTENCE = 4000
"""Characters that SentencePiece is given at once; a longer line is given in several."""


def train_tokenizer(documents: Sequence[str], config: PretrainConfig) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind ``config.tokenizer`` with at most ``config.vocabulary`` tokens, special ones included.

    For masked language modelling it has a mask token, and puts ``<bos>`` and ``<eos>`` around a text by itself.

    Text comes back by ``decode``: from ``bpe`` and ``unigram`` all of it, from ``wordpiece`` all but words with a
    character that has no token (each is ``<unk>``), from ``characters`` in Unicode's form NFKC and without such
    characters, from ``words`` known words with one space between them.

    Raises:
        UserError: ``unigram`` without SentencePiece, or on documents from which that learns nothing.
    """
    special = [*SPECIAL, MASK] if config.objective == "masked" else SPECIAL
    with patience(f"training a tokenizer on {len(documents):,} documents"):
        tokenizer = _trained(documents, config.tokenizer, config.vocabulary, special)
    named = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": UNKNOWN}
    if config.objective == "masked":
        named |= {"mask_token": MASK, "cls_token": BOS, "sep_token": EOS}
        ends = [(token, special.index(token)) for token in (BOS, EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {EOS}", pair=f"{BOS} $A {EOS} $B {EOS}", special_tokens=ends
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def _trained(documents: Sequence[str], kind: str, vocabulary: int, special: Sequence[str]) -> Tokenizer:
    if kind == "wordpiece":
        return _wordpiece(documents, vocabulary, special)
    if kind == "unigram":
        return _unigram(documents, vocabulary, special)
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=max(vocabulary, len(special) + len(alphabet)),
            special_tokens=list(special),
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        if kind == "words":
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            tokenizer.normalizer = normalizers.NFKC()
            tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
            tokenizer.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _wordpiece(documents: Sequence[str], vocabulary: int, special: Sequence[str]) -> Tokenizer:
    """WordPiece: the most frequent neighbours are merged as in BPE, and words are read by their longest tokens.

    Each character has a token as a word's first and one as a later one, the most frequent characters first where the
    vocabulary does not hold all.
    """
    forms = _forms(_counts(documents), vocabulary - len(special))
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    training = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    training.pre_tokenizer = words
    # as special tokens they get their ids before anything is counted; no further characters are let in
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[*special, *forms], limit_alphabet=0, show_progress=False
    )
    training.train_from_iterator(documents, trainer)
    longest = LONGEST_WORD + 1  # with its space
    model = models.WordPiece(training.get_vocab(), unk_token=UNKNOWN, max_input_chars_per_word=longest)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex(rf"\A{CONTINUES}"), ""), decoders.Fuse()])
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _forms(counts: Counter[str], room: int) -> list[str]:
    """Tokens of single characters, in their order: as a word's first, and as a later one where there can be one."""
    first, later = list[str](), list[str]()
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        alone = regex.fullmatch(HAN, character) is not None
        room -= 1 if alone else 2
        if room < 0:
            break
        first.append(character)
        later += [] if alone else [CONTINUES + character]
    return [*sorted(first), *sorted(later)]


def _unigram(documents: Sequence[str], vocabulary: int, special: Sequence[str]) -> Tokenizer:
    """SentencePiece's unigram model: text as it is, spaces included; characters without a token are their bytes.

    Characters have up to half of the tokens, the most frequent first.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            "base.pretrain.tokenizer: unigram needs SentencePiece: pip install 'trivet[unigram]'"
        ) from error
    counts = _counts(documents)
    ranked = sorted(set(counts) - set(ENDS), key=lambda c: (-counts[c], c))
    left_out = ranked[(vocabulary - len(special) - BYTES) // 2 :]
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents, left_out),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocabulary,
            hard_vocab_limit=False,  # little text has fewer
            character_coverage=1.0,  # of what is left
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,
            num_threads=1,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=PAD,
            bos_piece=BOS,
            eos_piece=EOS,
            unk_piece=UNKNOWN,
            control_symbols=list(special[len(SPECIAL) :]),
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            "base.pretrain.tokenizer: unigram: SentencePiece learns nothing from data.documents "
            f"({' '.join(str(error).split())[:200]}): use 'bpe'"
        ) from error
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    found = [(model.id_to_piece(i).replace("\u2581", " "), model.get_score(i)) for i in range(len(model))]
    tokenizer = Tokenizer(models.Unigram(found, unk_id=special.index(UNKNOWN), byte_fallback=True))
    # a word has its space before it; text that is spelt like a token of one byte is no such token
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.Split(Regex("<(?=0x[0-9A-F]{2}>)"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _counts(documents: Sequence[str]) -> Counter[str]:
    """How often each character occurs."""
    counts = Counter[str]()
    for document in documents:
        counts.update(document)
    return counts


def _lines(documents: Sequence[str], left_out: Sequence[str]) -> Iterator[str]:
    """Lines of the documents, which tokens do not cross; characters that are left out end one as well."""
    ends = str.maketrans(dict.fromkeys([*left_out, *ENDS], "\n"))
    for document in documents:
        for line in document.translate(ends).split("\n"):
            for start in range(0, len(line), SENTENCE):
                yield line[start : start + SENTENCE]
