"""HTML out of text: tags go, blocks become lines, entities become characters; code and unknown tags stay."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from data.odd_characters import TAGS, markup

CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
BLOCKS = re.compile(
    "address|article|aside|blockquote|br|caption|center|dd|details|div|dl|dt|fieldset|figcaption|figure|footer|form|"
    "h[1-6]|header|hr|legend|li|main|nav|ol|p|pre|section|summary|table|tr|ul"
)
SILENT = frozenset(("script", "style", "head", "noscript"))

_NO_TAG = re.compile(rf"<(?!/?(?:{TAGS})(?:\s[^<>]*|/)?>)", re.IGNORECASE)
_DOCTYPE = re.compile(r"<!doctype[^<>]*>", re.IGNORECASE)
_NO_ENTITY = re.compile(r"&(?!#?\w{1,32};)")


class _Text(HTMLParser):
    """The text of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._silent += tag in SILENT
        if BLOCKS.fullmatch(tag):
            self.out.append("\n")
        elif tag in ("td", "th"):
            self.out.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in SILENT and self._silent > 0
        if BLOCKS.fullmatch(tag) and tag not in ("br", "hr"):
            self.out.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.out.append(data)


def without_markup(text: str) -> str:
    """The text without HTML; the same text where it holds none."""
    if not markup(CODE.sub("", text)):
        return text
    parts, last = [], 0
    for code in CODE.finditer(text):
        parts += [_stripped(text[last : code.start()]), code.group()]
        last = code.end()
    return "".join([*parts, _stripped(text[last:])]).strip("\n")


def _stripped(text: str) -> str:
    if not markup(text):
        return text
    parser = _Text()
    text = _DOCTYPE.sub("", _without_comments(text))
    parser.feed(_NO_ENTITY.sub("&amp;", _NO_TAG.sub("&lt;", text)))
    parser.close()
    joined = re.sub(r"[ \t]*\n[ \t]*", "\n", "".join(parser.out))
    return re.sub(r"\n{3,}", "\n\n", joined)


def _without_comments(text: str) -> str:
    """The text without comments that end; one that does not is text."""
    parts, last = [], 0
    while (start := text.find("<!--", last)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        parts.append(text[last:start])
        last = end + 3
    return "".join([*parts, text[last:]])
