"""Encodings that are guessed from few letters."""

from __future__ import annotations

import pytest

from data.readers.files import read_file
from data.readers.rows import ReadOptions, Remark

TEXTS = {
    "cp1250": "Kérem őrizze meg a fűszeres körtét és az árvíztűrő tükröt",
    "cp1252": "Grüße aus Fußach",
    "gb18030": "什么是金？金是一种金属。它是黄色的，可以用来做首饰。",
    "cp1251": "Что такое золото? Золото это металл жёлтого цвета и из него делают украшения.",
    "shift_jis": "金とは何ですか。金は黄色い金属で、飾りを作るために使われます。",
    "euc_kr": "금이란 무엇입니까? 금은 노란색 금속이며 장신구를 만드는 데 사용됩니다.",
}


@pytest.mark.parametrize(("encoding", "text"), TEXTS.items(), ids=TEXTS)
def test_a_guessed_encoding_is_right_and_said(tmp_path, encoding, text):
    file = tmp_path / "a.csv"
    file.write_bytes(b"prompt,completion\n" + (f"{text},{text}\n" * 3).encode(encoding))
    found = [raw for _, raw in read_file(file, "a.csv", ReadOptions())]
    assert any(isinstance(raw, Remark) and "guessed" in raw.text for raw in found)
    rows = [raw for raw in found if not isinstance(raw, Remark)]
    assert rows == [{"prompt": text, "completion": text}] * 3
