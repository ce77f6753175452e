"""Every format that is recognised, by name; where two read equally many columns of a row, the first is taken."""

from __future__ import annotations

from data.formats.chat import CHAT
from data.formats.duels import DUELS
from data.formats.dumps import DUMPS
from data.formats.instructions import INSTRUCTIONS
from data.formats.multiple_choice import MULTIPLE_CHOICE
from data.formats.preferences import PREFERENCES
from data.formats.rankings import RANKINGS
from data.formats.rows import Format
from data.formats.sides import PAIRS
from data.formats.texts import TEXTS
from data.formats.trees import TREES

FORMATS: dict[str, Format] = (
    TREES | RANKINGS | DUELS | PREFERENCES | PAIRS | CHAT | DUMPS | INSTRUCTIONS | MULTIPLE_CHOICE | TEXTS
)

COMMON = ("prompt and completion", "preference", "ranked answers", "messages", "sharegpt", "alpaca", "prompts", "text")
"""Those that messages name."""


def known_formats() -> str:
    """The columns of the common formats, and how many others there are."""
    shown = "; ".join(FORMATS[name].columns for name in COMMON if name in FORMATS)
    return f"{shown}; and {len(FORMATS) - len(COMMON)} others (docs/reference/formats.md)"
