"""A dialog to choose a file or folder of this machine by its name; nothing is read but names."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import ui

MAX_NAMES = 500


def entries(folder: Path, folders_alone: bool = False) -> list[tuple[str, bool]]:
    """``(name, is a folder)`` of what is in a folder, folders first; hidden ones are left out."""
    try:
        found = [(one.name, one.is_dir()) for one in os.scandir(folder) if not one.name.startswith(".")]
    except OSError:
        return []
    shown = [one for one in found if one[1] or not folders_alone]
    return sorted(shown, key=lambda one: (not one[1], one[0].lower()))[:MAX_NAMES]


def as_named(path: Path) -> str:
    """A path as a person would write it: relative where it lies below the working folder."""
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)


def browse(chosen: Callable[[str], Any], folders: bool = False) -> None:
    """Open the dialog.

    Args:
        chosen: is given the path.
        folders: whether a folder is wanted, not a file.
    """
    with ui.dialog() as dialog, ui.card().classes("sheet"):
        where = ui.label().classes("small muted lines")
        rows = ui.list().props("dense").classes("w-full overflow-auto").style("max-height: 60vh")
        with ui.row().classes("w-full justify-end"):
            ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
            take = ui.button("Take this folder").props("no-caps")
            take.set_visibility(folders)
    here = [Path.cwd()]

    async def done(path: Path) -> None:
        dialog.close()
        found = chosen(as_named(path))
        if found is not None:
            await found

    async def entered(path: Path) -> None:
        if path.is_dir():
            here[0] = path
            show()
        else:
            await done(path)

    def show() -> None:
        where.set_text(str(here[0]))
        rows.clear()
        with rows:
            _row("..", True, lambda: entered(here[0].parent))
            for name, is_folder in entries(here[0], folders):
                _row(name, is_folder, partial(entered, here[0] / name))

    take.on_click(lambda: done(here[0]))
    show()
    dialog.open()


def _row(name: str, is_folder: bool, clicked: Callable[[], Any]) -> None:
    with ui.item(on_click=clicked), ui.row().classes("items-center gap-2 no-wrap"):
        ui.icon("folder" if is_folder else "description").classes("muted")
        ui.label(name).classes("lines")
