"""Tokenizers that are trained on documents: the same in every process, and text comes back from their ids."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from data.common.errors import UserError
from data.vocabulary import extended
from models.hub.load import load_tokenizer
from stages.settings import PretrainConfig
from stages.training.chunks import chunked
from stages.training.new_tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
KINDS = ["words", "bpe", "wordpiece", "unigram", "characters"]
ODD = [
    "  two  spaces ",
    "\n\ta\r\n  b\n\n",
    "don't stop! #hash ## ##a ### </s>",
    "naïve café Привет 你好 世界 ▁low <0x41> <0x4",
    "<0x41><0x0A>",
    "👩‍👩‍👧 ﬁ ① \u3000",
    "x" * 250,
    "a\0b",
]


def documents() -> list[str]:
    """The project's own pages: 90 documents of English prose, tables and code."""
    return [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").rglob("*.md"))]


def trained(kind: str, texts: Sequence[str], vocabulary: int = 1024) -> Any:
    if kind == "unigram":
        pytest.importorskip("sentencepiece", reason="SentencePiece is not installed: pip install 'trivet[unigram]'")
    return train_tokenizer(texts, PretrainConfig.model_validate({"tokenizer": kind, "vocabulary": vocabulary}))


def ids_of(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def digests() -> list[str]:
    """Of the file of each kind of tokenizer, trained on the same documents."""
    texts = documents()
    return [sha256(trained(kind, texts).backend_tokenizer.to_str().encode()).hexdigest() for kind in KINDS]


@pytest.mark.slow
def test_fresh_processes_train_the_same_bytes() -> None:
    """Hash maps are seeded by process: three of them, and this one, agree on every byte of each tokenizer's file."""
    mine = digests()
    code = "from tests.stages.test_new_tokenizer import digests; print(*digests())"
    for _ in range(3):
        there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True)
        assert there.stdout.split() == mine


def test_wordpiece_by_hand() -> None:
    """Words are "ab", " ab", " ab" and "abc": " "-a, a-b inside and a-b at first come twice each, b-c once.

    Of equally frequent pairs that with the lower ids is merged first. First characters have the ids 4 to 7, later ones
    8 to 11, so that it is " "-a, then a-b at first (5 before 12), then " a"-b, then ab-c.
    """
    tokenizer = trained("wordpiece", ["ab ab ab", "abc"], 99)
    order = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    assert order[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert order[4:12] == [" ", "a", "b", "c", "## ", "##a", "##b", "##c"]
    assert order[12:] == [" a", "ab", " ab", "abc"]
    assert [order[i] for i in ids_of(tokenizer, "abc abcb")] == ["abc", " ab", "##c", "##b"]
    assert tokenizer.decode(ids_of(tokenizer, "abc abcb")) == "abc abcb"


def test_wordpiece_keeps_the_most_frequent_characters_where_not_all_have_room() -> None:
    """4 special tokens and 12 more: 6 characters in two forms each; ideographs, which stand alone, have one form."""
    found = trained("wordpiece", ["aaaaa bbbb ccc dd e f g"], 16).get_vocab()
    assert set(found) - {"<pad>", "<bos>", "<eos>", "<unk>"} == {*" abcde", *(f"##{c}" for c in " abcde")}
    alone = trained("wordpiece", ["你你你好好世"], 16).get_vocab()
    assert {"你", "好", "世"} < set(alone) and "##你" not in alone and len(alone) == 7


def test_wordpiece_does_not_know_a_word_with_a_new_character_and_that_is_counted() -> None:
    tokenizer = trained("wordpiece", ["the cat sat"] * 3, 64)
    assert tokenizer.decode(ids_of(tokenizer, "the czt  sat")) == "the<unk>  sat"
    counts = chunked(tokenizer, ["the czt sat", "the cat", "Zzz"], 16)[1]
    assert counts.as_dict()["unknown_tokens"] == 2
    assert counts.summary().endswith(f"2 of {counts.tokens} tokens stand for text that the tokenizer does not know")
    known = chunked(tokenizer, ["the cat sat"], 16)[1]
    assert "unknown_tokens" not in known.as_dict() and not known.summary()


def test_a_sign_for_unknown_text_that_means_something_else_is_not_counted() -> None:
    tokenizer = trained("bpe", ["a b"], 260)
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2 has it
    assert chunked(tokenizer, ["a b"], 16)[1].unknown == 0


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_text_comes_back_from_a_saved_folder(kind: str, tmp_path: Path) -> None:
    """Held-out documents and odd ones, which for WordPiece are among those it was trained on."""
    texts = documents()
    held_out, rest = texts[::9], [t for i, t in enumerate(texts) if i % 9]
    mine = trained(kind, [*rest, *ODD, *sorted(set("".join(held_out)))])
    mine.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*held_out, *ODD]:
        assert ids_of(read, text) == ids_of(mine, text)
        assert read.decode(ids_of(read, text)) == text
    assert (read.pad_token, read.bos_token, read.eos_token, read.unk_token) == ("<pad>", "<bos>", "<eos>", "<unk>")
    assert [read.pad_token_id, read.bos_token_id, read.eos_token_id, read.unk_token_id] == [0, 1, 2, 3]
    whole = "".join(held_out)
    assert len(ids_of(read, whole)) < 0.5 * len(whole)  # it has learnt more than characters
    assert read.decode([read.bos_token_id, *ids_of(read, "a cat"), read.eos_token_id], skip_special_tokens=True) == (
        "a cat"
    )


def test_unigram_spells_what_it_never_saw_in_bytes() -> None:
    tokenizer = trained("unigram", documents())
    assert 3 not in [i for text in ODD for i in ids_of(tokenizer, text)]
    assert [tokenizer.decode(ids_of(tokenizer, text)) for text in ODD] == ODD
    bytes_of = [tokenizer.convert_ids_to_tokens(i) for i in ids_of(tokenizer, "好")]
    assert bytes_of == ["<0xE5>", "<0xA5>", "<0xBD>"]
    assert len(tokenizer) == 1024


def test_unigram_with_more_characters_than_room_keeps_half_for_longer_tokens() -> None:
    """Of 400 tokens 4 are special and 256 bytes; thousands of ideographs and letters have 70, longer tokens 70."""
    texts = [*documents(), "".join(map(chr, range(0x4E00, 0x5E00)))]
    tokenizer = trained("unigram", texts, 400)
    learnt = set(tokenizer.get_vocab()) - {"<pad>", "<bos>", "<eos>", "<unk>"} - {f"<0x{i:02X}>" for i in range(256)}
    assert len(learnt) == 140 and len([t for t in learnt if len(t) == 1]) == 70
    assert tokenizer.decode(ids_of(tokenizer, texts[-1])) == texts[-1]


def test_unigram_without_text_says_so() -> None:
    with pytest.raises(UserError, match=r"base\.pretrain\.tokenizer: unigram: SentencePiece learns nothing"):
        trained("unigram", ["", "\n"])


def test_unigram_needs_sentencepiece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"unigram needs SentencePiece: pip install 'trivet\[unigram\]'"):
        train_tokenizer(["a"], PretrainConfig(tokenizer="unigram"))


def test_unigram_with_too_few_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 260 tokens before it learns any .* vocabulary is 299: raise it to 300"):
        PretrainConfig(tokenizer="unigram", vocabulary=299)


@pytest.mark.parametrize(("kind", "name"), [("wordpiece", "WordPiece"), ("unigram", "Unigram")])
def test_neither_takes_further_tokens(kind: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"continued\.added_vocabulary: .*of the kind {name}, which takes no further"):
        extended(trained(kind, documents()), ["electrophoresis"] * 9, 3, load_tokenizer)
