"""What every generated page begins with, and text as it may stand in a table."""

from __future__ import annotations

NOTE = "<!-- Written by `make reference` from the code; do not edit. -->\n"


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
