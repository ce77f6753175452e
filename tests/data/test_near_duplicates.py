"""What is a near copy: the same words but for small ones, misspellings and punctuation; not a template filled anew."""

from __future__ import annotations

import random

import pytest

from data.near_duplicates import near_duplicates

LONG = (
    "A pump moves water from one place to another by turning a wheel that pushes it along. The wheel sits in a housing "
    "with two openings, and the motor drives it through a shaft. When the wheel turns, pressure falls at the inlet and "
    "rises at the outlet, so that the liquid flows uphill against gravity. Farmers use such machines for their fields, "
    "towns for drinking supply, and ships for keeping their holds dry during heavy storms."
)
SENTENCES = LONG.split(". ")

COPIES = {
    "a mark": ("Name a river in Spain", "Name a river in Spain!"),
    "case, width and spaces": ("Name a river in Spain", "ＮＡＭＥ  a\nriver in spain…"),
    "an article": ("Name a river in Spain", "Name the river in Spain"),
    "a polite word": ("Name a river in Spain.", "Please name a river in Spain"),
    "a misspelling": (
        "What is the capital of France and why is it so big?",
        "What is the captial of France and why is it so big?",
    ),
    "an ending": ("Explain how the pump works in a school", "Explains how the pump works in a school"),
    "other order of a long text": (LONG, ". ".join([*SENTENCES[2:], *SENTENCES[:2]])),
    "misspellings in a long text": (LONG, LONG.replace("machines", "machnes").replace("pressure", "presure")),
    "one word of a long text": (LONG, LONG.replace("storms", "rain")),
    "Chinese": (
        "请解释水泵是怎样工作的，要让小学生也能听懂这件事",
        "解释水泵是怎样工作的呢？要让小学生也能听懂这件事！",
    ),
    "Japanese": (
        "ポンプの仕組みを小学生にも分かるように説明して",
        "ポンプの仕組みは小学生にも分かるように説明してね。",
    ),
    "Korean": ("펌프가 어떻게 작동하는지 자세히 설명해 주세요", "펌프는 어떻게 작동하는지 자세히 설명해 주세요!"),
    "Arabic": ("اشرح كيف تعمل المضخة لطفل في المدرسة", "اشرح كيف تعمل المضخات لطفل في المدرسة؟"),
    "Hindi": ("समझाइए कि पंप कैसे काम करता है ताकि बच्चा भी समझ सके", "समझाइए कि पंप कैसे काम करते हैं ताकि बच्चा भी समझ सके।"),
}
OTHERS = {
    "a template": (
        "tell me a happy story with a fox , a book and the lake .",
        "tell me a happy story with a fox , a ball and the lake .",
    ),
    "a number": (
        "Explain how machine number 7919 of the hall works",
        "Explain how machine number 7918 of the hall works",
    ),
    "another order": (
        "Is the Eiffel tower taller than the Empire State building?",
        "Is the Empire State building taller than the Eiffel tower?",
    ),
    "a denial": (
        "Which of these animals can swim in cold water?",
        "Which of these animals can not swim in cold water?",
    ),
    "a symbol": ("Is 2 + 2 = 4 true for all numbers here?", "Is 2 + 2 < 4 true for all numbers here?"),
    "small words alone": ("Is it on?", "Is it in?"),
    "half of a long text": (LONG, ". ".join(SENTENCES[:2])),
    "a Chinese template": ("请用一句话告诉我法国的首都是哪一座城市", "请用一句话告诉我德国的首都是哪一座城市"),
    "a Japanese template": ("日本で一番高い山の名前を教えてください", "日本で一番長い川の名前を教えてください"),
    "a Korean template": ("스페인에 있는 강의 이름을 하나 말해 주세요", "스페인에 있는 산의 이름을 하나 말해 주세요"),
    "an Arabic template": ("اذكر اسم نهر في إسبانيا من فضلك الآن", "اذكر اسم جبل في إسبانيا من فضلك الآن"),
    "a Hindi template": ("स्पेन की एक नदी का नाम बताइए", "स्पेन की एक झील का नाम बताइए"),
}


@pytest.mark.parametrize(("one", "other"), COPIES.values(), ids=COPIES)
def test_a_copy_is_found(one, other):
    assert list(near_duplicates([("a", one)], [("b", other)])) == [("a", "b")]
    assert list(near_duplicates([("a", other), ("b", one)])) == [("b", "a")]


@pytest.mark.parametrize(("one", "other"), OTHERS.values(), ids=OTHERS)
def test_other_content_is_no_copy(one, other):
    assert not list(near_duplicates([("a", one)], [("b", other)]))
    assert not list(near_duplicates([("a", other)], [("b", one)]))


def test_fillings_of_a_template_are_no_copies_and_their_own_copies_are():
    rng = random.Random(0)
    slots = [("fox", "bear", "duck", "king"), ("book", "drum", "kite", "ring"), ("lake", "cave", "market", "castle")]
    texts = list(
        {"tell me a happy story with a {} , a {} and the {} .".format(*map(rng.choice, slots)) for _ in range(99)}
    )
    known = [(f"t{i}", text) for i, text in enumerate(texts)]
    assert len(texts) > 40 and not list(near_duplicates(known))
    asked = [(f"h{i}", text.replace(" .", " !")) for i, text in enumerate(texts)]
    assert list(near_duplicates(asked, known)) == [(f"h{i}", f"t{i}") for i in range(len(texts))]
