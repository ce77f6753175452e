"""The page of a run: how far it is, its stages, curves and lines; stop and resume; and its report."""

from __future__ import annotations

import shlex
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Response
from nicegui import app, run, ui

from data.common.errors import UserError
from data.common.redaction import printable, redact
from pipelines.report.live import version
from pipelines.report.page import page_of
from pipelines.report.run_files import read_run
from pipelines.ui import commands, frame
from pipelines.ui.children import Child, log_of, tail_of
from pipelines.ui.following import Seen, figure_of, how_far, resolved_recipe, seen
from pipelines.ui.state import State
from pipelines.workspace.run_folder import is_run

EVERY = 1.0  # seconds
TONES = {"done": "good", "running": "open", "failed": "bad", "stopped": "bad"}
SCROLL = "requestAnimationFrame(() => { const e = getHtmlElement(%d); if (e) e.scrollTop = e.scrollHeight })"
SANDBOX = "sandbox allow-scripts allow-downloads allow-popups"
"""A report that is served here stands on its own: what is in it cannot use these pages."""


def page_response(text: str, status: int = 200) -> Response:
    """A self-contained page of ours, kept away from the others."""
    headers = {"Content-Security-Policy": SANDBOX, "Cache-Control": "no-store"}
    return Response(text, status_code=status, media_type="text/html", headers=headers)


def add(state: State) -> None:
    """Serve the page, and the report of a run as it is now."""

    @app.get("/report")
    def report(folder: str) -> Response:
        try:
            return page_response(page_of(read_run(Path(folder))))
        except UserError as error:
            return page_response(f"<!doctype html><p>{escape(printable(str(error)))}</p>", 404)

    @ui.page("/run")
    def one_run(folder: str = "") -> None:
        with frame.page(Path(folder).name or "run"):
            if not folder.strip():
                frame.error("name a run folder")
                return
            page = _Page(state, folder)
            page.build()
        ui.timer(EVERY, page.refresh)


class _Page:
    def __init__(self, state: State, name: str) -> None:
        self.state, self.name, self.folder = state, name, Path(name)
        self.version: tuple[Any, ...] = ()
        self.curves: dict[str, ui.plotly] = {}
        self.grids: dict[str, ui.grid] = {}
        self.log = ""

    def build(self) -> None:
        with frame.sheet():
            with ui.row().classes("w-full items-center gap-3"):
                self.title = ui.label(self.folder.name).classes("text-xl font-semibold lines")
                self.status = ui.badge("").props("outline").classes("run-status")
                ui.space()
                self.stop_button = ui.button("Stop", on_click=self.stop).props("no-caps outline color=negative")
                self.resume_button = ui.button("Resume", on_click=self.resume).props("no-caps")
                self.report = ui.button("Report", on_click=self.show_report).props("no-caps outline")
                self.chat = ui.button("Chat", on_click=self.to_chat).props("no-caps outline")
            self.bar = ui.linear_progress(0, show_value=False, size="8px").props("rounded")
            self.far = ui.label().classes("small muted lines")
            self.stages = ui.row().classes("w-full gap-x-5 gap-y-1 stages")
            self.verdict = ui.label().classes("font-medium lines verdict")
            self.warnings = ui.column().classes("w-full gap-0")
            self.said = ui.label().classes("small open lines")
            self.line = frame.command_line()
        self.charts = ui.column().classes("w-full gap-4")
        with frame.sheet("Lines"):
            self.log_name = ui.label().classes("small muted lines")
            self.log_view = ui.label().classes("log")

    async def refresh(self) -> None:
        """Show what has changed."""
        log = log_of(self.folder)
        child = self.state.children.of(self.folder)
        alive = child is not None and child.alive
        now = (version(self.folder), log.stat().st_size if log.is_file() else 0, alive)
        if now == self.version:
            return
        self.version = now
        read = await run.io_bound(self._read, log)
        if read is not None:  # the server ends
            text, found = read
            self.show(found, text, alive)

    def _read(self, log: Path) -> tuple[str, Seen | str]:
        text = redact(tail_of(log))
        try:
            return text, seen(self.folder)
        except UserError as error:
            return text, str(error)

    def show(self, found: Seen | str, log: str, alive: bool) -> None:
        if isinstance(found, str):
            self.said.set_text(printable(found))
            return
        child = self.state.children.of(self.folder)
        running = alive or found.live
        ended_badly = child is not None and not alive and child.process.poll() != 0
        none = child is None and not found.there
        word = "running" if running else "finished" if found.finished and not ended_badly else "not finished"
        word = "no such run" if none else word
        self.status.set_text(word)
        self.title.set_text(printable(found.title))
        self.stop_button.set_visibility(alive)
        self.resume_button.set_visibility(word == "not finished")
        self.report.set_visibility(is_run(self.folder))
        self.chat.set_visibility(any(stage["status"] == "done" for stage in found.stages))
        far = how_far(log) if running else None
        self.bar.set_visibility(running)
        self.bar.set_value(far.share if far else 0)
        self.bar.props(add="" if far else "indeterminate", remove="indeterminate" if far else "")
        self.far.set_text(printable(far.text) if far else "")
        self.verdict.set_text(printable(found.verdict))
        self.verdict.set_visibility(bool(found.verdict))
        self.show_stages(found)
        self.warnings.clear()
        with self.warnings:
            frame.texts(found.warnings, "small open")
        self.said.set_text("This run was started elsewhere: it is followed here, and stopped in its own terminal.")
        self.said.set_visibility(found.live and not alive)
        frame.show_line(self.line, "" if none else self.line_of(child, running or word == "finished"))
        self.show_curves(found)
        self.log_name.set_text(f"{log_of(self.folder)}" if log else "no lines: only runs that a page starts leave some")
        if log != self.log:
            self.log = log
            self.log_view.set_text(printable(log.replace("\r", "")))
            ui.run_javascript(SCROLL % self.log_view.id)

    def line_of(self, child: Child | None, over: bool) -> str:
        """The command that was started here, that resumes, or that follows."""
        if child is not None:
            return child.line
        arguments = self.resuming()
        return f"trivet watch {shlex.quote(self.name)}" if over or not arguments else commands.shown(arguments)

    def resuming(self) -> tuple[str, ...]:
        """The command that resumes: the one that was started here, or one by the recipe that the run keeps."""
        child, kept = self.state.children.of(self.folder), resolved_recipe(self.folder)
        if child is not None:
            return child.arguments
        return tuple(commands.run(str(kept), self.name)) if kept is not None else ()

    def show_stages(self, found: Seen) -> None:
        self.stages.clear()
        with self.stages:
            for stage in found.stages:
                status = "running" if stage["status"] == "running" else stage["status"]
                with ui.column().classes("gap-0"):
                    ui.label(stage["title"]).classes("font-medium small")
                    more = f", {stage['time']}" if stage["time"] else ""
                    ui.label(f"{status}{more}").classes(f"small {TONES.get(status, 'muted')} stage-{stage['name']}")
        for stage in found.stages:
            if stage["lines"]:
                with self.stages:
                    frame.texts(stage["lines"], "small open w-full")

    def show_curves(self, found: Seen) -> None:
        """Draw new charts, and give those that are there their new points."""
        for title, charts in found.curves.items():
            for chart in charts:
                figure = figure_of(chart)
                if (shown := self.curves.get(chart["id"])) is None:
                    with self.stage_grid(title), ui.column().classes("w-full gap-0 min-w-0"):
                        ui.label(chart["title"]).classes("small font-medium")
                        self.curves[chart["id"]] = ui.plotly(figure).classes("chart")
                elif shown.figure != figure:
                    shown.update_figure(figure)

    def stage_grid(self, title: str) -> ui.grid:
        """Where the charts of a stage stand."""
        if title not in self.grids:
            with self.charts, frame.sheet(title):
                self.grids[title] = ui.grid().classes("w-full gap-3 grid-cols-1 sm:grid-cols-2 lg:grid-cols-3")
        return self.grids[title]

    # -- actions ------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the run to stop; once more stops at once."""
        try:
            self.state.children.stop(self.folder)
            ui.notify("It saves at its next safe point, then stops; once more stops it at once.")
        except UserError as error:
            ui.notify(str(error), type="warning")

    def resume(self) -> None:
        """Start the command that resumes."""
        arguments = self.resuming()
        if not arguments:
            ui.notify("this folder keeps no recipe by which the run could be resumed", type="warning")
            return
        try:
            self.state.children.start(arguments, self.folder)
        except UserError as error:
            ui.notify(str(error), type="negative")
        self.version = ()

    def show_report(self) -> None:
        ui.navigate.to(f"/report?folder={quote(self.name)}", new_tab=True)

    def to_chat(self) -> None:
        ui.navigate.to(f"/chat?run={quote(self.name)}")
