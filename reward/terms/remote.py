"""A reward that another process or machine gives, over HTTP; and what both sides of our own protocol agree on.

trivet's protocol: ``POST {"rows": [{"prompt", "completion", "messages", "finished"}, ...]}`` is answered with
``{"scores": [number, ...]}``, one finite number a row in the same order. ``classify`` is the classifier endpoint of
OpenAI-compatible servers (vLLM's ``/classify`` and ``/pooling``): ``{"model", "input": [text, ...]}`` is answered with
``{"data": [{"index", "probs": [...]}, ...]}`` (or ``"data": [...]`` in place of ``probs``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.common.http_client import Server, Unusable
from reward.model import Samples
from reward.settings import RemoteConfig


def rows_of(samples: Samples) -> list[dict[str, Any]]:
    """What a server is sent of each response."""
    return [
        {
            "prompt": prompt.text,
            "completion": text,
            "messages": [m.as_dict() for m in prompt.messages],
            "finished": bool(finished),
        }
        for prompt, text, finished in zip(samples.prompts, samples.texts, samples.finished, strict=True)
    ]


class RemoteReward:
    """Asks ``url`` for the scores of ``config.batch`` responses at a time, several requests at once.

    Raises:
        UserError: (at once) an address or token that cannot be used.
        RemoteError: (when called) no usable answer after all retries.
    """

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.config = config
        self.server = Server.of(url, config)

    def __call__(self, samples: Samples) -> Tensor:
        rows, each = rows_of(samples), self.config.batch
        parts = self.server.post_all([rows[i : i + each] for i in range(0, len(rows), each)], self._ask)
        return torch.tensor([s for part in parts for s in part], dtype=torch.float32)

    def _ask(self, rows: list[dict[str, Any]]) -> list[float]:
        if self.config.protocol == "trivet":
            return self.server.post({"rows": rows}, lambda answer: scores_in(answer, len(rows)))
        body = {"input": [plain(row) for row in rows]} | ({"model": self.config.model} if self.config.model else {})
        return self.server.post(body, lambda answer: classes_in(answer, len(rows), self.config.index))


def plain(row: dict[str, Any]) -> str:
    """A conversation as text, for servers that know no roles: the turns and the response, separated by empty lines."""
    return "\n\n".join([*(m["content"] for m in row["messages"]), row["completion"]])


def scores_in(answer: Any, count: int) -> list[float]:
    """The scores of an answer in our protocol.

    Raises:
        Unusable: it is of another shape, or not one finite number a row.
    """
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise Unusable('its answer is no object with "scores"')
    return finite(scores, count)


def classes_in(answer: Any, count: int, index: int) -> list[float]:
    """One class's number for each row of a classifier's answer, in the order of ``index``."""
    found = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise Unusable('its answer is no object with "data", a list of objects')
    ordered = sorted(enumerate(found), key=lambda at: _place(at[1].get("index", at[0])))
    values = []
    for _, row in ordered:
        numbers = row.get("probs", row.get("data"))
        if not isinstance(numbers, list) or len(numbers) <= index:
            raise Unusable(f'a row of its answer has no number {index} in "probs"')
        values.append(numbers[index])
    return finite(values, count)


def _place(index: Any) -> int:
    if not isinstance(index, int):
        raise Unusable('"index" of a row is no whole number')
    return index


def finite(values: Sequence[Any], count: int) -> list[float]:
    """The values as floats.

    Raises:
        Unusable: another number of them, or one that is no finite number.
    """
    if len(values) != count:
        raise Unusable(f"it gave {len(values)} scores for {count} responses")
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Unusable(f"score {i} is {str(value)[:40]!r}, not a finite number")
    return [float(v) for v in values]
