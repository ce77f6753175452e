"""The page of a recipe: a form from its schema, its text, the plan with memory and time, and the start of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import ui

from data.common.errors import UserError
from data.common.redaction import printable
from pipelines.ui import commands, frame, plan_table, recipe_form
from pipelines.ui.recipe_form import Setting
from pipelines.ui.recipe_state import Edited
from pipelines.ui.state import State
from pipelines.workspace.run_folder import is_run

FOUND = 25
"""Settings that a search shows."""
RIGHT = ("steps", "tokens", "memory", "disk", "time")
WAY_BACK = "window.onbeforeunload = %s"


def add(state: State) -> None:
    """Serve the page."""

    @ui.page("/recipe")
    def recipe(file: str = "") -> None:
        with frame.page(file):
            try:
                edited = Edited.of(Path(file).expanduser())
            except UserError as error:
                frame.error(str(error))
                ui.link("Draft a recipe", "/")
                return
            _Page(state, file, edited).build()


class _Page:
    def __init__(self, state: State, name: str, edited: Edited) -> None:
        self.state, self.name, self.edited = state, name, edited
        self.fields: list[_Field] = []
        self.plan: dict[str, Any] | None = None
        self.planned: tuple[str, str] | None = None  # the text and the folder that the plan is of

    def build(self) -> None:
        with ui.grid().classes("w-full gap-4 grid-cols-1 lg:grid-cols-2 items-start"):
            with frame.sheet("Settings"):
                self.build_form()
            with frame.sheet(self.name):
                self.build_text()
        with frame.sheet("Plan"):
            self.folder = ui.input("run folder", value=f"runs/{self.recipe_name()}", on_change=self.show_lines)
            self.folder.classes("w-full run-folder")
            self.plan_button = ui.button("Save and plan", on_click=self.make_plan).props("no-caps")
            self.plan_line = frame.command_line()
            self.plan_view = ui.column().classes("w-full gap-2 plan")
        with frame.sheet("Run"):
            self.start_button = ui.button("Save and start", on_click=self.start).props("no-caps").classes("start")
            self.run_line = frame.command_line()
            self.start_view = ui.column().classes("w-full gap-1")
        self.show()

    def build_form(self) -> None:
        searched = ui.input("search", placeholder="kl coef", on_change=lambda e: self.search(e.value or ""))
        searched.props("dense clearable").classes("w-full search")
        with ui.column().classes("w-full gap-0 form"):
            self.results = ui.column().classes("w-full gap-3")
            with ui.column().classes("w-full gap-0") as self.groups:
                for group, settings in recipe_form.settings().items():
                    self.group(group, settings)

    def build_text(self) -> None:
        self.text = ui.textarea(value=self.edited.text, on_change=lambda e: self.typed(e.value or ""))
        self.text.props("outlined dense debounce=400 spellcheck=false input-style='height: 34rem'")
        self.text.classes("w-full yaml")
        self.problem = ui.label().classes("bad small lines problem")
        with ui.row().classes("items-center gap-3"):
            self.save_button = ui.button("Save", on_click=self.save).props("no-caps outline")
            self.state_of_file = ui.label().classes("small muted")

    def recipe_name(self) -> str:
        return self.edited.recipe.name if self.edited.recipe is not None else "run"

    # -- the form -----------------------------------------------------------------------------------------------------

    def group(self, group: str, settings: Sequence[Setting]) -> None:
        """A group of settings, whose fields are made when it is opened."""
        panel = ui.expansion(group).classes("w-full").props("dense")

        def opened() -> None:
            if panel.value and not panel.default_slot.children:
                with panel, ui.column().classes("w-full gap-3 py-2"):
                    self.fields += [_Field(self, setting) for setting in settings]

        panel.on_value_change(opened)

    def search(self, words: str) -> None:
        """Show the settings that a search finds, in place of the groups."""
        found = recipe_form.named(words)
        self.results.clear()
        self.fields = [field for field in self.fields if not field.searched]
        self.groups.set_visibility(not words.strip())
        with self.results:
            for setting in found[:FOUND]:
                self.fields.append(_Field(self, setting, searched=True))
            if words.strip() and not found:
                ui.label("no setting of that name or meaning").classes("muted small")
            elif len(found) > FOUND:
                ui.label(f"and {len(found) - FOUND} more: search with more words").classes("muted small")

    def show(self) -> None:
        """Show the recipe as it is now, everywhere."""
        for field in self.fields:
            field.show()
        if self.text.value != self.edited.text:
            self.text.set_value(self.edited.text)
        self.problem.set_text(printable(self.edited.problem))
        self.problem.set_visibility(bool(self.edited.problem))
        changed = self.edited.changed
        self.save_button.set_enabled(changed)
        self.state_of_file.set_text("not saved yet" if changed else "saved")
        ui.run_javascript(WAY_BACK % ("() => true" if changed else "null"))
        self.show_lines()

    def show_lines(self) -> None:
        folder = self.folder.value.strip()
        frame.show_line(self.plan_line, commands.plan(self.name, folder))
        frame.show_line(self.run_line, commands.run(self.name, folder))

    def typed(self, text: str) -> None:
        if text != self.edited.text:
            self.edited.rewrite(text)
            self.show()

    def save(self) -> bool:
        """Write the text into its file; False where that is refused, which is said."""
        try:
            self.edited.save(lambda text: ui.notify(text))
        except UserError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return False
        self.show()
        return True

    # -- plan and start -----------------------------------------------------------------------------------------------

    async def make_plan(self) -> bool:
        """Have the plan made and show it; False where the command line refuses the recipe."""
        if not self.save():
            return False
        folder, text = self.folder.value.strip(), self.edited.text
        outcome = await frame.answered(self.plan_button, commands.plan(self.name, folder, as_json=True))
        self.plan = None if outcome.code else outcome.json()
        self.planned = None if outcome.code else (text, folder)
        self.plan_view.clear()
        with self.plan_view:
            if self.plan is None:
                frame.error(outcome.message)
            else:
                _show_plan(self.plan)
        return self.plan is not None

    async def start(self) -> None:
        """Start the run; where results would be replaced, that is said and asked first."""
        self.start_view.clear()
        if not self.save():
            return
        folder = self.folder.value.strip()
        if not folder:
            with self.start_view:
                frame.error("name a run folder, for example runs/mine")
            return
        if is_run(Path(folder)):
            if self.planned != (self.edited.text, folder) and not await self.make_plan():
                return
            replaced = plan_table.replaced(self.plan or {"stages": []})
            if replaced and not await _confirmed(folder, replaced):
                return
        try:
            self.state.children.start(commands.run(self.name, folder), Path(folder))
        except UserError as error:
            with self.start_view:
                frame.error(str(error))
            return
        ui.navigate.to(f"/run?folder={quote(folder)}")


async def _confirmed(folder: str, replaced: Sequence[str]) -> bool:
    with ui.dialog() as dialog, ui.card().classes("sheet"):
        ui.label("Finished stages would run again").classes("title")
        frame.texts(replaced, "small open")
        frame.texts(
            [f"Their results in {folder} are kept as the previous ones. Another run folder keeps both as they are."]
        )
        with ui.row().classes("w-full justify-end"):
            ui.button("Leave them", on_click=lambda: dialog.submit(False)).props("flat no-caps")
            ui.button("Run again", on_click=lambda: dialog.submit(True)).props("no-caps")
    return bool(await dialog)


def _show_plan(plan: dict[str, Any]) -> None:
    ui.label(plan_table.headline(plan)).classes("font-medium lines plan-headline")
    columns = [
        {"name": name, "label": name, "field": name, "align": "right" if name in RIGHT else "left"}
        for name in plan_table.COLUMNS
    ]
    with ui.element("div").classes("wide"):
        ui.table(rows=plan_table.rows(plan), columns=columns, row_key="stage").props("dense flat").classes("w-full")
    frame.texts(plan_table.warnings(plan), "small open")
    if reasons := plan_table.reasons(plan):
        with ui.expansion("what was chosen, and why").classes("w-full small").props("dense"):
            frame.texts(reasons)


class _Field:
    """One setting of the form: its name, a field for its value, what it means, and a way back to its default."""

    def __init__(self, page: _Page, setting: Setting, searched: bool = False) -> None:
        self.page, self.setting, self.searched = page, setting, searched
        with ui.column().classes("w-full gap-0 setting"):
            with ui.row().classes("w-full items-center gap-2 no-wrap"):
                name = ".".join(setting.path if searched or len(setting.path) == 1 else setting.path[1:])
                self.name = ui.label(name).classes("small lines").style("flex: 1 1 50%; min-width: 0")
                self.field = self._field().classes(f"set-{'-'.join(setting.path)}")
                self.field.style("flex: 1 1 50%; min-width: 0")
                self.back = ui.button(icon="undo", on_click=self.reset).props("flat round dense size=sm")
                self.back.tooltip("its default: leave it out of the recipe")
            ui.label(printable(setting.hint())).classes("small muted lines")
            self.wrong = ui.label().classes("small bad lines")
            self.wrong.set_visibility(False)
        self.show()

    def _field(self) -> ui.select | ui.input:
        if self.setting.choices:
            return ui.select([*self.setting.choices], on_change=self.chosen).props("dense outlined options-dense")
        made = ui.input().props("dense outlined")
        return made.on("blur", self.entered).on("keydown.enter", self.entered)

    def show(self) -> None:
        """Show the recipe's value; one that the text names is marked."""
        now = self.page.edited.shown(self.setting)
        if isinstance(self.field, ui.select) and now not in self.setting.choices:
            now = None  # type: ignore[assignment]
        if self.field.value != now:
            self.field.set_value(now)
        written = self.page.edited.written(self.setting.path)
        self.name.classes(add="font-semibold" if written else "", remove="" if written else "font-semibold")
        self.back.classes(add="" if written else "invisible", remove="invisible" if written else "")

    def chosen(self) -> None:
        if self.field.value is not None:
            self.entered()

    def entered(self) -> None:
        """Write the value into the recipe's text, where it differs."""
        text = str(self.field.value or "")
        if text == self.page.edited.shown(self.setting):
            return
        self._try(lambda: self.page.edited.set(self.setting, text))

    def reset(self) -> None:
        self._try(lambda: self.page.edited.reset(self.setting))

    def _try(self, change: Any) -> None:
        self.wrong.set_visibility(False)
        try:
            change()
        except UserError as error:
            self.wrong.set_text(printable(str(error)))
            self.wrong.set_visibility(True)
            return
        self.page.show()
