"""Rows in Chinese, Japanese, Korean, Arabic, Hindi, emoji and full-width letters: as they are, and split as one."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.checks import check_files
from data.derive import as_demonstration, as_prompt
from data.formats import parse
from data.sources import DataConfig
from data.splits import load_corpus
from data.template import Renderer

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


@pytest.fixture(scope="module")
def of_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, one token each, so that tokens can be counted by encoding to UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


@pytest.mark.parametrize(("question", "reply"), TEXTS.values(), ids=TEXTS)
def test_texts_are_rendered_and_supervised_whole(question, reply, of_bytes):
    renderer = Renderer(of_bytes, template="dialogue")
    [row] = parse({"prompt": question, "completion": reply})[1]
    query, answer = renderer.prompt_and_answer(row.messages, reply, max_tokens=500)
    assert of_bytes.decode(query).count(question) == 1
    assert of_bytes.decode(answer).removesuffix("<end>").strip() == reply


@pytest.mark.parametrize(("question", "reply"), TEXTS.values(), ids=TEXTS)
def test_lengths_are_counted_in_characters_and_tokens(question, reply, of_bytes, tmp_path):
    row = {"prompt": question, "completion": reply}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    found = check_files([tmp_path / "a.jsonl"], tokenizer=of_bytes).files[0]
    assert (found.characters["prompt"].longest, found.characters["answer"].longest) == (len(question), len(reply))
    counted = found.tokens["prompt"].longest, found.tokens["answer"].longest
    assert counted == (len(question.encode()), len(reply.encode()))


LONG = {
    "Chinese": "请 解释水泵是怎样工作的，要让小学生也能听懂",
    "Japanese": "ポンプの仕組みを小学生にも分かるように説明して",
    "Korean": "펌프가 어떻게 작동하는지 초등학생도 알 수 있게 자세히 설명해 주세요",
    "Arabic": "اشرح كيف تعمل المضخة لطفل في المدرسة الابتدائية بكلمات سهلة",
    "Hindi": "समझाइए कि पंप कैसे काम करता है ताकि स्कूल का बच्चा भी समझ सके",
    "full-width": "Ｅｘｐｌａｉｎ　ｈｏｗ　ａ　ｐｕｍｐ　ｗｏｒｋｓ　ｔｏ　ａ　ｃｈｉｌｄ　ｏｆ　ｔｅｎ",
}


@pytest.mark.parametrize("asked", LONG.values(), ids=LONG)
def test_a_document_with_a_held_out_prompt_is_held_out(asked, tmp_path):
    """Punctuation, width and white space between the words aside, in every script."""
    rows = [{"prompt": asked, "completion": "x"}] + [{"prompt": f"other {i}", "completion": "y"} for i in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "h.jsonl").write_text(json.dumps({"prompt": asked}) + "\n")
    other_vowels = asked.translate(str.maketrans("ेैीािा", "ंंंंंं"))
    unlike = other_vowels if other_vowels != asked else asked[:-4] + "abcd"
    texts = [f"before, {asked}!\nafter", unlike, "nothing of it"]
    (tmp_path / "d.txt").write_text("\n\n".join(texts), encoding="utf-8")
    config = DataConfig(demonstrations=("a.jsonl",), documents=("d.txt",), held_out="h.jsonl")
    corpus = load_corpus(config, seed=0, base_dir=tmp_path)
    assert [d.text for d in corpus.documents.held_out] == texts[:1]
    assert corpus.notes["documents held out because they contain a held-out prompt"] == 1
