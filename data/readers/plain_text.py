"""Text files: paragraphs between blank lines, lines, or the file as one text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import dropwhile

from data.readers.decoding import Encoding, Line, lines_of, whole_text
from data.readers.packed import Content
from data.readers.rows import BadLine, Raw, TextUnit


def read_text(content: Content, encoding: Encoding, unit: TextUnit) -> Iterator[Raw]:
    """Yield (place, text); ``auto`` is paragraphs where there is a blank line between two texts, else lines."""
    if unit == "file":
        text, bad = whole_text(content, encoding)
        place = f"{content.name}:{min(bad, default=1)}"
        yield place, BadLine(bad[min(bad)]) if bad else {"text": text.strip()}
        return
    if unit == "auto":
        unit = "paragraph" if _has_gap(lines_of(content, encoding)) else "line"
    lines = (n for n in lines_of(content, encoding) if isinstance(n[1], BadLine) or n[1].strip())
    checked = ((n, BadLine("it holds a NUL character") if "\x00" in str(line) else line) for n, line in lines)
    if unit == "line":
        yield from ((f"{content.name}:{n}", b if isinstance(b, BadLine) else {"text": b}) for n, b in checked)
        return
    yield from _paragraphs(checked, content.name)


def _has_gap(lines: Iterator[Line]) -> bool:
    blank = False
    for _, line in dropwhile(lambda n: isinstance(n[1], str) and not n[1].strip(), lines):
        if isinstance(line, str) and not line.strip():
            blank = True
        elif blank:
            return True
    return False


def _paragraphs(lines: Iterable[Line], name: str) -> Iterator[Raw]:
    start, last = 0, -1
    collected: list[str] = []
    for number, line in lines:
        if collected and (number != last + 1 or isinstance(line, BadLine)):
            yield f"{name}:{start}", {"text": "\n".join(collected)}
            collected = []
        if isinstance(line, BadLine):
            yield f"{name}:{number}", line
            continue
        start = start if collected else number
        collected.append(line)
        last = number
    if collected:
        yield f"{name}:{start}", {"text": "\n".join(collected)}
