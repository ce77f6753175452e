"""Cleaning changes what it is asked to, leaves what means something, and counts both."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.cleaning import rows as cleaning_rows
from data.cleaning.markup import without_markup
from data.cleaning.masks import masked
from data.cleaning.rows import RowCleaner, Tally
from data.cleaning.settings import CleanConfig
from data.cleaning.texts import TextCleaner, without_invisible
from data.common.errors import UserError
from data.formats import parse
from data.source_settings import DataConfig
from data.splits import load_corpus


def clean(text: str, **settings: Any) -> str:
    return TextCleaner(CleanConfig(**settings))(text)[0]


def test_each_step_does_what_it_says():
    assert clean("cafÃ©", mojibake=True) == "café" == clean("cafe\u0301", unicode="nfc")
    assert clean("ﬁＡ２", unicode="nfc") == "ﬁＡ２" and clean("ﬁＡ２", unicode="nfkc") == "fiA2"
    assert clean("\x1b[31mre\x00d\x1b[0m\r\nx\u200by\ufeff\u2028z", control=True) == "red\nxy\nz"
    assert clean("a\x00b") == "a\x00b", "nothing is done that is not asked for"


MEANT = {
    "Persian": "می\u200cخواهم",
    "Hindi": "क्\u200dष",
    "family": "👩\u200d👩\u200d👧 👩🏽\u200d🚀 ❤️\u200d🔥",
    "flag": "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "right to left": "abc \u200fשלום\u200e!",
    "tabs and lines": "a\tb\nc",
    "Korean": "각",
}


@pytest.mark.parametrize("text", MEANT.values(), ids=MEANT)
def test_characters_that_mean_something_stay(text):
    assert without_invisible(text) == text


@pytest.mark.parametrize(
    "text", ["a\u200db", "a\u200cb", "a\u00adb", "a\u202eb", "a\U000e0062b", "a\udc80b", "a\ufffeb"]
)
def test_characters_that_mean_nothing_go(text):
    assert without_invisible(text) == "ab"


def test_markup_goes_and_code_stays():
    page = "<p>One <b>two</b></p><ul><li>three</li></ul><script>var x = 1</script>AT&amp;T &lt;x&gt;<br>end"
    assert without_markup(page) == "One two\n\nthree\n\nAT&T <x>\nend"
    for text in (
        "a < b and c > d & e",
        "<think>if x<y</think>",
        "<|im_start|> <tool_call>",
        "`<b>` is a tag",
        "```html\n<p>x</p>\n```",
        "List<int> and AT&T",
        "no markup  at all\n",
    ):
        assert without_markup(text) == text
    assert without_markup("<b>see</b> ```\n<b>\n```") == "see ```\n<b>\n```"
    assert without_markup("<i>a</i> <think>b</think> 1<2 & R&D") == "a <think>b</think> 1<2 & R&D"


def test_comments_go_and_one_that_does_not_end_is_text():
    assert without_markup("<!doctype html><p>a<!-- b\n<i> -->c</p>") == "ac"
    assert without_markup("<b>a</b> <!-- b") == "a <!-- b"
    started = time.process_time()
    without_markup("<b>x</b>" + "<!--" * 20_000 + "<p " * 20_000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text", ["e\x00\u0301", "<b>e</b>\u0301", "e&#x301;\u200b", "\u031a\x11\u0302", "cafÃ©\u200b\r\n"]
)
def test_a_clean_text_is_clean(text):
    every = TextCleaner(CleanConfig(mojibake=True, unicode="nfc", control=True, markup=True))
    once, done = every(text)
    assert done and every(once) == (once, ())


def test_personal_data_is_masked_and_what_looks_like_it_is_not():
    every = ("email", "phone", "ip", "card", "iban")
    found = {
        "write to a.b+c@mail.example.org.": "write to [EMAIL].",
        "请联系test@example.com谢谢": "请联系[EMAIL]谢谢",
        "call +44 20 7946 0958 now": "call [PHONE] now",
        "from 192.168.1.10:80 and 2001:db8::1": "from [IP]:80 and [IP]",
        "card 4111 1111 1111 1111, 4012-8888-8888-1881": "card [CARD], [CARD]",
        "IBAN DE89 3704 0044 0532 0130 00 EUR": "IBAN [IBAN] EUR",
    }
    for text, wanted in found.items():
        assert masked(text, every)[0] == wanted
    for text in (
        "at 12:30:45 in std::vector",
        "version 1.2.3 of 999.1.1.1",
        "card 4111 1111 1111 1112",
        "pi is 3.14159265358979",
        "DE00 3704 0044 0532 0130 00",
        "user@host",
        "0000 0000 0000 0000",
        "the years 1990-2000",
        "(415) 555-2671",
    ):
        assert masked(text, every) == (text, {})
    assert masked("(415) 555-2671", ("phone",), "US") == ("[PHONE]", {"phone": 1})
    assert masked("a@b.org, c@d.org", ("email",))[1] == {"email": 2} and masked("a@b.org", ("ip",))[1] == {}


def rows_of(config: CleanConfig, rows: list[dict[str, Any]]) -> tuple[list[Any], Tally]:
    cleaner, tally, out = RowCleaner(config), Tally(), list[Any]()
    for i, row in enumerate(rows, start=1):
        for one in parse(row, f"a:{i}")[1]:
            out += cleaner.clean(one, f"a:{i}", tally)
    return out, tally


def test_every_text_of_a_row_is_cleaned_and_its_group_follows():
    call = [{"type": "function", "function": {"name": "find", "arguments": {"to": "a@b.org"}}}]
    turns = [
        {"role": "user", "content": "Mail a@b.org"},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": "c@d.org"},
        {"role": "assistant", "content": "Sent to e@f.org"},
    ]
    [row], tally = rows_of(CleanConfig(mask=("email",)), [{"messages": turns}])
    assert [m.content for m in row.messages] == ["Mail [EMAIL]", "", "[EMAIL]"] and row.answers == ("Sent to [EMAIL]",)
    assert "a@b.org" not in row.messages[1].tool_calls and "find" in row.messages[1].tool_calls
    assert tally.as_dict() == {"email masked": 1} and tally.changed_rows == 1
    [plain] = parse({"messages": [{"role": "user", "content": "Mail [EMAIL]"}, {"role": "assistant", "content": "x"}]})[
        1
    ]
    assert row.group == plain.group
    [named] = parse({"prompt": "a@b.org", "completion": "x", "g": "own"}, "", "g")[1]
    assert RowCleaner(CleanConfig(mask=("email",))).row(named)[0].group == named.group
    [judged], _ = rows_of(CleanConfig(mask=("email",)), [{"prompt": "p", "completion": "x", "ground_truth": "a@b.org"}])
    assert judged.columns["ground_truth"] == "[EMAIL]"


def test_rows_are_dropped_for_a_reason():
    rows = [
        {"prompt": "p1", "completion": "ab"},
        {"prompt": "p2", "completion": "a much longer answer than allowed"},
        {"prompt": "p3", "completion": "Das ist ein deutscher Satz."},
        {"prompt": "p4", "completion": "<p></p>\n"},
        {"prompt": "p5", "completion": "fine as it is"},
        {"prompt": "p5", "completion": "fine as it is"},
        {"prompt": "p6", "completion": "好的，没问题。谢谢"},
        {"prompt": "p7", "completion": "12345"},
    ]
    config = CleanConfig(min_characters=3, max_characters=30, languages=("en",), duplicates="exact", markup=True)
    kept, tally = rows_of(config, rows)
    assert [r.answers[0] for r in kept] == ["fine as it is", "12345"]
    assert dict(tally.dropped) == {
        "shorter than min_characters 3": 1,
        "longer than max_characters 30": 1,
        "in the language de": 1,
        "nothing is left of a text": 1,
        "the same as one before": 1,
        "in the language zh": 1,
    }
    assert "1 rows dropped: the same as one before; the first is a:6" in tally.lines()


def test_near_duplicates_are_dropped_in_any_script(monkeypatch):
    texts = [
        "the quick brown fox jumps over the lazy dog near the old bank",
        "请解释水泵是怎样工作的，要让小学生也能听懂这件事",
        "Name a river in Spain",
        "समझाइए कि पंप कैसे काम करता है ताकि स्कूल का बच्चा भी समझ सके",
    ]
    rows = [{"text": t} for t in texts] + [{"text": t.replace("।", "") + "!"} for t in texts]
    kept, tally = rows_of(CleanConfig(duplicates="near"), rows)
    assert [r.text for r in kept] == texts and dict(tally.dropped) == {"nearly the same as one before": 4}
    assert len(rows_of(CleanConfig(duplicates="exact"), rows)[0]) == 8


def test_of_too_many_rows_near_duplicates_are_looked_for_in_a_sample_that_is_named(monkeypatch):
    """Each of 400 texts comes again with a letter misspelt; of both of a pair the sample has both, or neither."""
    draw = random.Random(0)
    texts = [" ".join("".join(draw.choices("abcdefghij", k=7)) for _ in range(12)) for _ in range(400)]
    rows = [{"text": t} for t in texts] + [{"text": f"{t[:-1]}z"} for t in texts]
    whole, all_of_them = rows_of(CleanConfig(duplicates="near"), rows)
    assert len(whole) == 400 and all_of_them.near_sample == "" and len(all_of_them.lines()) == 1
    monkeypatch.setattr(cleaning_rows, "NEAR_LIMIT", 150)
    kept, tally = rows_of(CleanConfig(duplicates="near"), rows)
    assert tally.near_sample == "a sample of one text in 4"  # 400 texts, of which at most 150 are kept
    dropped = tally.dropped["nearly the same as one before"]
    assert 60 < dropped < 140, "about a quarter of the 400 pairs"
    assert tally.lines()[-1] == "near duplicates were looked for in a sample of one text in 4"
    assert tally.as_dict()["near duplicates of"] == "a sample of one text in 4"
    assert [r.text for r in rows_of(CleanConfig(duplicates="near"), rows)[0]] == [r.text for r in kept]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"phone_region": "US"}, "phone is not among mask"),
        ({"mask": "phone", "phone_region": "us"}, "two letters"),
        ({"min_characters": 9, "max_characters": 3}, "no row would be left"),
        ({"languages": ["eng"]}, "no language 'eng'"),
        ({"languages": ["en", "en"]}, "twice"),
        ({"mask": ["ssn"]}, "Input should be"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings, why):
    with pytest.raises(ValidationError, match=why):
        CleanConfig(**settings)


def test_a_missing_library_is_named_before_anything_is_read(monkeypatch, tmp_path):
    for name, settings in {
        "ftfy": {"mojibake": True},
        "phonenumbers": {"mask": "phone"},
        "stdnum": {"mask": "iban"},
    }.items():
        monkeypatch.setitem(sys.modules, name, None)
        config = DataConfig.model_validate({"demonstrations": "not-there.jsonl", "clean": settings})
        with pytest.raises(UserError, match=r"data\.clean\.\w+.* needs the package .*trivet\[clean\]"):
            load_corpus(config, seed=0, base_dir=tmp_path)


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def test_a_corpus_is_cleaned_counted_and_fingerprinted(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": f"write a{i}@b.org" if i % 2 else "fine"} for i in range(40)]
    write(tmp_path / "a.jsonl", [*rows, rows[0], rows[1], {"prompt": "x"}])
    write(tmp_path / "b.jsonl", [rows[2], {"prompt": "own", "completion": "y"}])
    clean = {"mask": "email", "duplicates": "exact"}
    made = {"demonstrations": ["a.jsonl", "b.jsonl"], "held_out": 0.3}
    found = load_corpus(DataConfig.model_validate(made | {"clean": clean}), seed=0, base_dir=tmp_path)
    plain = load_corpus(DataConfig.model_validate(made), seed=0, base_dir=tmp_path)
    a, b = found.counts
    assert (a.read, a.rejected, a.changed, a.dropped, a.used) == (43, 1, 21, 2, 40)
    assert (b.read, b.changed, b.dropped, b.used) == (2, 0, 1, 1)
    for count in (a, b):
        assert count.read == count.rejected + count.where + count.dropped + count.not_sampled + count.used
    assert a.as_dict()["cleaning"] == {"email masked": 21, "dropped: the same as one before": 2}
    assert "21 changed by cleaning, 2 dropped by cleaning" in str(a)
    every = (*found.demonstrations.train, *found.demonstrations.held_out)
    assert len(every) == 41 and not any("@" in d.answer for d in every)
    assert found.fingerprint("demonstrations") != plain.fingerprint("demonstrations")
    assert "changed" not in plain.counts[0].as_dict()


def test_a_source_that_cleaning_leaves_nothing_of_says_so(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "short"}] * 3)
    config = DataConfig.model_validate({"demonstrations": "a.jsonl", "clean": {"min_characters": 10}})
    with pytest.raises(
        UserError, match=r"3 are dropped by data\.clean \(3 rows dropped: shorter than min_characters 10"
    ):
        load_corpus(config, seed=0, base_dir=tmp_path)
