"""The page of all runs in a folder, as ``trivet ls`` has them, and their comparison on one page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

from fastapi import Response
from nicegui import app, run, ui

from data.common.number_format import duration
from data.common.redaction import printable
from pipelines.ui import commands, frame
from pipelines.ui.children import Children
from pipelines.ui.following import Listed, runs_in
from pipelines.ui.page_run import page_response
from pipelines.ui.state import State

COMPARISON = "comparison.html"


def add(state: State) -> None:
    """Serve the page, and the comparisons that were written from it."""
    written: dict[str, Path] = {}

    @app.get("/comparison")
    def comparison(page: str) -> Response:
        try:
            return page_response(written[page].read_text(encoding="utf-8"))
        except (KeyError, OSError):
            text = f"{page}: no comparison was written there from this page"
            return page_response(f"<!doctype html><p>{escape(printable(text))}</p>", 404)

    @ui.page("/runs")
    def runs(folder: str = "runs") -> None:
        with frame.page("Runs", "/runs"):
            page = _Page(state.children, folder, written)
            page.build()
            ui.timer(0, page.show, once=True)


class _Page:
    def __init__(self, children: Children, folder: str, written: dict[str, Path]) -> None:
        self.children, self.folder, self.written = children, folder, written
        self.chosen: dict[str, bool] = {}

    def build(self) -> None:
        with frame.sheet("Runs"):
            with ui.row().classes("w-full items-center gap-3"):
                self.where = ui.input("in the folder", value=self.folder).classes("grow").props("dense")
                self.where.on("keydown.enter", self.elsewhere)
                ui.button("Show", on_click=self.elsewhere).props("no-caps outline")
            frame.command_line(["ls", commands.path_of(self.folder)])
            self.list = ui.column().classes("w-full gap-2")
        with frame.sheet("Compare"):
            ui.label("Mark two to six runs above.").classes("small muted")
            with ui.row().classes("w-full items-center gap-3"):
                self.out = ui.input("write the page to", value=COMPARISON, on_change=self.marked).props("dense")
                self.out.classes("grow")
                self.button = ui.button("Compare", on_click=self.compare).props("no-caps").classes("compare")
            self.line = frame.command_line()
            self.compared = ui.column().classes("w-full gap-1")

    def elsewhere(self) -> None:
        ui.navigate.to(f"/runs?folder={quote(self.where.value.strip() or 'runs')}")

    async def show(self) -> None:
        """The list, the newest first."""
        found = await run.io_bound(runs_in, Path(self.folder)) or []
        started = [c for c in self.children.alive() if not any(c.folder.resolve() == r.folder.resolve() for r in found)]
        with self.list:
            for child in started:
                self.show_started(child.folder)
            for one in found:
                self.show_run(one)
            if not found and not started:
                ui.label(f"no runs in {self.folder}").classes("muted small")
        self.marked()

    def show_started(self, folder: Path) -> None:
        with ui.row().classes("w-full items-center gap-2"):
            ui.link(folder.name, f"/run?folder={quote(str(folder))}").classes("font-medium")
            ui.label("has just started").classes("small open")

    def show_run(self, one: Listed) -> None:
        name = str(one.folder)
        with ui.row().classes("w-full items-center gap-2 no-wrap run-row"):
            ui.checkbox(on_change=lambda e: self.mark(name, e.value)).props(f'aria-label="compare {one.folder.name}"')
            with ui.column().classes("gap-0 min-w-0"):
                with ui.row().classes("items-center gap-2"):
                    ui.link(one.folder.name, f"/run?folder={quote(name)}").classes("font-medium lines")
                    ui.label("running" if one.live else f"{duration(one.age)} ago").classes(
                        "small open" if one.live else "small muted"
                    )
                frame.texts(filter(None, [one.stages]))
                frame.texts(filter(None, [one.verdict]), "small")

    def mark(self, name: str, value: bool) -> None:
        self.chosen[name] = value
        self.marked()

    @property
    def arguments(self) -> list[str]:
        """The command line of the comparison."""
        return commands.compare([name for name, on in self.chosen.items() if on], self.out.value.strip() or COMPARISON)

    def marked(self) -> None:
        enough = sum(self.chosen.values()) > 1
        self.button.set_enabled(enough)
        frame.show_line(self.line, self.arguments if enough else "")

    async def compare(self) -> None:
        """Have the page written, and show where it is."""
        arguments = self.arguments
        outcome = await frame.answered(self.button, arguments)
        self.compared.clear()
        with self.compared:
            if outcome.code:
                frame.error(outcome.message)
                return
            frame.texts(filter(None, outcome.err.splitlines()))
            out = arguments[-1]
            self.written[out] = Path(out).absolute()
            ui.link(f"Open {out}", f"/comparison?page={quote(out)}", new_tab=True).classes("comparison")
