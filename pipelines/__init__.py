"""Recipes, the stage table, the runner, the report and the command line.

``from pipelines import Pipeline`` imports torch when it is asked for, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trivet_names import refuse_clashes

if TYPE_CHECKING:
    from pipelines.run.pipeline import Pipeline

__all__ = ["Pipeline"]

refuse_clashes("pipelines")


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from pipelines.run.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'pipelines' has no attribute '{name}'")
