"""``trivet serve-reward``: a run's reward model, or a Python function, as a scorer on loopback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    model = load_scorer(source)

    def by_model(rows: Sequence[Mapping[str, Any]]) -> list[float]:
        asked = [[Message.from_dict(m) for m in row["messages"]] for row in rows]
        return model(asked, [row["completion"] for row in rows], [row["finished"] for row in rows])

    return by_model


def serve(source: str, port: int) -> None:
    """Serve until Ctrl-C."""
    with serving(scorer_of(source), port, source) as address:
        print(MESSAGE.format(source=source, address=address), flush=True)
        until_stopped()
