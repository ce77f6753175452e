"""Encodings that are guessed from few letters."""

from __future__ import annotations

import json
import re

import pytest

from data.readers.files import read_file
from data.readers.rows import BadLine, ReadOptions, Remark

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


RUSSIAN = ["Что такое золото?", "Золото это металл жёлтого цвета.", "Что такое лёд", "Вода и лёд"]
UKRAINIAN = ["Що таке золото?", "Це метал жовтого кольору, з якого роблять прикраси для їхніх свят."]
POLISH = ["Zażółć gęślą jaźń", "Źródło światła jest żółte", "Gdzie leży Łódź?"]
CZECH = ["Příliš žluťoučký kůň", "úpěl ďábelské ódy", "Co je to zlato a proč je žluté?"]
HUNGARIAN = ["Kérem őrizze meg a fűszeres körtét", "az árvíztűrő tükröt", "Mi az arany?"]
TURKISH = ["Altın nedir?", "Sarı renkli bir metaldir, şık takılar yapılır.", "Güneş doğar mı? Işık"]
GREEK = ["Τι είναι ο χρυσός;", "Είναι ένα κίτρινο μέταλλο."]
HEBREW = ["מהו זהב?", "זהב הוא מתכת צהובה שממנה עושים תכשיטים"]
ARABIC = ["ما هو الذهب", "الذهب معدن أصفر تصنع منه الحلي"]
LITHUANIAN = ["Kas yra auksas?", "Geltonas metalas, iš kurio gaminami papuošalai, žąsys ūkė"]
THAI = ["ทองคำคืออะไร", "ทองคำเป็นโลหะสีเหลือง"]
WESTERN = ["Où est la gare près de Liège", "C’est l’été à la forêt"]
GERMAN = ["Grüße aus Fußach", "Das kostet fünf Äpfel für Köln"]
SPANISH = ["¿Dónde está el río?", "Mañana será otro día"]
CHINESE = ["什么是金？金是一种金属。", "写一首关于春天的诗", "水是什么"]
TAIWANESE = ["什麼是黃金?黃金是一種黃色的金屬", "可以用來做首飾。"]
JAPANESE = ["金とは何ですか。", "金は黄色い金属で、飾りを作るために使われます。"]
KOREAN = ["금이란 무엇입니까?", "금은 노란색 금속이며 장신구를 만드는 데 사용됩니다."]
MANY = [
    *((name, RUSSIAN) for name in ("cp1251", "koi8-r", "iso-8859-5", "cp866", "mac_cyrillic")),
    *((name, UKRAINIAN) for name in ("cp1251", "koi8-u")),
    *((name, texts) for name in ("cp1250", "iso-8859-2") for texts in (POLISH, CZECH, HUNGARIAN)),
    *((name, TURKISH) for name in ("cp1254", "iso-8859-9")),
    *((name, GREEK) for name in ("cp1253", "iso-8859-7")),
    *((name, HEBREW) for name in ("cp1255", "iso-8859-8")),
    *((name, ARABIC) for name in ("cp1256", "iso-8859-6")),
    *((name, THAI) for name in ("cp874", "tis-620")),
    *(("cp1257", LITHUANIAN), ("cp1252", WESTERN), ("mac_roman", GERMAN), ("cp850", GERMAN), ("iso-8859-15", WESTERN)),
    *((name, texts) for name in ("cp1252", "iso-8859-1") for texts in (GERMAN, SPANISH)),
    *(("gb18030", CHINESE), ("gbk", CHINESE), ("big5", TAIWANESE), ("shift_jis", JAPANESE), ("cp932", JAPANESE)),
    *(("euc_jp", JAPANESE), ("iso2022_jp", JAPANESE), ("euc_kr", KOREAN), ("cp949", KOREAN)),
    *(("hz", CHINESE), ("utf-7", CHINESE), ("utf-7", GERMAN), ("utf-7", RUSSIAN)),
]

PLAIN = ["a+b is c++ and x+y-1", "+49123-456 +ABC- ~{x~} ~{ab~}", "1+1=2; regex [A-Z]+-", "https://x.org/?q=a+AGE-b"]


def test_plain_text_with_signs_of_other_encodings_stays_plain(tmp_path):
    lines = [json.dumps({"prompt": t, "completion": "yes"}) for t in PLAIN * 10]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = [raw for _, raw in read_file(tmp_path / "a.jsonl", "a.jsonl", ReadOptions())]
    assert [row["prompt"] for row in found] == PLAIN * 10


@pytest.mark.parametrize("times", [1, 30])
@pytest.mark.parametrize(("encoding", "texts"), MANY, ids=[f"{name} {texts[0][:6]}" for name, texts in MANY])
def test_many_encodings_with_little_text_and_with_much(tmp_path, encoding, texts, times):
    texts = [t.replace("’", "'") for t in texts] if encoding in ("iso-8859-15",) else texts
    lines = [json.dumps({"prompt": t, "completion": "yes"}, ensure_ascii=False) for t in texts * times]
    (tmp_path / "a.jsonl").write_bytes("".join(line + "\n" for line in lines).encode(encoding))
    found = [raw for _, raw in read_file(tmp_path / "a.jsonl", "a.jsonl", ReadOptions())]
    assert isinstance(found[0], Remark) and "guessed; set `encoding`" in found[0].text
    assert [row["prompt"] for row in found[1:]] == texts * times


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_wide_encodings_with_and_without_a_mark(tmp_path, encoding, form):
    texts = ["水是什么?", "Что такое лёд?", "plain"]
    lines = [json.dumps({"prompt": t, "completion": "a"}, ensure_ascii=False) for t in texts]
    text = "\n".join(lines if form == "jsonl" else ["prompt,completion", *(f"{t},a" for t in texts)]) + "\n"
    (tmp_path / f"a.{form}").write_bytes(text.encode(encoding))
    found = [raw for _, raw in read_file(tmp_path / f"a.{form}", "a", ReadOptions())]
    assert [row["prompt"] for row in found if not isinstance(row, Remark)] == texts


def test_a_line_in_another_encoding_is_named(tmp_path):
    """Most lines are UTF-8; three are not, of which each is named, and none is read wrongly."""
    lines = [json.dumps({"prompt": f"Größe {i}?", "completion": "a"}, ensure_ascii=False) for i in range(30)]
    raw = [line.encode("cp1252" if i in (3, 4, 20) else "utf-8") for i, line in enumerate(lines)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(raw))
    found = list(read_file(tmp_path / "a.jsonl", "a.jsonl", ReadOptions()))
    bad = [place for place, row in found if isinstance(row, BadLine)]
    assert bad == ["a.jsonl:4", "a.jsonl:5", "a.jsonl:21"] and len(found) == 30
    assert all("set `encoding`" in row.reason for _, row in found if isinstance(row, BadLine))


def test_the_next_likeliest_encoding_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes("prompt,completion\nДА,yes\n".encode("cp1251"))
    [(_, remark), (_, row)] = read_file(tmp_path / "a.csv", "a.csv", ReadOptions())
    assert row["prompt"] == "дю"
    assert re.search(
        r"read as koi8_r, which was guessed; set `encoding` if it is wrong \(to cp1251, say\)", remark.text
    )
    [(_, row)] = read_file(tmp_path / "a.csv", "a.csv", ReadOptions(encoding="cp1251"))
    assert row["prompt"] == "ДА"
