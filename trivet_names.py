"""Says at once that a file or folder of the user's stands where one of trivet's packages should be.

It lies outside the packages, so that it is found where one of them is not.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGES = ("data", "models", "reward", "stages", "evaluation")


def refuse_clashes(importer: str, names: tuple[str, ...] = PACKAGES, root: Path = ROOT) -> None:
    """Compare where Python finds packages with where they belong.

    Args:
        importer: the package that is being imported.
        names: packages that are checked.
        root: the folder of trivet's packages.

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
                name=importer,
            )
