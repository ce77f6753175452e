"""Responses for the page: all of them where they fit, packed; otherwise the extreme ones first.

Packed means gzip in base64, which every browser since 2023 unpacks by itself (``DecompressionStream``). This module
knows nothing of HTML.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

SAMPLES = 20_000  # rows at most; more is no help to a reader
PACKED = 6 * 2**20  # characters of packed responses: with the charts' library the page stays under 10 MB
CLIPPED = 4_000  # characters of a response shown
PER_LIST = 100  # rows kept for each of best, worst and most changed


def chosen_samples(rows: Sequence[dict[str, Any]], most: int = SAMPLES) -> list[dict[str, Any]]:
    """At most ``most`` rows, in order: the best, the worst and the most changed by reward, then the first ones."""
    rows = [r for r in rows if isinstance(r.get("systems"), dict)]
    order = list(range(len(rows)))
    if len(rows) > most:
        scored = [i for i in order if _reward(rows[i]) is not None]
        by_reward = sorted(scored, key=lambda i: _reward(rows[i]) or 0.0)
        by_change = sorted(scored, key=lambda i: -abs(_change(rows[i])))
        per_list = min(PER_LIST, most // 4)
        wanted = dict.fromkeys([*by_reward[-per_list:], *by_reward[:per_list], *by_change[:per_list], *order])
        order = sorted(list(wanted)[:most])
    return [_clipped(rows[i]) for i in order]


def packed_samples(rows: Sequence[dict[str, Any]], budget: int = PACKED) -> tuple[str, int]:
    """``(packed, rows in it)``: as many rows as fit into ``budget`` characters."""
    most = min(len(rows), SAMPLES)
    while True:
        chosen = chosen_samples(rows, most)
        text = packed(dumps(chosen))
        if len(text) <= budget or len(chosen) < 2:
            return text, len(chosen)
        most = max(1, int(0.95 * len(chosen) * budget / len(text)))


def packed(text: str) -> str:
    """gzip in base64; the same text gives the same characters."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode("ascii")


def unpacked(text: str) -> str:
    """What ``packed`` was given."""
    return gzip.decompress(base64.b64decode(text)).decode()


def dumps(value: Any, **_: Any) -> str:
    """JSON for the page: browsers know no NaN."""
    return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reward(row: Mapping[str, Any], system: str = "ppo") -> float | None:
    systems = row["systems"]
    found = systems.get(system) or (list(systems.values())[-1] if systems and system == "ppo" else {})
    return found.get("reward", found.get("gold"))


def _change(row: Mapping[str, Any]) -> float:
    before = _reward(row, "sft")
    return 0.0 if before is None else (_reward(row) or 0.0) - before


def _clipped(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as shown: long texts cut, scores with few digits."""

    def short(value: Any) -> Any:
        if isinstance(value, str) and len(value) > CLIPPED:
            return value[:CLIPPED] + " [...]"
        return round(value, 3) if isinstance(value, float) and math.isfinite(value) else value

    systems = {n: {k: short(v) for k, v in d.items()} for n, d in row["systems"].items()}
    return {k: short(v) for k, v in row.items() if k != "systems"} | {"systems": systems}
