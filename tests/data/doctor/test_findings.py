"""Doubtful data is found: rankings that contradict, near duplicates, and leaks into what is held out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.doctor.corpus import examine
from data.doctor.duplicates import Duplicates, HeldOut
from data.doctor.entry import Entry
from data.doctor.meant import Meant, Specials
from data.doctor.rankings import Judgements, Rankings, cut_off
from data.doctor.sampling import Earliest, Histogram, Lowest, Repeats, Sample, Seats
from data.doctor.texts import Characters, Languages, Lengths, Turns
from data.near_duplicates import near_duplicates, plain
from data.records import Message
from data.source_settings import DataConfig
from data.splits import load_corpus
from data.storage import number_rows


def entry(place: str, *answers: str, prompt: str = "q", **more: Any) -> Entry:
    asked = (Message(role="user", content=prompt),)
    return Entry(place=place, messages=asked, answers=answers, ranks=tuple(range(len(answers))), **more)


def found(check: Any, entries: Iterable[Entry]) -> dict[str, tuple[int, tuple[str, ...]]]:
    for one in entries:
        check.add(one)
    return {f.kind: (f.count, f.places) for f in check.findings()}


def test_each_kind_of_doubtful_ranking_is_named_at_its_place():
    assert found(Rankings(), [entry("1", "a", "b"), entry("2", "b", "c")]) == {}
    assert found(Rankings(), [entry("1", "a", " ")]) == {"empty response": (1, ("1",))}
    assert found(Rankings(), [entry("1", "\n", "a")]) == {"empty response preferred": (1, ("1",))}
    assert found(Rankings(), [entry("1", "a b", "a  B"), entry("2", "Ａ", "a")]) == {"equal responses": (2, ("1", "2"))}
    assert found(Rankings(), [entry("1", "a", "b"), entry("2", "b", "a")]) == {"contradiction": (1, ("2",))}
    assert found(Rankings(), [entry("1", "a", "b"), entry("2", "b", "a", prompt="other")]) == {}
    circle = [entry("1", "a", "b"), entry("2", "b", "c"), entry("3", "c", "a"), entry("4", "c", "d")]
    assert found(Rankings(), circle) == {"circle": (1, ("3",))}


def test_only_the_same_conversation_contradicts():
    """Two conversations that begin alike are two prompts."""
    turns = [(Message(role="user", content="Hello"), Message(role="assistant", content=a)) for a in ("Hi", "Yes?")]
    first, second = (
        Entry(place=str(i), messages=(*t, Message(role="user", content="go on")), answers=pair, ranks=(0, 1))
        for i, (t, pair) in enumerate(zip(turns, (("a", "b"), ("b", "a")), strict=True))
    )
    assert found(Rankings(), [first, second]) == {}


def test_disagreement_tells_the_rate_of_wrong_judgements():
    """Of pairs judged again 18 % disagree: with e wrong at random that is 2 e (1 - e), so e is 10 %."""
    once = [entry(f"a{i}", "x", "y", prompt=str(i)) for i in range(100)]
    again = [entry(f"b{i}", *(("y", "x") if i < 18 else ("x", "y")), prompt=str(i)) for i in range(100)]
    check = Rankings()
    for one in (*once, *again):
        check.add(one)
    [contradiction] = [f for f in check.findings() if f.kind == "contradiction"]
    assert contradiction.count == 18 and "pairs judged again: 100, the other way: 18" in contradiction.text
    assert "about 10% of them are" in contradiction.text
    assert "the first is b0, against a0" in contradiction.text


def test_one_answer_that_is_always_the_worse():
    rows = [entry(str(i), f"good {i}", "I do not know." if i % 2 else f"bad {i}", prompt=str(i)) for i in range(40)]
    assert found(Rankings(), rows) == {"one-sided": (20, ())}
    assert found(Rankings(), rows[::2]) == {}


def test_a_large_set_of_judgements_is_looked_at_whole(monkeypatch):
    """Judgements that lie on disk are found like others, in the order in which they came."""
    monkeypatch.setattr(number_rows, "IN_MEMORY", 256)
    monkeypatch.setattr(number_rows, "PART", 512)
    check = Rankings()
    for i in range(3000):
        check.add(entry(f"a{i}", "x", "y", prompt=str(i)))
    for i in reversed(range(1500)):
        check.add(entry(f"b{i}", "y", "x", prompt=str(i)))
    for i in range(7):
        check.add(entry(f"c{i}", "y", "z", prompt=str(2000 + i)))
        check.add(entry(f"d{i}", "z", "x", prompt=str(2000 + i)))
    contradiction, circle, _ = check.findings()
    assert (contradiction.count, contradiction.places) == (1500, tuple(f"b{i}" for i in range(1499, 499, -1)))
    assert "pairs judged again: 1,500, the other way: 1,500; the first is b1499, against a1499" in contradiction.text
    assert (circle.count, circle.places) == (7, tuple(f"d{i}" for i in range(7)))


LONG = "This answer goes on for a while and says what there is to say about it. " * 4


def test_judgements_that_look_wrong():
    rows = [
        entry("1", "I'm sorry, but I can't help.", "Here you are."),
        entry("2", "I'm sorry, but no.", "Sorry, no."),
        entry("3", "对不起，我不能。", "给你。"),
        entry("4", LONG + "And then it", LONG),
        entry("5", LONG, LONG + "And then it"),
        entry("6", "q", "an answer"),
    ]
    check = Judgements()
    for one in rows:
        check.add(one)
    assert [(f.count, f.places) for f in check.findings()] == [(2, ("1", "3")), (1, ("4",)), (1, ("6",))]
    assert {f.kind for f in check.findings()} == {"suspected label noise"}
    thumbs = [Entry(place=str(i), answers=("a",), ranks=(0,), liked=True) for i in range(12)]
    assert found(Judgements(), thumbs) == {"one-sided": (12, ())}
    assert found(Judgements(), [*thumbs, Entry(place="x", answers=("a",), ranks=(0,), liked=False)]) == {}


@pytest.mark.parametrize("end", [".", "!", "。", "؟", "।", "🙂", "```", ")", '"', "”", "42"])
def test_an_answer_that_ends_is_not_cut_off(end):
    assert not cut_off(LONG + "It ends here" + end)
    assert cut_off(LONG + "It ends he") and not cut_off("Short one") and not cut_off("word " * 100)


def test_preference_for_length_is_told_in_its_unit():
    """One file for which characters and words say the opposite."""
    rows = [entry(str(i), "extraordinarily", "a b c d") for i in range(20)] + [entry("t", "same", "size")]
    in_characters, in_words = Lengths(), Lengths(lambda texts: [len(t.split()) for t in texts])
    for one in rows:
        in_characters.add(one)
        in_words.add(one)
    assert (in_characters.longer_is_better, in_words.longer_is_better_in_tokens) == (1.0, 0.0)
    [first], [second] = in_characters.findings(), in_words.findings()
    assert first.text.startswith("100% of the 20 ranked pairs of unlike length, in characters, prefer the longer")
    assert second.text.startswith("100% of the 20 ranked pairs of unlike length, in tokens, prefer the shorter")
    assert Lengths().longer_is_better is None
    tied = Entry(place="", answers=("aaa", "b"), ranks=(0, 0))
    of_ties = Lengths()
    of_ties.add(tied)
    assert of_ties.longer_is_better is None


def test_turns_and_roles():
    said = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "u")]
    check = Turns()
    check.add(Entry(place="", messages=tuple(Message(role=r, content=c) for r, c in said), answers=("x", "y")))  # type: ignore[arg-type]
    check.add(entry("", "x"))
    check.add(entry(""))
    assert check.facts() == {
        "roles": {"assistant": 4, "user": 4, "system": 1},
        "turns": {"1": 1, "2": 1, "5": 1},
        "answers": {"1": 1, "2": 1},
    }


def test_lengths_by_a_histogram_are_those_of_the_sorted_list():
    lengths = [(i * 7919) % 1000 for i in range(501)]
    histogram = Histogram()
    for n in lengths:
        histogram.add(n)
    ordered = sorted(lengths)
    assert histogram.median == ordered[250] and histogram.quantile(0.95) == ordered[int(0.95 * 501)]
    assert (histogram.longest, histogram.mean) == (max(lengths), sum(lengths) / 501)
    histogram.add(123_456)
    assert histogram.longest == 123_456 and histogram.at(501) == 123_000


def test_samples_are_bounded_and_say_so():
    sample: Sample[int] = Sample(10)
    for i in range(1000):
        sample.add(i, lambda i=i: i)  # type: ignore[misc]
    assert len(set(sample.kept)) == 10 and max(sample.kept) > 500 and sorted(sample.kept) == sample.kept
    assert sample.of("rows") == "a sample of 10 of 1,000 rows"
    lowest: Lowest[int] = Lowest(10)
    for i in [*range(1000), *range(1000)]:
        lowest.offer(i * 7919 % 1000, lambda i=i: i)  # type: ignore[misc]
    assert lowest.kept == sorted(i for i in range(1000) if i * 7919 % 1000 < 10)
    assert Lowest(0).kept == []


def test_what_came_before_is_counted_exactly_with_its_first_places(monkeypatch):
    monkeypatch.setattr(number_rows, "IN_MEMORY", 16)
    monkeypatch.setattr(number_rows, "PART", 64)
    seats = Seats()
    repeats, numbers = Repeats(seats), [i * i * 0x9E3779B97F4A7C15 % 2**64 for i in range(40)]
    assert repeats.count == 0 and repeats.places == []
    for i in range(100):
        repeats.add(numbers[i % 40], seats.take(str(i)))
    assert repeats.count == 60 and repeats.places == [(str(i), str(i % 40)) for i in range(40, 100)]
    first = Earliest(3)
    for i in reversed(range(50)):
        first.add(i, -i)
    first.extend(np.array([[0, 5], [60, 1]], np.uint64))
    assert first.count == 52 and first.kept == [(0, 0), (0, 5), (1, -1)]


def test_near_duplicates_differ_in_punctuation_or_a_few_characters():
    long = "the quick brown fox jumps over the lazy dog near the old river bank"
    texts = [("1", long), ("2", long + "!"), ("3", long.replace("jumps", "jump")), ("4", "something else entirely")]
    assert list(near_duplicates(texts)) == [("2", "1"), ("3", "1")]
    assert list(near_duplicates([("a", "x y"), ("b", "x y")], [("c", "something else")])) == []
    rows = [entry(str(i), "an answer", prompt=text) for i, (_, text) in enumerate(texts)]
    assert found(Duplicates(), [*rows, rows[0]]) == {"duplicates": (1, ("0",)), "near duplicates": (2, ("1", "2"))}


PAIRS = {
    "Chinese": (
        "请解释水泵是怎样工作，先说电动机如何带动叶轮，再说液体为何上升，最后说明为什么水泵必须放低，农民何时需要使用它，并举出三个例子",
        "请解释水崩是怎样工作，先说电动机如何带动叶轮，再说液体为何上升，最后说明为什么水崩必须放低，农民何时需要使用它，并举出三个例子",
    ),
    "Japanese": ("ポンプの仕組みを小学生にも分かるように説明して", "ポンプの仕組みは小学生にも分かるように説明してね"),
    "Korean": (
        "펌프가 어떻게 작동하는지 초등학생도 알 수 있게 자세히 설명해 주세요 부탁해요",
        "펌프가 어떻게 작동하는지 초등학생도 알 수 있게 자세히 설명해 주세요 부탁해",
    ),
    "Arabic": (
        "اشرح كيف تعمل المضخة لطفل في المدرسة الابتدائية بكلمات سهلة",
        "اشرح كيف تعمل المضخات لطفل في المدرسة الابتدائية بكلمات سهلة",
    ),
    "Hindi": (
        "समझाइए कि पंप कैसे काम करता है ताकि स्कूल का बच्चा भी समझ सके",
        "समझाइए कि पंप कैसे काम करते है ताकि स्कूल का बच्चा भी समझ सके",
    ),
    "full-width": ("Ｅｘｐｌａｉｎ　ｈｏｗ　ａ　ｐｕｍｐ　ｗｏｒｋｓ．", "Explain how a pump works"),
    "emoji": ("🍎🍌🍒🍇🍉🍓🍍🥝🍑🍋", "🍎🍌🍒🍇🍉🍓🍍🥝🍑🍋!"),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_near_duplicates_in_every_script(one, other):
    assert list(near_duplicates([("a", one)], [("b", other)])) == [("a", "b")]
    assert not list(near_duplicates([("a", one)], [("b", "Что сохраняет хлеб свежим дольше всего на свете?")]))


def test_what_a_script_marks_is_no_punctuation():
    """Vowel signs, joined emoji and symbols tell texts apart; width, case and what is invisible do not."""
    assert plain("रोटी") != plain("रटा") and plain("🍎") != plain("🍌") and plain("2+2") != plain("2<2")
    assert plain("水是什么？") == plain("水是什么") == plain("水，是 什么")
    assert plain("Ｂｒｅａｄ？") == plain("bread") == plain("bre\u00adad\u200b!")
    assert plain("a_b (c)") == "a_b c" == plain("a_b\u00a0（c）")


def test_languages_and_scripts():
    texts = {
        "What keeps bread fresh for a week?": ("en", "Latin"),
        "Wie hält man Brot eine Woche lang frisch?": ("de", "Latin"),
        "面包怎么保持新鲜？": ("zh", "Han"),
        "パンを新鮮に保つには？": ("ja", "Japanese"),
        "빵을 신선하게 보관하려면?": ("ko", "Hangul"),
        "كيف يبقى الخبز طازجًا لمدة أسبوع؟": ("ar", "Arabic"),
        "रोटी एक हफ़्ते तक ताज़ी कैसे रहे?": ("hi", "Devanagari"),
        "Ｗｈａｔ　ｋｅｅｐｓ　ｂｒｅａｄ　ｆｒｅｓｈ？": ("en", "Latin"),
        "🙂🇪🇸": ("too short to tell", "emoji"),
        "1 + 1": ("too short to tell", "none"),
    }
    for text, (language, script) in texts.items():
        check = Languages()
        check.add(entry("", prompt=text))
        assert check.facts() == {"languages": {language: 1}, "scripts": {script: 1}, "languages of": "1 rows"}
    other = [entry(str(i), "面包放在布袋里可以保持新鲜。", prompt="What keeps bread fresh?") for i in range(5)]
    assert found(Languages(), other) == {"language": (5, ("0", "1", "2", "3", "4"))}


def test_characters_that_nobody_meant():
    rows = [
        entry("1", "a\u200bb"),
        entry("2", "a\x00"),
        entry("3", "caf\ufffd"),
        entry("4", "<p>a</p>"),
        entry("5", "می‌خواهم 👩🏽‍🚀 <think>a < b</think>\n\ttab"),
        entry("6", "AT&amp;T"),
    ]
    assert found(Characters(), rows) == {
        "invisible characters": (2, ("1", "2")),
        "lost characters": (1, ("3",)),
        "markup": (2, ("4", "6")),
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def test_texts_that_are_not_what_was_meant_are_named_at_their_places():
    def kinds(*answers: str, prompt: str = "what is it?") -> dict[str, tuple[int, tuple[str, ...]]]:
        return found(Meant(), [entry(str(i), a, prompt=prompt) for i, a in enumerate(answers)])

    assert kinds("un cafÃ©", "Itâ€™s fine", "Â£5", "50 â‚¬", "ðŸ\u0098\u0080")["misread text"] == (5, tuple("01234"))
    assert kinds("un café", "It’s “fine” – so", "SÃO PAULO", "AMANHÃ” disse", "Âmbar", "日本") == {}
    assert kinds("nan", "None", " NULL ", "none", "nano", "N")["empty cell"] == (3, ("0", "1", "2"))
    assert kinds("a\\nb", "a.\\n\\nB", "fine")["escaped line breaks"] == (2, ("0", "1"))
    assert kinds("print('a\\n')\nprint()", r"C:\new", r"\nu and \theta", r"\\n") == {}
    assert kinds("what is it? A cat.", " what is it? It is", "what is it?", "a cat")["repeated prompt"] == (
        2,
        ("0", "1"),
    )
    assert kinds("it is a cat", "it", prompt="it") == {}
    named = {"speaker's name": (3, ("0", "1", "2"))}
    assert kinds("Assistant: A cat.", "AI : a cat", "\n### Bot: a cat", "Aid: none", "Users: two") == named
    assert kinds("A cat.", "A dog.", prompt="User: what is it?") == {"speaker's name": (2, ("0", "1"))}
    assert kinds("A cat.\n\nHuman: and that?", "A cat.<|im_start|>user", "A cat.\n用户：那个？", "a Human: b") == {
        "turns in a turn": (3, ("0", "1", "2"))
    }
    rare = [entry("x", "a\\nB"), *(entry(str(i), "fine") for i in range(99))]
    assert found(Meant(), rare) == {}
    parts = [Meant(), Meant()]
    for check, one in zip(parts, ("un cafÃ©", "nan"), strict=True):
        check.add(entry(one, one))
    parts[0].merge(parts[1])
    assert {f.kind: f.places for f in parts[0].findings()} == {"misread text": ("un cafÃ©",), "empty cell": ("nan",)}


def test_special_tokens_that_stand_in_texts_are_named(tmp_path):
    rows = [("say <|im_end|> it", "a"), ("q", "first<|im_end|>second"), ("q <s>", "b"), ("q", "<|im_ended|>")]
    entries = [entry(str(i), answer, prompt=prompt) for i, (prompt, answer) in enumerate(rows)]
    halves = [Specials(("<s>", "<|im_end|>", "</s>")) for _ in range(2)]
    for check, some in zip(halves, (entries[:1], entries[1:]), strict=True):
        found(check, some)
    halves[0].merge(halves[1])
    assert [(f.count, f.places) for f in halves[0].findings()] == [(1, ("2",)), (2, ("0", "1"))]
    assert "`<|im_end|>` in a text, which becomes that special token" in [str(f) for f in halves[0].findings()][1]
    assert found(Specials(), entries) == {}
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "completion": a}) + "\n" for p, a in rows))
    corpus = load_corpus(DataConfig(demonstrations=("a.jsonl",)), seed=0, base_dir=tmp_path)
    kinds = [f.kind for f in examine(corpus, special=["<|im_end|>"]).findings]
    assert kinds.count("special token") == 1 and "special token" not in [f.kind for f in examine(corpus).findings]


def test_held_out_prompts_that_are_in_training_but_for_punctuation_are_counted(tmp_path):
    asked = [f"What is the name of thing {i}" for i in range(200)]
    write(tmp_path / "a.jsonl", [{"prompt": p + end, "completion": "a"} for p in asked for end in ("", "!")])
    corpus = load_corpus(DataConfig(demonstrations="a.jsonl", held_out=0.3), seed=0, base_dir=tmp_path)
    held = {d.prompt.text.rstrip("!") for d in corpus.demonstrations.held_out}
    train = {d.prompt.text.rstrip("!") for d in corpus.demonstrations.train}
    leaks = [f for f in examine(corpus).findings if f.kind == "leak"]
    assert [f.count for f in leaks] == [len(held & train)] and len(held & train) > 20
    assert leaks[0].text.startswith(f"{len(held & train)} of {len(held)} held-out prompts are in training but for case")


def test_held_out_prompts_that_are_nearly_in_training_are_counted():
    check = HeldOut()
    asked = [f"Please explain in your words how machine number {i * 7919} of the {i}th hall works" for i in range(30)]
    for i, text in enumerate(asked):
        check.add(entry(f"t{i}", prompt=text), False)
    for i, text in enumerate(asked[:10]):
        check.add(entry(f"h{i}", prompt=text.replace("explain", "explains")), True)
    check.add(entry("other", prompt="Name a river in Spain"), True)
    [near] = check.findings()
    assert (near.kind, near.count) == ("near leak", 10)
    assert near.text.startswith("10 of 11 held-out prompts are nearly one of 30 prompts of training; the first is h0")


def test_the_first_place_is_the_first_of_its_file_also_where_rows_are_held_out(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "completion": "a\u200b"} for i in range(40)])
    corpus = load_corpus(DataConfig(demonstrations="a.jsonl", held_out=0.3), seed=0, base_dir=tmp_path)
    lines = [int(d.prompt.source.rpartition(":")[2]) for d in corpus.demonstrations.all]
    assert sorted(lines) == list(range(1, 41)) and lines[0] != 1, "the first row is held out"
    [invisible] = [f for f in examine(corpus).findings if f.kind == "invisible characters"]
    assert invisible.text.endswith("the first is a.jsonl:1")
    assert invisible.places == tuple(f"a.jsonl:{i}" for i in range(1, 41))


def test_sides_without_a_row_or_of_one_group_are_told(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "completion": "a"} for i in range(40)])
    whole = load_corpus(DataConfig(demonstrations="a.jsonl", held_out=0.0), seed=0, base_dir=tmp_path)
    assert [f.text for f in examine(whole).findings] == [
        "data.demonstrations: no row is held out: raise data.held_out, or nothing tells when it overfits",
        "no prompt is held out: raise data.held_out, or evaluation has nothing to ask",
    ]
    turns = [
        {
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": "a"},
            ]
        }
        for i in range(30)
    ]
    write(tmp_path / "b.jsonl", turns)
    one = load_corpus(DataConfig(demonstrations="b.jsonl", held_out=0.0), seed=0, base_dir=tmp_path)
    assert any("all 30 training rows are of one group" in f.text for f in examine(one).findings)


def test_prompts_that_parts_share_are_counted(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "completion": "a"} for i in range(40)])
    write(tmp_path / "b.jsonl", [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(30, 60)])
    config = DataConfig(demonstrations="a.jsonl", rankings="b.jsonl", held_out=0.2)
    found = examine(load_corpus(config, seed=0, base_dir=tmp_path))
    assert found.facts["shared"] == {"demonstrations and rankings": 10}
    assert json.dumps(found.as_dict())
