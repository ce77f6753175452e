"""What a finished stage of a run showed, in a few words."""

from __future__ import annotations

from pathlib import Path

from data.common.errors import UserError
from data.common.strict_json import read_object
from models.backbone.artifacts import read_artifact
from pipelines.report.outdated import outdated
from pipelines.report.words import Words
from pipelines.stages.table import folders


def verdict(run: Path, stage: str) -> str:
    """What a finished stage showed, in a few words; '' where it says nothing."""
    try:
        if stage == "evaluate":
            results = read_object(run / folders()[stage] / "results.json")
            words = Words(results=results, card={}, gate=None, command="", seed=None)
            found, doubt = words.main, words.judged_by
            of_before = "of other models than are there now: " if stage in outdated(run) else ""
            return f"{of_before}{found['a']} against {found['b']}: {found['verdict_text']}{doubt}" if found else ""
        made = read_artifact(run / folders()[stage])
        accuracy = made.metrics.get("pair_accuracy") if made and stage == "reward" else None
        return f"orders {accuracy:.0%} of the held-out pairs" if accuracy is not None else ""
    except (UserError, KeyError, TypeError, ValueError, AttributeError):  # nothing, or results from a third party
        return ""
