"""The first page: base and data, the doctor's verdict at once, and a drafted recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from nicegui import run, ui

from data.common.errors import UserError
from data.common.redaction import printable
from models.hub.registry import list_models, resolve_base
from pipelines.init.machines import COMMON
from pipelines.ui import commands, frame
from pipelines.ui.browse import browse
from pipelines.ui.data_verdict import PARTS, Verdict, verdicts
from pipelines.ui.state import State

SCRATCH = "scratch"
AS_ROWS_SAY = ""
USES = {AS_ROWS_SAY: "as its rows say"} | {part: f"{part} ({use})" for part, use in PARTS.items()}


@dataclass
class Start:
    """What is chosen on the page; files with the part of the data that each is."""

    base: str = ""
    files: dict[str, str] = field(default_factory=dict)
    machine: str = "here"
    held_out: str = ""
    out: str = "mine.yaml"
    replace: bool = False
    found: dict[str, Verdict] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """The command line of the draft."""
        return commands.draft(self.files, self.base, self.machine, self.out, self.held_out, self.replace)


def about_base(name: str) -> str:
    """What a base is, in a line.

    Raises:
        UserError: there is none of that name.
    """
    if name == SCRATCH:
        return "a small base of its own, which the run pretrains on your documents"
    spec = resolve_base(name, base_dir=Path.cwd())
    return " · ".join(filter(None, [spec.source, spec.note, f"licence: {spec.licence}"]))


def add(state: State) -> None:
    """Serve the page."""

    @ui.page("/")
    def start() -> None:
        chosen = Start()
        with frame.page("New run", "/"):
            with frame.sheet("A recipe that is there"), ui.row().classes("w-full items-center gap-3"):
                there = ui.input("recipe (YAML)", placeholder="examples/demo.yaml").classes("grow").props("dense")
                ui.button("Open", on_click=lambda: open_recipe(there.value)).props("outline no-caps")
            _Page(chosen).build()


def open_recipe(file: str) -> None:
    """Go to the page of a recipe."""
    if not file.strip():
        ui.notify("name a recipe, for example mine.yaml", type="warning")
    elif not Path(file.strip()).expanduser().is_file():
        ui.notify(f"{file}: no such file", type="negative")
    else:
        ui.navigate.to(f"/recipe?file={quote(file.strip())}")


class _Page:
    def __init__(self, chosen: Start) -> None:
        self.chosen, self.problem = chosen, ""

    def build(self) -> None:
        with frame.sheet("1 · Base"):
            names = [*(spec.name for spec in list_models()), SCRATCH]
            with ui.row().classes("w-full items-center gap-3 no-wrap"):
                self.base = ui.input("base", placeholder="a name, a folder, a hub id, or scratch", autocomplete=names)
                self.base.classes("grow base-input").on("blur", self.base_named).on("keydown.enter", self.base_named)
                ui.button(icon="folder_open", on_click=self.browse_base).props("flat round").tooltip("choose a folder")
            self.about_base = ui.label().classes("small lines muted about-base")
            self.base_line = frame.command_line()
        with frame.sheet("2 · Data"):
            with ui.row().classes("w-full items-center gap-3 no-wrap"):
                self.file = ui.input("data file", placeholder="instructions.jsonl").classes("grow file-input")
                self.file.on("keydown.enter", self.add_file)
                ui.button(icon="folder_open", on_click=self.browse_file).props("flat round").tooltip("choose a file")
                self.add_button = ui.button("Add", on_click=self.add_file).props("no-caps")
            self.files = ui.column().classes("w-full gap-3")
            self.check_line = frame.command_line()
        with frame.sheet("3 · Recipe"):
            with ui.row().classes("w-full items-center gap-4"):
                self.machine = ui.select(list(COMMON), label="machine", value="here", on_change=self.changed)
                self.machine.classes("w-32").tooltip("here: this machine; or cards x memory of one")
                self.held_out = ui.input("held out", placeholder="share or file", on_change=self.changed)
                self.held_out.classes("w-32").tooltip("what no stage is trained on; empty: by the number of rows")
                self.out = ui.input("write it to", value=self.chosen.out, on_change=self.changed)
                self.out.classes("grow out-input")
            self.replace = ui.checkbox("replace a recipe that is there (it is kept as the previous one)")
            self.replace.on_value_change(self.changed).classes("small")
            self.draft_button = ui.button("Draft the recipe", on_click=self.draft).props("no-caps").classes("draft")
            self.draft_line = frame.command_line()
            self.drafted = ui.column().classes("w-full gap-1")
        self.changed()

    def changed(self) -> None:
        """Show the lines of what is chosen now."""
        chosen = self.chosen
        chosen.base, chosen.out = self.base.value.strip(), self.out.value.strip()
        chosen.machine, chosen.held_out, chosen.replace = self.machine.value, self.held_out.value, self.replace.value
        frame.show_line(self.base_line, ["models", self.chosen.base] if self.chosen.base not in ("", SCRATCH) else "")
        frame.show_line(self.check_line, commands.check([*self.chosen.files]) if self.chosen.files else "")
        frame.show_line(self.draft_line, self.chosen.arguments if self.chosen.files and self.chosen.base else "")

    # -- the base -----------------------------------------------------------------------------------------------------

    def browse_base(self) -> None:
        browse(self.named_base, folders=True)

    def named_base(self, path: str) -> None:
        self.base.set_value(path)
        self.base_named()

    def base_named(self) -> None:
        name = self.base.value.strip()
        self.about_base.classes(remove="bad muted")
        if name:
            try:
                self.about_base.set_text(printable(about_base(name)))
                self.about_base.classes("muted")
            except UserError as error:
                self.about_base.set_text(printable(str(error)))
                self.about_base.classes("bad")
        else:
            self.about_base.set_text("")
        self.changed()

    # -- the data -----------------------------------------------------------------------------------------------------

    def browse_file(self) -> None:
        browse(self.named_file)

    async def named_file(self, path: str) -> None:
        self.file.set_value(path)
        await self.add_file()

    async def add_file(self) -> None:
        """Add a file and ask the doctor about all of them, who also compares them."""
        name = self.file.value.strip()
        if not name:
            return
        if name in self.chosen.files:
            ui.notify(f"{name}: is there already", type="warning")
            return
        if await self.examine([*self.chosen.files, name]):
            self.chosen.files[name] = AS_ROWS_SAY
            self.file.set_value("")
        self.show_files()

    async def examine(self, names: list[str]) -> bool:
        """The doctor's verdict on some files; False where one cannot be read, which is said."""
        self.problem = ""
        if not names:
            self.chosen.found = {}
            return True
        outcome = await frame.answered(self.add_button, commands.check(names, as_json=True))
        if outcome.code:
            self.problem = outcome.message
            return False
        found = await run.io_bound(lambda: verdicts(outcome.json()))
        self.chosen.found = dict(zip(names, found or [], strict=True))
        return True

    async def remove(self, name: str) -> None:
        del self.chosen.files[name]
        await self.examine([*self.chosen.files])
        self.show_files()

    def use(self, name: str, part: str) -> None:
        self.chosen.files[name] = part
        self.changed()

    def show_files(self) -> None:
        """Every file with its verdict."""
        self.files.clear()
        with self.files:
            for name, part in self.chosen.files.items():
                self.show_file(name, part, self.chosen.found[name])
            if self.problem:
                frame.error(self.problem)
        self.changed()

    def show_file(self, name: str, part: str, found: Verdict) -> None:
        with ui.column().classes("w-full gap-1 verdict"):
            with ui.row().classes("w-full items-center gap-2"):
                icon, tone = ("check_circle", "good") if found.good else ("warning_amber", "open")
                ui.icon(icon).classes(f"{tone} text-lg")
                ui.label(printable(name)).classes("font-medium lines")
                ui.label(found.headline).classes("muted small")
                ui.space()
                ui.select(USES, value=part, on_change=lambda e: self.use(name, e.value)).props(
                    "dense options-dense borderless"
                ).classes("w-56").tooltip("what the file is used for")
                ui.button(icon="close", on_click=lambda: self.remove(name)).props("flat round dense").tooltip(
                    "leave the file out"
                )
            frame.texts(found.facts)
            frame.texts(found.doubts, "small open")

    # -- the recipe ---------------------------------------------------------------------------------------------------

    async def draft(self) -> None:
        """Have the recipe written, and go to its page."""
        self.changed()
        self.drafted.clear()
        if not self.chosen.files or not self.chosen.base:
            with self.drafted:
                frame.error("choose a base and at least one data file first")
            return
        outcome = await frame.answered(self.draft_button, self.chosen.arguments)
        with self.drafted:
            if outcome.code:
                frame.error(outcome.message)
                return
            frame.texts(outcome.out.splitlines(), "small muted")
        ui.navigate.to(f"/recipe?file={quote(self.chosen.out.strip())}")
