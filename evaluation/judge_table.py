"""JUDGES: an entry a kind of pair judge, by name. The recipe is checked against it. Light: imports no judge.

Gold and the reward model score single responses and come first (``evaluation.results``); these compare two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data.common.tables import late


class Comparing(Protocol):
    """A judge of pairs of responses."""

    def outcomes(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Sequence[float]:
        """1 where the first response is better, 0 where the second is, 1/2 where neither is; one a row."""

    def report(self) -> tuple[dict[str, Any], list[str]]:
        """Numbers for ``results.json`` on the rows since the last report, and warnings; both may be empty."""


def _nothing_wrong(config: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A kind of judge: ``make(config, folder, say)`` of a ``JudgeConfig`` gives a ``Comparing``.

    ``folder`` is where it may keep verdicts (None: nowhere), ``say`` prints a line. ``settings``: keys of
    ``JudgeConfig`` that belong to it alone; ``check`` raises ValueError where they are wrong.
    """

    make: Callable[..., Any]
    settings: tuple[str, ...] = ()
    check: Callable[[Any], None] = _nothing_wrong


def _check_chat(config: Any) -> None:
    if missing := [f"`{key}`" for key in ("url", "model") if not getattr(config, key)]:
        raise ValueError(f"a judge of kind 'chat' needs {' and '.join(missing)}")


JUDGES: dict[str, Judge] = {
    "chat": Judge(
        make=late("evaluation.judges.pair_judge:chat_judge"),
        settings=(
            "url",
            "model",
            "token_env",
            "instruction",
            "temperature",
            "max_tokens",
            "timeout",
            "retries",
            "concurrency",
            "requests_per_minute",
        ),
        check=_check_chat,
    ),
}
