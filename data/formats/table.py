"""Every format that is recognised, by name; where two read equally many columns of a row, the first is taken."""

from __future__ import annotations

from data.formats.chat import CHAT
from data.formats.duels import DUELS
from data.formats.instructions import INSTRUCTIONS
from data.formats.preferences import PREFERENCES
from data.formats.rankings import RANKINGS
from data.formats.rows import Format
from data.formats.texts import TEXTS
from data.formats.trees import TREES

FORMATS: dict[str, Format] = {**TREES, **RANKINGS, **DUELS, **PREFERENCES, **CHAT, **INSTRUCTIONS, **TEXTS}
