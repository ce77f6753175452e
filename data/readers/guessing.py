"""Which encoding bytes are in that are not UTF-8: the one in which they read most like a language.

Each byte beyond ASCII is one letter in most encodings, so that the likelihoods of the letters under the languages that
an encoding is used for can be compared as they are. Encodings of two bytes a letter are asked first, by the share of
their most frequent signs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache

SCORED = 1 << 14  # bytes that are scored; some lines are enough
CAPITAL = 12.0  # what a word of capitals inside costs
MIN_SCORE = -5.0  # log-likelihood of a letter below which it is no language
FREQUENT = 0.12  # share of frequent signs from which a text is of the East

LANGUAGES = {
    "de": "üäößéÜÄÖ",
    "fr": "éèàêçôîùâûëïœÉÀ",
    "es": "óíáéñú¿¡ü",
    "pt": "ãçáéíóêõâúàô",
    "it": "èàùòìéÈ",
    "nordic": "äåöøæéÅÖÄ",
    "is": "íáðóéúþæöý",
    "pl": "łęóążśćńź",
    "cs": "íáěéřýčšžůúňóťď",
    "sk": "áíýéčžšľúťňôäďóŕĺ",
    "hu": "áéőöíüóűú",
    "ro": "ăâîșțşţ",
    "hr": "čšžćđ",
    "tr": "ıüşğöçİâîû",
    "lt": "ėšųžįčąūę",
    "lv": "āīēšņļūžģčķ",
    "et": "äõüöšž",
    "ru": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
    "uk": "оанивіертсклудмпзяьбгйчхцюжїєшфщґ",
    "bg": "аоиентрсвлкдпмзъугбчщжцйяфшхюь",
    "sr": "аиоенрсјтукдвлпмзгбчшћцжњхљђфџ",
    "el": "αοιετσνηυρπκμλςίόάγέδήωχθύφβώξζψϊϋΐΰ",
    "he": "יוהלאמתשרבנדחקעפגכטסזםןצךףץ",
    "ar": "اليمونترعبدسفهكقحجشطصخةذضأثزئظغىإآءؤ،؟",
    "fa": "ایرندهموتبسشکزفخگقحپعجچآصطغضثذظژئ،؟",
    "th": "านรอกเงคมยลวดทตสปบหแจะพชขใไผโถฟซศธฮณญษภฐ่้ิีัืุู็์ำๆฯ",
}
"""The letters that a language has beyond ASCII, the most frequent first."""

WESTERN = ("de", "fr", "es", "pt", "it", "nordic", "is")
CENTRAL = ("pl", "cs", "sk", "hu", "ro", "hr", "de")
CYRILLIC = ("ru", "uk", "bg", "sr")
BYTEWISE: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("cp1252", WESTERN, 0.0),
    ("cp1250", CENTRAL, -0.7),
    ("iso8859_2", CENTRAL, -0.8),
    ("cp1251", CYRILLIC, 0.0),
    ("koi8_r", CYRILLIC, -0.1),
    ("koi8_u", ("uk",), -0.1),
    ("iso8859_5", CYRILLIC, -0.1),
    ("cp866", CYRILLIC, -0.1),
    ("mac_cyrillic", CYRILLIC, -0.3),
    ("cp1253", ("el",), 0.0),
    ("iso8859_7", ("el",), -0.6),
    ("cp1254", ("tr",), -0.7),
    ("cp1255", ("he",), 0.0),
    ("cp1256", ("ar", "fa"), 0.0),
    ("iso8859_6", ("ar",), -0.1),
    ("cp1257", ("lt", "lv", "et"), -1.0),
    ("cp874", ("th",), 0.0),
    ("iso8859_15", WESTERN, -0.5),
    ("mac_roman", WESTERN, -1.0),
    ("cp850", WESTERN, -1.0),
)
"""Encodings of one byte a letter, the languages that they are used for, and how much rarer they are (a logarithm)."""

_FREQUENT_SIGNS = {
    "zh": "的一是不了在人有我他这这個个们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於着著下"
    "自之"
    "年过過发發后後作里裡用道行所然家种種事成方多经經么麼去法学學如都同现現当當没沒动動面起看定天分还還进進好小部其些主样樣"
    "理心她本前开開但因只从從想实實什问問题題色水金什吗嗎呢请請把让讓",
    "ja": "のにはをたがでてとしれさいるなもからこりすまつあきくそうせんっけよだめわおえどばちらへみカンスルトラリアイク"
    "シレー",
    "ko": "이다는에의을를가은고하지로도서한기리사인자어나시그아라해일스수과대정부전무것까니입있어요들만면했세여습주보",
}
EASTERN = (
    *(("gb18030", "zh"), ("big5", "zh"), ("shift_jis", "ja"), ("cp932", "ja"), ("euc_jp", "ja"), ("euc_kr", "ko")),
    ("cp949", "ko"),
)
_NEUTRAL = frozenset("«»°’‘“”‚„–—…€§©®·\xa0¡¿´`№")
_INSIDE = re.compile(r"(?<=[^\W\d_a-zA-Z])[A-Za-z]|[A-Za-z](?=[^\W\d_a-zA-Z])")


def likeliest(sample: bytes) -> list[str]:
    """Encodings in which a sample reads like a language, the likeliest first, one of those that read alike."""
    sample = sample[:SCORED].rpartition(b"\n")[0] or sample[:SCORED]
    found = _eastern(sample) or _bytewise(sample)
    texts: dict[str, str] = {}
    for name in found:
        texts.setdefault(sample.decode(name), name)
    return list(texts.values())


_SHIFTED = re.compile(rb"\+([A-Za-z0-9/+]*)(-?)")
RUNS = 3
"""Letters in UTF-7 from which on a file is taken for it."""


def seven_bits(sample: bytes) -> list[str]:
    """``hz`` or ``utf-7`` of bytes that are all ASCII, where they spell letters by signs; nothing of plain ASCII."""
    sample = sample.rpartition(b"\n")[0] or sample
    if b"~{" in sample:
        signs = [c for c in _decoded(sample, "hz") or "" if c > "\u2e7f"]
        if signs and sum(c in _FREQUENT_SIGNS["zh"] for c in signs) >= FREQUENT * len(signs):
            return ["hz"]
    return ["utf-7"] if _is_utf_7(sample) else []


def _is_utf_7(sample: bytes) -> bool:
    """Whether every plus begins letters beyond ASCII or stands for itself as ``+-``: code and sums have others."""
    runs = _SHIFTED.findall(sample)
    if len([run for run, _ in runs if run]) < RUNS or any(not run and not end for run, end in runs):
        return False
    for run, _ in runs:
        letters = _decoded(b"+" + run + b"-", "utf-7") if run else "+"
        if not letters or any(c.isascii() and c not in '+"\\~&<>{}[]|=*@#$%^_`!;' for c in letters):
            return False
    text = _decoded(sample, "utf-7")
    return text is not None and not text.isascii()


def _decoded(sample: bytes, name: str) -> str | None:
    """The text, unless it cannot be one: bytes of no letter, control characters, private ones."""
    try:
        text = sample.decode(name)
    except (UnicodeDecodeError, LookupError):
        return None
    odd = (c for c in set(text) if ord(c) > 0x7F)
    if any(0x80 <= ord(c) < 0xA0 or 0xE000 <= ord(c) < 0xF900 or not (c.isprintable() or c == "\xa0") for c in odd):
        return None
    return text


def _eastern(sample: bytes) -> list[str]:
    """Encodings of two bytes a letter by the share of a language's frequent signs."""
    found = []
    for name, language in EASTERN:
        text = _decoded(sample, name)
        signs = [c for c in text or "" if c > "\u2e7f"]
        if signs:
            share = sum(c in _FREQUENT_SIGNS[language] for c in signs) / len(signs)
            kana = sum("\uff61" <= c <= "\uff9f" for c in signs) / len(signs)  # of half width: other bytes as shift_jis
            if share - kana >= FREQUENT:
                found.append((share - kana, name))
    return [name for _, name in sorted(found, key=lambda one: -one[0])]


def _bytewise(sample: bytes) -> list[str]:
    """Encodings of one byte a letter by the likelihood of their letters."""
    found = []
    for name, languages, rarer in BYTEWISE:
        text = _decoded(sample, name)
        if text is None:
            continue
        high = Counter(c for c in text if ord(c) > 0x7F)
        score = max(_likelihood(high, language) for language in languages) + rarer + _spelling(text, high, languages)
        if score > MIN_SCORE:
            found.append((score, name))
    return [name for _, name in sorted(found, key=lambda one: -one[0])]


def _likelihood(high: Counter[str], language: str) -> float:
    """The mean logarithm of the letters' frequencies."""
    known = _logarithms(language)
    return sum(n * known.get(c, _unknown(c, known)) for c, n in high.items()) / max(1, high.total())


def _unknown(letter: str, known: dict[str, float]) -> float:
    if letter in _NEUTRAL:
        return -3.0
    return known[letter.lower()] - 1.5 if letter.lower() in known else -9.0


@lru_cache(maxsize=64)
def _logarithms(language: str) -> dict[str, float]:
    letters = LANGUAGES[language]
    weights = [1 / (place + 3) for place in range(len(letters))]
    whole = sum(weights)
    return {letter: math.log(weight / whole) for letter, weight in zip(letters, weights, strict=True)}


def _spelling(text: str, high: Counter[str], languages: tuple[str, ...]) -> float:
    """What speaks against it: words of two scripts, or of accents alone, and capitals inside words."""
    letters = sum(n for c, n in high.items() if c.isalpha())
    if not letters:
        return 0.0 if languages == WESTERN else -2.0
    plain = sum(c.isascii() and c.isalpha() for c in text)
    if all("a" <= c.lower() <= "\u024f" for c in high if c.isalpha()):
        crowded = letters > 0.6 * (letters + plain) and letters > 3
        return (-4.0 if crowded else 0.0) - CAPITAL * _capitals(text)
    mixed = len(_INSIDE.findall(text)) / letters
    return -6.0 * min(1.0, mixed) - CAPITAL * _capitals(text)


def _capitals(text: str) -> float:
    """The share of letters behind another of its word that are capitals, in words that are not all capitals."""
    words = [word for word in re.findall(r"[^\W\d_]{2,}", text) if not word.isascii() and not word.isupper()]
    later = [c for word in words for c in word[1:]]
    return sum(c.isupper() for c in later) / len(later) if later else 0.0
