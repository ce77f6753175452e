"""Rows as people have them to one neutral shape: a table of formats, one small function each.

A format is chosen by all of a row's columns; a column that it would lose is named (``Unread``), and a row that it
cannot read raises ``Reject`` with the reason. Knows nothing of files, records or splits (see ``derive.py``).
"""

from data.formats.parsing import ASKED, hint, parse
from data.formats.ranking import MAX_ANSWERS
from data.formats.reading import names_a_format
from data.formats.rows import BOTH_BAD, DUPLICATE, MERGED, UNRANKED, Format, Near, NoFormat, Reject, Row, Unread
from data.formats.table import FORMATS, known_formats
from data.formats.trees import assembled
from data.readers.rows import CELLS

__all__ = [
    "ASKED",
    "BOTH_BAD",
    "CELLS",
    "DUPLICATE",
    "FORMATS",
    "MAX_ANSWERS",
    "MERGED",
    "UNRANKED",
    "Format",
    "Near",
    "NoFormat",
    "Reject",
    "Row",
    "Unread",
    "assembled",
    "hint",
    "known_formats",
    "names_a_format",
    "parse",
]
