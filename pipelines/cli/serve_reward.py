"""``trivet serve-reward``: a run's reward model, or a Python function, as a scorer on loopback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.common.user_functions import load_function
from data.records import Message
from pipelines.cli.exit_codes import until_stopped
from reward.terms.server import Scorer, serving

MESSAGE = """{source} scores at {address}, for this machine only; Ctrl-C ends it. By hand, and in a recipe:

  curl {address} -H "Content-Type: application/json" \\
       -d '{{"rows": [{{"prompt": "hello", "completion": "hello to you"}}]}}'

  ppo:
    reward: [{{source: "{address}"}}]
"""


class ByModel:
    """Scores rows by a model, and says which of them its limit cuts.

    Args:
        score: from conversations, responses and whether they ended to one number each.
    """

    def __init__(self, score: Callable[[Any, Any, Any], list[float]]) -> None:
        self.score = score

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        return self.score(*_columns(rows))

    def with_cuts(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[int]]:
        """The scores, and the rows (from 0) of which only a part is scored."""
        of_model = getattr(self.score, "with_cuts", None)
        return (self(rows), []) if of_model is None else of_model(*_columns(rows))


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[Message]], list[str], list[bool]]:
    asked = [[Message.from_dict(m) for m in row["messages"]] for row in rows]
    return asked, [row["completion"] for row in rows], [row["finished"] for row in rows]


def scorer_of(source: str) -> Scorer:
    """What gives the scores: ``file.py:function`` or ``package.module:function``, else a run or a reward model.

    Raises:
        UserError: neither can be loaded.
    """
    if ":" in source and not Path(source).exists():
        function = load_function(source, Path.cwd())
        function.check(("prompts", "completions", "finished", "messages"))

        def by_function(rows: Sequence[Mapping[str, Any]]) -> list[float]:
            columns = {name: [row[name] for row in rows] for name in ("finished", "messages")}
            return function.call([r["prompt"] for r in rows], [r["completion"] for r in rows], **columns)

        return by_function
    from pipelines.run.score import load_scorer

    return ByModel(load_scorer(source))


def serve(source: str, port: int) -> None:
    """Serve until Ctrl-C."""
    with serving(scorer_of(source), port, source) as address:
        print(MESSAGE.format(source=source, address=address), flush=True)
        until_stopped()
