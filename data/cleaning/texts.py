"""One text, cleaned step by step, with the names of the steps that changed it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

from data.cleaning.markup import without_markup
from data.cleaning.masks import check_libraries, library, masked
from data.cleaning.settings import CleanConfig
from data.odd_characters import CONTROL, LINE_ENDS, ZERO_WIDTH

Step = tuple[str, Callable[[str], str]]


class TextCleaner:
    """What the settings do to a text.

    Raises:
        UserError: a library that a setting needs is not installed.
    """

    def __init__(self, config: CleanConfig) -> None:
        self._steps: list[Step] = []
        if config.mojibake:
            self._steps.append(("mojibake mended", library("ftfy", "data.clean.mojibake").fix_encoding))
        if config.markup:
            self._steps.append(("markup removed", without_markup))
        if config.control:
            self._steps.append(("control and zero-width characters removed", without_invisible))
        if form := config.unicode:  # behind what puts characters side by side
            normal: Any = form.upper()
            self._steps.append((f"unicode in {normal}", lambda text: unicodedata.normalize(normal, text)))
        check_libraries(config.mask)
        self._mask, self._region = config.mask, config.phone_region

    def __call__(self, text: str) -> tuple[str, tuple[str, ...]]:
        """The clean text, and what was done to it."""
        done = []
        for name, step in self._steps:
            if (clean := step(text)) != text:
                text = clean
                done.append(name)
        if self._mask:
            text, counts = masked(text, self._mask, self._region)
            done += [f"{kind} masked" for kind in counts]
        return text, tuple(done)

    def everywhere(self, value: Any) -> tuple[Any, tuple[str, ...]]:
        """A value with every text in it cleaned, however deep; names stay as they are."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, list | tuple):
            pairs = [self.everywhere(one) for one in value]
            return type(value)(one for one, _ in pairs), tuple(name for _, done in pairs for name in done)
        if isinstance(value, dict):
            found = {key: self.everywhere(one) for key, one in value.items()}
            return {key: one for key, (one, _) in found.items()}, tuple(n for _, done in found.values() for n in done)
        return value, ()


def without_invisible(text: str) -> str:
    """The text without control and zero-width characters that mean nothing where they stand; line ends as \\n."""
    return ZERO_WIDTH.sub("", CONTROL.sub("", LINE_ENDS.sub("\n", text)))
