"""Tokens that are added to a tokenizer: which merges are learnt, and that nothing of before moves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data.common.errors import UserError
from data.vocabulary import extended, learn_merges, words_of
from models.hub.load import load_tokenizer
from stages.pretrain import train_tokenizer
from stages.settings import PretrainConfig
from tests.conftest import word_tokenizer

OLD = ["the cat sat on the mat and the dog sat on the log"] * 4
NEW = ["electrophoresis of proteins", "protein electrophoresis", "electrophoresis gels"] * 5


def wrapped(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level(vocabulary: int = 270) -> Any:
    return train_tokenizer(OLD, PretrainConfig(tokenizer="bpe", vocabulary=vocabulary))


def with_spaces() -> Any:
    """As SentencePiece does it: no first cut into words, spaces as a letter of their own, bytes for the rest."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = sorted(set("▁" + "".join(OLD + NEW).replace(" ", "")))
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=4 + 256 + len(letters) + 3, special_tokens=["<unk>", "<s>", "</s>", "<pad>", *byte_tokens],
        initial_alphabet=letters, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(OLD, trainer)
    return wrapped(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def test_merges_by_hand() -> None:
    """Pairs of (l,o,w) x 5, (l,o,w,e,r) x 2 and (n,e,w) x 6: l-o 7, o-w 7, n-e 6, e-w 6, w-e 2, e-r 2.

    l-o comes first; then lo-w 7; n-e before e-w 6 (the order of characters decides at e-w: "e" < "n"), which leaves
    n-ew 6; low-e and e-r have 2 each.
    """
    words = {("l", "o", "w"): 5, ("l", "o", "w", "e", "r"): 2, ("n", "e", "w"): 6}
    found = learn_merges(words, 4)
    assert found.merges == (("l", "o"), ("lo", "w"), ("e", "w"), ("n", "ew"))
    assert found.parts == {"lo": ("l", "o"), "low": ("l", "o", "w"), "ew": ("e", "w"), "new": ("n", "e", "w")}
    more = learn_merges(words, 99)
    assert more.merges[4:] == (("e", "r"), ("low", "er")) and len(more.parts) == 6
    backwards = dict(reversed(words.items()))
    assert learn_merges(backwards, 99) == more


def test_a_token_that_is_there_is_merged_but_not_new() -> None:
    found = learn_merges({("a", "b", "c"): 3}, 1, known=["ab"])
    assert found.merges == (("a", "b"), ("ab", "c")) and found.parts == {"abc": ("ab", "c")}


def test_a_pair_that_occurs_once_is_not_merged_and_repeats_are_counted_from_the_left() -> None:
    assert learn_merges({("a", "b"): 1}, 5).merges == ()
    found = learn_merges({("a", "a", "a"): 2}, 5)
    assert found.merges == (("a", "a"), ("aa", "a"))


@pytest.mark.parametrize("make", [byte_level, with_spaces])
def test_new_tokens_shorten_new_texts_and_leave_old_ids_alone(make: Any) -> None:
    tokenizer = make()
    before = dict(tokenizer.get_vocab())
    made, learnt = extended(tokenizer, NEW, 20, load_tokenizer)
    after = made.get_vocab()
    assert tokenizer.get_vocab() == before  # the one that was given
    assert {t: i for t, i in after.items() if t in before} == before
    new = sorted((i, t) for t, i in after.items() if t not in before)
    assert [i for i, _ in new] == list(range(max(before.values()) + 1, max(before.values()) + 1 + len(new)))
    assert [t for _, t in new] == list(learnt.parts) and len(new) == 20
    for text in NEW:
        ids = made(text, add_special_tokens=False)["input_ids"]
        assert len(ids) < len(tokenizer(text, add_special_tokens=False)["input_ids"]) and max(ids) > max(
            before.values()
        )
        assert made.decode(ids) == text
    word = next(t for t in reversed(list(learnt.parts)) if "electro" in t)
    assert "".join(learnt.parts[word]) == word and set(learnt.parts[word]) <= set(before)
    assert not any(" " in t.strip("▁Ġ") or "▁" in t[1:] or "Ġ" in t[1:] for t in learnt.parts)  # none spans two words
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id,
    )  # fmt: skip


def test_each_new_token_is_what_its_text_becomes() -> None:
    """The model itself applies the merges that were learnt: a token's own text is that one token."""
    tokenizer = byte_level()
    made, learnt = extended(tokenizer, NEW, 12, load_tokenizer)
    model = made.backend_tokenizer.model
    assert all([t.value for t in model.tokenize(token)] == [token] for token in learnt.parts)


def test_whole_words_that_are_unknown_become_tokens() -> None:
    tokenizer = word_tokenizer()
    made, learnt = extended(tokenizer, ["w1 new other", "w2 new other", "new once"], 5, load_tokenizer)
    assert list(learnt.parts) == ["new", "other"] and learnt.parts["new"] == ("<unk>",)
    assert made("w1 new", add_special_tokens=False)["input_ids"] == [tokenizer.get_vocab()["w1"], len(tokenizer)]


def test_tokens_added_by_hand_keep_their_ids() -> None:
    """New ids come behind them, and the library has no hole to warn of."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tool = tokenizer.convert_tokens_to_ids("<|tool|>")
    made, learnt = extended(tokenizer, NEW, 3, load_tokenizer)
    assert made.convert_tokens_to_ids("<|tool|>") == tool == len(tokenizer) - 1
    assert sorted(made.get_vocab()[t] for t in learnt.parts) == [tool + 1, tool + 2, tool + 3]
    assert made("<|tool|> gels", add_special_tokens=False)["input_ids"][0] == tool


def test_words_are_those_of_the_tokenizer() -> None:
    """Each word comes as often as it occurs, as old tokens; unknown text and bytes stay out."""
    found = words_of(word_tokenizer(), ["w1 w1 new", "w2"])
    assert found == Counter({("w1",): 2, ("w2",): 1})
    words = words_of(with_spaces(), ["cat cat", "Ж"])
    assert {"".join(word): n for word, n in words.items()} == {"▁cat": 2}  # "▁Ж" ends in bytes


def unigram() -> Any:
    return wrapped(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)), unk_token="<unk>")


def wordpiece() -> Any:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(tokenizer, unk_token="[UNK]")


@pytest.mark.parametrize(("make", "kind"), [(unigram, "Unigram"), (wordpiece, "WordPiece")])
def test_other_kinds_are_refused_by_name(make: Any, kind: str) -> None:
    with pytest.raises(UserError, match=rf"continued\.added_vocabulary: .*of the kind {kind}, which takes no further"):
        extended(make(), NEW, 3, load_tokenizer)
