"""The generated pages of the reference, from the code: ``python docs/generate.py`` writes them, a test compares them.

What a setting, option or function is called, takes and means stands in the code alone; nothing is said twice by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from docs.cli_page import cli_page  # noqa: E402
from docs.exports_page import exports_page  # noqa: E402
from docs.families_page import families_page  # noqa: E402
from docs.formats_page import formats_page  # noqa: E402
from docs.methods_page import methods_page  # noqa: E402
from docs.page_parts import NOTE  # noqa: E402
from docs.python_page import python_page  # noqa: E402
from docs.recipe_pages import recipe_page, recipe_schema  # noqa: E402

FOLDER = ROOT / "docs" / "reference"


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    schema = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    return {
        "recipe.md": recipe_page(),
        "recipe.schema.json": schema,
        "cli.md": cli_page(),
        "python.md": python_page(),
        "formats.md": formats_page(),
        "methods.md": methods_page(),
        "families.md": families_page(NOTE),
        "exports.md": exports_page(NOTE),
    }


def main() -> None:
    """Write every page, and name its file."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
