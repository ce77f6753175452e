"""Numbers of the report as text. What is no number is an empty text, never an error."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any) -> str:
    """Three significant digits, thousands separated; nothing for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def signed(value: Any) -> str:
    """``number`` with its sign in front."""
    found = number(value)
    return f"+{found}" if found and value > 0 else found


def percent(value: Any) -> str:
    return f"{100 * value:.0f} %" if isinstance(value, int | float) and math.isfinite(value) else ""


def interval(ci: Any, factor: float = 1, digits: int = 2) -> str:
    """``[low, high]``, or nothing."""
    if not isinstance(ci, list | tuple) or len(ci) != 2 or None in ci:
        return ""
    return f"[{factor * ci[0]:.{digits}f}, {factor * ci[1]:.{digits}f}]"


def p_value(p: Any) -> str:
    return "" if not isinstance(p, int | float) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float, digits: int = 0) -> str:
    """``12 s``, ``3 min 20 s`` or ``2 h 05 min``; ``digits`` of seconds below a minute."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.{digits}f} s"


def shown(value: Any) -> str:
    """Any JSON value on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{str(k).replace('_', ' ')} {shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(shown(v) for v in value) + "]"
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def size(count: float) -> str:
    """``812 B``, ``3.4 MB``: powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
