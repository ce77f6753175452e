"""Rows in Chinese, Japanese, Korean, Arabic, Hindi, emoji and full-width letters: as they are, and split as one."""

from __future__ import annotations

import json

import pytest

from data.derive import as_demonstration, as_prompt
from data.formats import parse
from data.sources import DataConfig
from data.splits import load_corpus

TEXTS = {
    "Chinese": ("面包怎么保持新鲜？", "放在布袋里。"),
    "Japanese": ("パンを新鮮に保つには？", "布の袋に入れます。"),
    "Korean": ("빵을 신선하게 보관하려면?", "천 가방에 넣으세요."),
    "Arabic": ("كيف يبقى الخبز طازجًا؟", "في كيس من القماش."),
    "Hindi": ("रोटी ताज़ी कैसे रहे?", "कपड़े की थैली में।"),
    "emoji": ("👩🏽‍🚀 or 🏴‍☠️?", "🙂🇪🇸"),
    "full-width": ("Ｗｈａｔ　ｋｅｅｐｓ　ｂｒｅａｄ？", "Ａ　ｂａｇ．"),
}


@pytest.mark.parametrize(("question", "reply"), TEXTS.values(), ids=TEXTS)
def test_texts_arrive_as_they_are(question, reply):
    rows = (
        {"prompt": question, "completion": reply},
        {"instruction": question, "output": reply},
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": question}]},
                      {"role": "assistant", "content": reply}]},
        {"system": reply, "question": question, "chosen": reply, "rejected": question},
        {"prompt": question, "responses": [question, reply], "rewards": [0, 1]},
    )  # fmt: skip
    for row in rows:
        [one] = parse(row)[1]
        assert as_prompt(one)[0].text == question and as_demonstration(one)[0].answer == reply


def test_the_split_is_by_prompt_in_every_script(tmp_path):
    rows = [{"prompt": f"{question} {i}", "completion": f"{reply} {j}"}
            for question, reply in TEXTS.values() for i in range(20) for j in range(2)]  # fmt: skip
    wide = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)})
    rows += [{"prompt": f"What keeps bread? {i}".translate(wide), "completion": "x"} for i in range(20)]
    rows += [{"prompt": f"What keeps bread? {i}", "completion": "y"} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    corpus = load_corpus(DataConfig(demonstrations=("a.jsonl",), held_out=0.3), seed=0, base_dir=tmp_path)
    train = {d.prompt.group for d in corpus.demonstrations.train}
    held = {d.prompt.group for d in corpus.demonstrations.held_out}
    assert train and held and not train & held and len(train | held) == 20 * (len(TEXTS) + 1) - 20
    assert len(corpus.demonstrations) == len(rows)
