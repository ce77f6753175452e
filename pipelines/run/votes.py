"""What a user prefers of two responses, as ranked responses: one JSON line each, in the form that rankings are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.records import Message
from pipelines.workspace.run_folder import check_outside


def vote_row(
    asked: Sequence[Message], responses: Sequence[str], names: Sequence[str], better: int
) -> dict[str, Any] | None:
    """One ranking of two responses.

    Args:
        asked: the conversation that both respond to.
        responses: the two texts.
        names: who gave them.
        better: 0 or 1.

    Returns:
        The row; None where both say the same, which a reward model learns nothing from.
    """
    if responses[0] == responses[1]:
        return None
    return {
        "prompt": [m.as_dict() for m in asked],
        "responses": list(responses),
        "ranks": [0, 1] if better == 0 else [1, 0],
        "systems": list(names),
    }


def append_votes(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rankings to a file, which is made if it is not there.

    Raises:
        UserError: it cannot be written, or lies where a run keeps a stage.
    """
    check_outside(path, "file")
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
