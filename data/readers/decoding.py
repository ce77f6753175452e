"""Bytes to lines of text: the encoding set, marked by the first bytes, UTF-8, or guessed from the letters.

A file in UTF-8 of which some lines are not has bad bytes, and these lines are named; a file of which hardly a line is
UTF-8 has another encoding.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from data.common.errors import UserError
from data.readers.guessing import likeliest, seven_bits
from data.readers.packed import Content
from data.readers.rows import BadLine

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark begins it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
PACKED_MARKS = {
    b"\x1f\x8b": "packed by gzip (.gz behind its own extension)",
    b"BZh": "packed by bzip2 (.bz2 behind its own extension)",
    b"\xfd7zXZ\x00": "packed by xz (.xz behind its own extension)",
    b"\x28\xb5\x2f\xfd": "packed by zstd (.zst behind its own extension)",
    b"PK\x03\x04": "a zip file or a spreadsheet (.zip, .xlsx)",
    b"PAR1": "a parquet file (.parquet)",
    b"ARROW1": "an Arrow file (.arrow)",
    b"\xd0\xcf\x11\xe0": "an old Excel file (save it as .xlsx)",
}
"""First bytes of files that are no text, and what they are."""

ESCAPES = {b"\x1b$B": "iso2022_jp", b"\x1b$@": "iso2022_jp", b"\x1b$)C": "iso2022_kr"}
"""Bytes that begin a script in encodings of seven bits."""

SAMPLE = 1 << 18  # bytes of lines that are not UTF-8, from which another encoding is found
LINE = 1 << 19  # bytes of a line that are looked at together
FEW = 2  # a single odd byte is damage, not an encoding
CANDIDATES = ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1252", "cp1250", "cp1251", "cp1253")
WESTERN = frozenset("àâäáãåæçèéêëìíîïñòóôöõøœùúûüßÀÂÄÁÃÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖÕØŒÙÚÛÜ«»°’‘“”–—…€£§©®¡¿·´\xa0")

_ALONE = re.compile(r"(?<=[A-Za-z])[\u3000-\u9fff\uac00-\ud7a3](?=[A-Za-z])")
"""A letter of the East within a Western word: two Western letters that were taken for one."""
CENTRAL = frozenset("ąćęłńóśźżĄĆĘŁŃÓŚŹŻáčďéěíňřšťúůýžÁČĎÉĚÍŇŘŠŤÚŮÝŽäöüßÄÖÜőűŐŰľĺôĽÔđĐ„“”‚‘’«»–—…°§€\xa0")
"""Letters of Central European languages; what may be Western as well is taken for that."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the bytes of a file become lines: ``remarks`` says what was found out, and is empty for plain UTF-8."""

    name: str
    ends: bytes = b"\n"
    remarks: str = ""
    blank: bool = False


Line = tuple[int, str | BadLine]


def encoding_of(content: Content, asked: str | None) -> Encoding:
    """Read the file once and say how it is encoded and where its lines end.

    Raises:
        UserError: it cannot be read, or its encoding cannot be recognised.
    """
    seen = _Seen()
    with content.open() as stream:
        for chunk in content.bounded(stream):
            seen.add(chunk)
    seen.finish()
    if kind := next((kind for mark, kind in PACKED_MARKS.items() if seen.first.startswith(mark)), None):
        raise UserError(f"{content.name} is no text but {kind}; give it the extension of what it is")
    ends = b"\r" if seen.returns and not seen.feeds else b"\n"
    remarks = "lines end in CR" if ends == b"\r" else ""
    marked = next((name for mark, name in MARKS.items() if seen.first.startswith(mark)), None)
    name = asked or marked or seen.wide()
    if name is None:
        name, *others = seen.found() or ["utf-8"]
        other = f" (to {others[0]}, say)" if others else ""
        guessed = f"read as {name}, which was guessed; set `encoding` if it is wrong{other}"
        remarks = _joined(remarks, guessed * (name != "utf-8"))
    elif not asked and marked != "utf-8":
        remarks = _joined(remarks, f"read as {name}" * (marked is None))
    return Encoding(name, ends, remarks, blank=seen.blank)


def _joined(*parts: str) -> str:
    return "; ".join(p for p in parts if p)


class _Seen:
    """What one pass over the bytes shows."""

    def __init__(self) -> None:
        self.first, self.head, self.sample, self.escapes = b"", b"", b"", ""
        self.feeds = self.returns = self.good = self.bad = 0
        self.blank, self._rest = True, b""

    def add(self, chunk: bytes) -> None:
        self.first = (self.first + chunk[:4096])[:4096] if len(self.first) < 4096 else self.first
        self.head = (self.head + chunk)[:SAMPLE] if len(self.head) < SAMPLE else self.head
        self.escapes = self.escapes or next((name for mark, name in ESCAPES.items() if mark in chunk), "")
        self.feeds += chunk.count(b"\n")
        self.returns += chunk.count(b"\r")
        self.blank = self.blank and not chunk.strip(b" \t\r\n\x00\xef\xbb\xbf\xff\xfe")
        *whole, self._rest = (self._rest + chunk).split(b"\n") if b"\n" in chunk else [self._rest + chunk]
        if whole:
            self._judge(b"\n".join(whole))
        if len(self._rest) > LINE:  # a file may be one line: it is judged in pieces, cut before a character begins
            cut = next(
                (i for i in range(len(self._rest) - 1, len(self._rest) - 5, -1) if self._rest[i] & 0xC0 != 0x80), 0
            )
            block, self._rest = self._rest[:cut], self._rest[cut:]
            self._judge(block)

    def finish(self) -> None:
        self._judge(self._rest)

    def _judge(self, block: bytes) -> None:
        try:
            block.decode("utf-8")
            self.good += not block.isascii()
            return
        except UnicodeDecodeError:
            pass
        for line in block.split(b"\n"):
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
                self.good += 1
            except UnicodeDecodeError:
                self.bad += 1
                if len(self.sample) < SAMPLE:
                    self.sample += line + b"\n"

    def wide(self) -> str | None:
        """UTF-16 without a mark: of ASCII characters, such as line ends and brackets, every other byte is zero."""
        even, odd = self.first[::2].count(0), self.first[1::2].count(0)
        if max(even, odd) < 2 or min(even, odd) * 8 > max(even, odd) or max(even, odd) * 24 < len(self.first):
            return None
        name = "utf-16-le" if odd > even else "utf-16-be"
        try:
            self.first[: len(self.first) // 2 * 2].decode(name, errors="strict")
        except UnicodeDecodeError as error:
            return name if error.start > len(self.first) - 5 else None  # a pair of surrogates that the sample cuts
        return name

    def found(self) -> list[str]:
        """Other encodings than UTF-8, the likeliest first; none where UTF-8 with bad bytes is likelier."""
        if self.escapes:
            return [self.escapes]
        if not self.good and not self.bad:
            return seven_bits(self.head)
        odd = sum(byte > 0x7F for byte in self.sample)
        if self.good >= self.bad or odd < FEW:
            return []
        return likeliest(self.sample) or [name for name in (_guess(self.sample),) if name]


def _guess(sample: bytes) -> str | None:
    from charset_normalizer import from_bytes

    likely = [match.encoding for match in from_bytes(sample, cp_isolation=list(CANDIDATES), threshold=0.3)]
    for name in dict.fromkeys([*likely, *CANDIDATES]):
        if name in ("cp1250", "cp1252") and (name == "cp1250") != _is_central(sample):
            continue
        if _could_be(name, sample):
            return name
    return None


def _is_central(sample: bytes) -> bool:
    """Whether Western letters do not explain a sample, or only those do that Hungarian has in their places."""
    if not _could_be("cp1252", sample):
        return True
    letters = {c for c in sample.decode("cp1252").lower() if c.isalpha() and not c.isascii()}
    return bool(letters & set("õû")) and letters <= set("áéíóöõúüû") and len(letters) > 1


def _could_be(name: str, sample: bytes) -> bool:
    try:
        return _plausible(sample.decode(name), sample)
    except (UnicodeDecodeError, LookupError):
        return False


def _plausible(text: str, sample: bytes) -> bool:
    """Whether a decoded text could have been written: common letters of one script, nothing odd among them."""
    odd = [c for c in text if ord(c) > 0x7F]
    if any(0x80 <= ord(c) < 0xA0 or 0xE000 <= ord(c) < 0xF900 or not (c.isprintable() or c == "\xa0") for c in odd):
        return False
    east = [c for c in odd if "\u3000" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3" or "\uff00" <= c <= "\uffef"]
    if len(east) * 2 >= len(odd):  # two bytes each; letters that swallowed an ASCII letter are no words
        alone = len(_ALONE.findall(text))
        return sum(byte > 0x7F for byte in sample) >= 1.5 * len(odd) and _common(east) and 2 * alone <= len(east)
    cyrillic = sum("\u0400" <= c <= "\u045f" for c in odd)
    greek = sum("\u0370" <= c <= "\u03ff" for c in odd)
    if all(c in WESTERN for c in odd):
        return True
    return all(c in CENTRAL for c in odd) or max(cyrillic, greek) >= 0.9 * len(odd) > 6


def _common(letters: list[str]) -> bool:
    """Whether letters of Chinese, Japanese or Korean are among those in daily use, as GB2312's first level has them."""
    plain = [c for c in letters if not "\u4e00" <= c <= "\u9fff"]
    return len(plain) + sum(_first_level(c) for c in letters) >= 0.7 * len(letters)


def _first_level(letter: str) -> bool:
    for name, low, high in (("gb2312", 0xB0, 0xD7), ("big5", 0xA4, 0xC6), ("shift_jis", 0x88, 0x97)):
        try:
            if low <= letter.encode(name)[0] <= high:
                return True
        except UnicodeEncodeError:
            continue
    return False


def lines_of(content: Content, encoding: Encoding, replace: dict[int, str] | None = None) -> Iterator[Line]:
    """Yield (number, text) of every line, blank ones too, without its end; a line with bad bytes is a ``BadLine``.

    With ``replace`` the bytes of such a line become U+FFFD instead, and the reason is kept there by its number.

    Raises:
        UserError: the file cannot be read, or is not in a wide encoding that it was said to be in.
    """
    with content.open() as stream:
        if encoding.name.replace("_", "-").lower().startswith(("utf-16", "utf-32", "utf16", "utf32")):
            yield from _wide_lines(content, encoding)
            return
        for number, raw in enumerate(_split(content.bounded(stream), encoding.ends), start=1):
            line = _line(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw, encoding)
            if replace is not None and isinstance(line, BadLine):
                replace[number] = line.reason
                line = raw.decode(encoding.name, errors="replace")
            yield number, line


def _line(raw: bytes, encoding: Encoding) -> str | BadLine:
    try:
        text = raw.decode(encoding.name)
    except UnicodeDecodeError as error:
        what = "UTF-8" if encoding.name == "utf-8" else encoding.name
        hint = "; set `encoding` if the file has another one" if what == "UTF-8" else ""
        return BadLine(f"not {what} (byte 0x{raw[error.start]:02x} at {error.start}{hint})")
    return text.removesuffix("\r") if encoding.ends == b"\n" else text


def _wide_lines(content: Content, encoding: Encoding) -> Iterator[Line]:
    try:
        text = content.bytes().decode(encoding.name)
    except UnicodeDecodeError as error:
        raise UserError(f"{content.name} starts like {encoding.name.upper()} but is not; save it as UTF-8") from error
    ends = encoding.ends.decode()
    for number, line in enumerate(io.StringIO(text.removeprefix("\ufeff").replace(ends, "\n"), newline="\n"), start=1):
        yield number, line.removesuffix("\n").removesuffix("\r")


def _split(chunks: Iterator[bytes], ends: bytes) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in chunks:
        first, *more = chunk.split(ends)
        rest.append(first)
        for line in more:
            yield b"".join(rest)
            rest = [line]
    if last := b"".join(rest):
        yield last


def whole_text(content: Content, encoding: Encoding) -> tuple[str, dict[int, str]]:
    """All lines joined by line feeds, and what is wrong with those that hold bad bytes, by number.

    Raises:
        UserError: as ``lines_of``.
    """
    bad: dict[int, str] = {}
    text = "\n".join(str(line) for _, line in lines_of(content, encoding, bad))
    return text, bad
