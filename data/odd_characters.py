"""Characters that nobody sees and HTML in text: what is found of them, and what cleaning removes."""

from __future__ import annotations

import re

import regex

_JOINED = r"\p{M}\p{Arabic}\p{Syriac}\p{Mongolian}\p{Nko}\p{Devanagari}\p{Bengali}\p{Gurmukhi}\p{Gujarati}\p{Oriya}" + (
    r"\p{Tamil}\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Khmer}\p{Myanmar}\p{Tibetan}"
)
"""Letters between which a (non-)joiner changes what is read."""
_EMOJI = r"\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f"

CONTROL = regex.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]|\p{Cs}")
"""Control characters but white space, terminal colours, lone surrogates and codes that are no character."""
LINE_ENDS = regex.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
ZERO_WIDTH = regex.compile(
    r"[\u00ad\u200b\u2060-\u2064\ufeff\u180e\u202d\u202e]"
    rf"|(?<![{_JOINED}])\u200c|(?<![{_JOINED}{_EMOJI}\U000e0020-\U000e007f])\u200d"
    r"|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+"
)
"""Characters without width that mean nothing where they stand.

Joiners stay in emoji and in scripts whose letters they join or part, tags behind a flag, and marks of direction
everywhere but overrides, which make text read otherwise than it is written.
"""

_SUSPECT = re.compile(r"[\u00ad\u180e\u200b-\u200d\u202d\u202e\u2060-\u2064\ufeff\U000e0000-\U000e007f]")

TAGS = (
    "a|abbr|address|article|aside|audio|b|blockquote|body|br|button|caption|center|cite|code|col|dd|del|details|div|dl|"
    "dt|em|fieldset|figcaption|figure|font|footer|form|h1|h2|h3|h4|h5|h6|head|header|hr|html|i|iframe|img|input|ins|kbd|"
    "label|legend|li|link|main|map|mark|meta|nav|noscript|object|ol|option|p|param|picture|pre|q|s|samp|script|section|"
    "select|small|source|span|strike|strong|style|sub|summary|sup|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|"
    "tt|u|ul|var|video|wbr"
)
"""HTML's elements. Others, such as ``<think>`` or ``<tool_call>``, are text."""

MARKUP = regex.compile(
    rf"</?(?:{TAGS})(?:\s[^<>]*|/)?>|<!--|<!doctype|&(?:amp|lt|gt|nbsp|quot|apos|#\d{{1,7}}|#x[\da-f]{{1,6}});",
    regex.IGNORECASE,
)


def invisible(text: str) -> bool:
    """Whether a text has a control or zero-width character that means nothing."""
    if text.isascii():
        return not text.isprintable() and CONTROL.search(text) is not None
    return CONTROL.search(text) is not None or (_SUSPECT.search(text) and ZERO_WIDTH.search(text)) is not None


def markup(text: str) -> bool:
    """Whether a text holds HTML's tags or entities."""
    return ("<" in text or "&" in text) and MARKUP.search(text) is not None
