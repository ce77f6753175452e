"""A recipe while it is changed on a page: its text, what is wrong with it, and what it says of every setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from models.backbone.artifacts import check_destination, replace_text
from pipelines.loading.checks import AMOUNTS
from pipelines.loading.load import load_text
from pipelines.recipe.schema import Recipe
from pipelines.recipe.yaml_source import read_text
from pipelines.ui.recipe_form import Setting
from pipelines.ui.recipe_text import with_value, without
from pipelines.workspace.run_folder import check_outside

BY_DATA = "auto"
"""What the form shows of a setting that follows from the data; the plan says what it comes to."""


@dataclass
class Edited:
    """The text of a recipe that may differ from its file.

    Attributes:
        file: the recipe.
        text: as it is on the page.
        saved: as it was in the file when it was read or written last.
        recipe: of the newest text that is one.
        problem: why the text is none, as ``trivet plan`` says it; '' where it is.
    """

    file: Path
    text: str
    saved: str
    recipe: Recipe | None = None
    problem: str = ""

    @classmethod
    def of(cls, file: Path) -> Edited:
        """A recipe's file.

        Raises:
            UserError: there is none, or it is no text.
        """
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})"
            ) from error
        found = cls(file=file, text=text, saved=text)
        found.rewrite(text)
        return found

    @property
    def changed(self) -> bool:
        """Whether the file says something else."""
        return self.text != self.saved

    def rewrite(self, text: str) -> None:
        """Take another text, as somebody typed it."""
        self.text, self.problem = text, ""
        try:
            self.recipe = load_text(text, self.file)
        except UserError as error:
            self.problem = str(error)

    def set(self, setting: Setting, text: str) -> None:
        """Write one setting into the text.

        Raises:
            UserError: no value, or the text has a form that only a person can change.
        """
        self.rewrite(with_value(self.text, setting.path, setting.value(text)))

    def reset(self, setting: Setting) -> None:
        """Take one setting out of the text, so that it has its default.

        Raises:
            UserError: the text has a form that only a person can change.
        """
        self.rewrite(without(self.text, setting.path))

    def shown(self, setting: Setting) -> str:
        """The value of a setting as the form shows it."""
        if setting.dotted in AMOUNTS and not self.written(setting.path):
            return BY_DATA
        return "" if self.recipe is None else setting.text(self.recipe)

    def written(self, path: Sequence[str]) -> bool:
        """Whether the text names a setting."""
        try:
            here: Any = read_text(self.text, str(self.file)).data
        except UserError:
            return False
        for key in path:
            if not isinstance(here, dict) or key not in here:
                return False
            here = here[key]
        return True

    def save(self, say: Callable[[str], None]) -> None:
        """Write the text into the file; the one before is kept as the previous one, which ``say`` reports.

        Raises:
            UserError: somebody else has changed the file since it was read, or it cannot be written.
        """
        if not self.changed:
            return
        check_destination(self.file, "name")
        check_outside(self.file, "name")
        if self.file.is_file() and self.file.read_text(encoding="utf-8", errors="replace") != self.saved:
            raise UserError(f"{self.file}: was changed by somebody else since it was opened here; open it again")
        replace_text(self.file, self.text, say)
        self.saved = self.text
