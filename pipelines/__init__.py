"""Recipes, the stage table, the runner, the report and the command line.

``from pipelines import Pipeline`` imports torch when it is asked for, and not before.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.run.pipeline import Pipeline

__all__ = ["Pipeline"]
OTHER_PACKAGES = ("data", "models", "reward", "stages", "evaluation")


def refuse_clashes(root: Path, names: tuple[str, ...] = OTHER_PACKAGES) -> None:
    """Say at once that a file or folder of the user's stands where trivet's package of that name should be.

    Args:
        root: the folder of trivet's packages.
        names: packages that are checked.

    Raises:
        ImportError: names the file or folder, and what to do.
    """
    for name in names:
        try:
            spec = find_spec(name)
        except ValueError:  # a module that was made by hand
            spec = None
        places = [spec.origin] if spec and spec.origin else list((spec and spec.submodule_search_locations) or ())
        found = [Path(place) for place in places]
        ours = root / name / "__init__.py"
        if found and not any(place.resolve() == ours.resolve() for place in found):
            raise ImportError(
                f"{found[0]} hides trivet's package '{name}': Python finds it first. Rename it, start the script from "
                "another folder, or use the command `trivet`, which is not disturbed by it.",
                name="pipelines",
            )


refuse_clashes(Path(__file__).resolve().parent.parent)


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from pipelines.run.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'pipelines' has no attribute '{name}'")
