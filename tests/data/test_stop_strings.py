"""Stop strings: found by bytes across the borders of tokens; what of a response they leave, and how it is scored."""

from __future__ import annotations

import random

import pytest

from data.common.errors import UserError
from data.stop_strings import MAX_BYTES, StopStrings
from data.template import Renderer
from tests.support.rendering import byte_tokenizer, chat, chat_tokenizer, word_tokenizer

# a line break with the U that follows, and "r:" with the blank behind it: no token begins or ends where "User:" does
MERGES = [("Ċ", "U"), ("s", "e"), ("r", ":"), ("r:", "Ġ")]
STOP = "\nUser:"


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_string_begins_inside_one_token_and_ends_inside_another() -> None:
    tokenizer = byte_tokenizer(MERGES)
    ids = ids_of(tokenizer, "ok\nUser: hi")
    assert tokenizer.convert_ids_to_tokens(ids) == ["o", "k", "ĊU", "se", "r:Ġ", "h", "i"]
    for text, end in ((STOP, 4), ("User:", 4), ("Use", 3), ("k\nU", 2), ("\n", 2), ("hi", 6), ("hu", None)):
        assert StopStrings(tokenizer, [text]).end(ids) == end
    both = StopStrings(tokenizer, ["hi", "User:"])
    assert (both.end(ids), both.text_before(ids[:5]), both.tokens_before(ids[:5])) == (4, "ok\n", 2)


def test_a_beginning_that_fails_may_hold_the_real_one() -> None:
    """``aab`` in ``aaab``, and one string inside a longer one that does not come true."""
    tokenizer = byte_tokenizer()
    assert StopStrings(tokenizer, ["aab"]).end(ids_of(tokenizer, "aaab")) == 3
    assert StopStrings(tokenizer, ["abcd", "bc"]).end(ids_of(tokenizer, "abce")) == 2


def test_a_character_of_several_tokens_is_whole_with_its_last_byte() -> None:
    tokenizer = byte_tokenizer([("ç", "Ķ")])
    ids = ids_of(tokenizer, "é用户:")
    assert len(ids) == 2 + 2 + 3 + 1
    stops = StopStrings(tokenizer, ["用户"])
    assert (stops.end(ids), stops.text_before(ids), stops.tokens_before(ids)) == (6, "é", 2)
    assert stops.end(ids[:6]) is None


def test_words_are_texts_with_the_blanks_between_them() -> None:
    tokenizer = word_tokenizer()
    ids = ids_of(tokenizer, "the cat user : a")
    assert StopStrings(tokenizer, ["user :"]).end(ids) == 3
    assert StopStrings(tokenizer, ["t u"]).end(ids) == 2
    with pytest.raises(UserError, match="no tokens of this tokenizer make up 'user:'"):
        StopStrings(tokenizer, ["user:"])


def test_every_response_ends_where_its_bytes_say() -> None:
    tokenizer, chance = byte_tokenizer(MERGES), random.Random(0)
    stops = StopStrings(tokenizer, [STOP, "ser", "rr", "用户"])
    likely = ids_of(tokenizer, "\nUser: serr rr用户用se")
    ended = 0
    for _ in range(2000):
        ids = chance.choices(likely, k=chance.randint(1, 16))
        whole = [b"".join(stops._word(i) for i in ids[: n + 1]) for n in range(len(ids))]
        expected = next((n for n, text in enumerate(whole) if any(s.encode() in text for s in stops.texts)), None)
        assert stops.end(ids) == expected
        ended += expected is not None
    assert 200 < ended < 1990


def test_a_special_token_counts_with_its_text() -> None:
    tokenizer = chat_tokenizer()
    ids = ids_of(tokenizer, "ok<|im_start|>user")
    stops = StopStrings(tokenizer, ["<|im_start|>"])
    assert stops.end(ids) == 2 and stops.text_before(ids) == "ok"
    across = StopStrings(tokenizer, ["|>us"])
    assert across.end(ids) == 4 and across.text_before(ids) == "ok"  # special tokens are no text of a response


def test_what_may_become_a_string_is_not_shown_yet() -> None:
    stops = StopStrings(byte_tokenizer(), [STOP, "##"])
    for text, ready in (("ok", "ok"), ("ok\n", "ok"), ("ok\nUse", "ok"), ("ok\nUsx", "ok\nUsx"), ("a#", "a")):
        assert stops.settled(text) == ready


def test_what_cannot_be_searched_for_is_refused() -> None:
    with pytest.raises(UserError, match="empty string"):
        StopStrings(byte_tokenizer(), [""])
    with pytest.raises(UserError, match=f"of {MAX_BYTES} that"):
        StopStrings(byte_tokenizer(), ["a" * (MAX_BYTES + 1)])


def test_the_text_ends_before_the_string_and_training_closes_it_with_the_stop_token() -> None:
    tokenizer = byte_tokenizer(MERGES)
    render = Renderer(tokenizer, template="dialogue", stop_strings=[STOP])
    ids = ids_of(tokenizer, "ok\nUser: ")
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == "r:Ġ"  # goes on behind the string
    assert (render.text(ids), render.ended(ids), render.body_length(ids)) == ("ok", True, 2)
    asked = chat("a")
    assert render.closed(asked, ids) == render.answer_ids(asked, "ok") and render.stop_ids[0] not in ids
    cut = ids[:-1]
    assert (render.ended(cut), render.text(cut), render.closed(asked, cut)) == (False, "ok\nUse", cut)
    by_token = [*ids[:2], render.stop_ids[0]]
    assert render.ended(by_token) and render.closed(asked, by_token) == by_token and render.body_length(by_token) == 2


def test_strings_change_the_fingerprint_and_nothing_that_is_rendered() -> None:
    tokenizer = byte_tokenizer()
    plain, more = Renderer(tokenizer, template="dialogue"), Renderer(tokenizer, template="dialogue", stop_strings=["b"])
    assert plain.fingerprint() != more.fingerprint()
    assert plain.answer_ids(chat("a"), "abc") == more.answer_ids(chat("a"), "abc")
    assert more.text(more.answer_ids(chat("a"), "abc")) == "abc"  # it was written, not sampled
