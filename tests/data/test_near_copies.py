"""Which texts count as near copies: copies with small edits do, other fillings of one template do not."""

from __future__ import annotations

import pytest

from data.near_duplicates import near_duplicates

LONG = (
    "Please describe in a few sentences how the water cycle works, beginning with evaporation from the oceans, then "
    "condensation in clouds, and finally precipitation over mountains and valleys, so that children understand it"
)


def near(one: str, other: str) -> bool:
    return bool(list(near_duplicates([("b", other)], [("a", one)])))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do plants make food", "how do plants make food!"),
        ("How do plants make food?", "HOW  do plants,\nmake food"),
        (LONG, LONG.replace("the oceans", "oceans")),
        (LONG, LONG.replace("precipitation", "precipitaton").replace("children", "chidlren")),
        (LONG, LONG.replace("cycle works, beginning", "cycle works beginning") + " please"),
        ("请用简单的语言解释一下光合作用是如何进行的", "请用简单的语言解释一下光合作用是如何进行的呢？"),
        ("光合作用の仕組みを簡単に説明してください", "光合作用の仕組みを、簡単に説明してください！"),
        ("광합성이 어떻게 이루어지는지 설명해 주세요", "광합성이 어떻게 이루어지는지 설명해 주세요!"),
        ("اشرح كيف تعمل دورة المياه في الطبيعة للأطفال", "اشرح كيف تعمل دورة المياه في الطبيعة للأطفال؟"),
        ("जल चक्र कैसे काम करता है, बच्चों को समझाइए", "जल चक्र कैसे काम करता है बच्चों को समझाइए।"),
    ],
)
def test_a_copy_with_small_edits_is_near(one: str, other: str) -> None:
    assert near(one, other)
    assert near(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LONG, LONG.replace("mountains", "deserts")),
        (
            "Tell me a short story about the old fisherman and a cat",
            "Tell me a short story about the old fisherman and a dog",
        ),
        ("What is the sum of the numbers 12 and 30 in decimal", "What is the sum of the numbers 12 and 31 in decimal"),
        (
            "Is the value of the first variable a > b in this case",
            "Is the value of the first variable a < b in this case",
        ),
        (
            "请写一篇关于猫的短篇故事给小学生阅读并解释其中的寓意",
            "请写一篇关于狗的短篇故事给小学生阅读并解释其中的寓意",
        ),
        (
            "اكتب قصة قصيرة للأطفال الصغار عن القط في المدينة الكبيرة",
            "اكتب قصة قصيرة للأطفال الصغار عن كلب في المدينة الكبيرة",
        ),
        ("बच्चों के लिए जंगल में रहने वाले शेर की एक छोटी कहानी लिखिए", "बच्चों के लिए जंगल में रहने वाले बाघ की एक छोटी कहानी लिखिए"),
    ],
)
def test_another_filling_of_a_template_is_another_text(one: str, other: str) -> None:
    assert not near(one, other)


def test_of_many_fillings_none_is_near_another_and_a_copy_of_any_is_found() -> None:
    nouns = [f"{a}{b}" for a in "bdfgklmnprstvz" for b in ("anlor", "eptis", "iruma", "oskel", "undra", "yllif")]
    texts = [(noun, f"Write a short poem about the {noun} for a friend who likes long walks") for noun in nouns]
    assert list(near_duplicates(texts)) == []
    copies = [(f"copy of {noun}", text.upper() + "!!") for noun, text in texts]
    assert list(near_duplicates(copies, texts)) == [(f"copy of {noun}", noun) for noun in nouns]
    mistyped = [(f"copy of {noun}", text.replace("friend", "freind")) for noun, text in texts]
    assert list(near_duplicates(mistyped, texts)) == [(f"copy of {noun}", noun) for noun in nouns]
