"""The page to talk to a model, or to two side by side with a vote."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nicegui import run, ui

from data.common.errors import UserError
from data.common.redaction import printable
from evaluation.systems import ROLES
from pipelines.ui import frame
from pipelines.ui.commands import Talk
from pipelines.ui.state import State

if TYPE_CHECKING:
    from pipelines.ui.conversation import Conversation

LAST = ""
"""Of a run's stages: the one that was finished last."""


def add(state: State) -> None:
    """Serve the page."""

    @ui.page("/chat")
    def chat(run: str = "") -> None:
        with frame.page("Chat", "/chat"):
            _Page(state, run).build()


def opened(talk: Talk) -> Conversation:
    """The conversation of what the form says; its models are loaded.

    Raises:
        UserError: nothing to talk to there, or an unknown or unfinished stage.
    """
    from pipelines.run.chat_models import open_room
    from pipelines.ui.conversation import Conversation

    room = open_room(talk.target, talk.stage or None, talk.compare_with or None)
    return Conversation(
        room=room,
        preferences=Path(talk.preferences or "preferences.jsonl"),
        temperature=1.0 if talk.temperature is None else talk.temperature,
        max_new_tokens=talk.tokens or room.max_new_tokens,
        seed=talk.seed or 0,
        system=talk.system,
    )


class _Page:
    def __init__(self, state: State, target: str) -> None:
        self.state, self.target = state, target
        self.talk: Conversation | None = None

    def build(self) -> None:
        with frame.sheet("Who responds"):
            with ui.grid().classes("w-full gap-x-4 gap-y-1 grid-cols-1 sm:grid-cols-2"):
                self.first = ui.input("a run, or any model", value=self.target, placeholder="runs/demo").classes(
                    "target"
                )
                stages = {LAST: "the last finished stage", **{name: name for name in ROLES}}
                self.stage = ui.select(stages, value=LAST, label="stage of the run")
                self.second = ui.input(
                    "compare with", placeholder="a stage, a run, an adapter or a model; empty: nobody"
                ).classes("compare-with")
                self.system = ui.input("system prompt")
                self.preferences = ui.input("votes go to", value="preferences.jsonl").classes("preferences")
                with ui.row().classes("w-full no-wrap gap-3"):
                    self.temperature = ui.number("temperature", value=1, min=0, step=0.1).classes("grow")
                    self.tokens = ui.number("tokens", min=1, precision=0, placeholder="as trained").classes("grow")
                    self.seed = ui.number("seed", value=0, precision=0).classes("grow")
            for field in (self.first, self.stage, self.second, self.system, self.preferences):
                field.on_value_change(self.show_line)
            for number in (self.temperature, self.tokens, self.seed):
                number.on_value_change(self.show_line)
            self.load_button = ui.button("Load", on_click=self.load).props("no-caps").classes("load")
            self.line = frame.command_line()
            self.said = ui.column().classes("w-full gap-1")
        with frame.sheet() as self.room:
            self.names = ui.label().classes("small muted lines")
            self.turns = ui.column().classes("w-full gap-3")
            self.votes = ui.row().classes("w-full items-center gap-2 votes")
            self.vote_said = ui.label().classes("small muted lines vote-said")
            with ui.row().classes("w-full items-center gap-2 no-wrap"):
                self.message = ui.input(placeholder="say something").props("outlined dense").classes("grow message")
                self.message.on("keydown.enter", self.send)
                self.send_button = ui.button(icon="send", on_click=self.send).props("round flat").tooltip("send")
                ui.button(icon="restart_alt", on_click=self.clear).props("round flat").tooltip("a new conversation")
        self.room.set_visibility(False)
        self.show_line()

    @property
    def asked(self) -> Talk:
        """What the form says."""
        tokens, seed, temperature = self.tokens.value, self.seed.value, self.temperature.value
        preferences = self.preferences.value.strip()
        return Talk(
            target=self.first.value.strip(),
            stage=self.stage.value,
            compare_with=self.second.value.strip(),
            system=self.system.value.strip(),
            temperature=None if temperature in (None, 1) else float(temperature),
            tokens=int(tokens) if tokens else None,
            seed=int(seed) if seed else None,
            preferences="" if preferences == "preferences.jsonl" else preferences,
        )

    def show_line(self) -> None:
        frame.show_line(self.line, self.asked.arguments() if self.asked.target else "")

    async def load(self) -> None:
        """Load the models; those that were loaded before go."""
        self.said.clear()
        self.room.set_visibility(False)
        self.talk = self.state.talk = None
        if not self.asked.target:
            with self.said:
                frame.error("name a run or a model")
            return
        self.load_button.props(add="loading")
        try:
            found = await run.io_bound(self._opened, self.asked)
        finally:
            self.load_button.props(remove="loading")
        if found is None or isinstance(found, str):
            with self.said:
                frame.error(found or "the server is ending")
            return
        self.talk = self.state.talk = found
        self.turns.clear()
        self.votes.clear()
        self.vote_said.set_text("")
        self.names.set_text(printable(" and ".join(found.names)))
        with self.said:
            for text in found.room.left_out:
                ui.label(printable(text)).classes("small muted lines")
        self.room.set_visibility(True)

    def _opened(self, asked: Talk) -> Conversation | str:
        with self.state.talking:
            try:
                return opened(asked)
            except UserError as error:
                return str(error)

    def clear(self) -> None:
        if self.talk is not None:
            self.talk.clear()
            self.turns.clear()
            self.votes.clear()
            self.vote_said.set_text("")

    async def send(self) -> None:
        """The user's message, every model's response as it grows, and the vote."""
        text = (self.message.value or "").strip()
        talk = self.talk
        if not text or talk is None:
            return
        if talk is not self.state.talk:
            ui.notify("other models have been loaded on another page; load these again", type="warning")
            return
        try:
            left_out = talk.ask(text)
        except UserError as error:
            ui.notify(str(error), type="warning", multi_line=True)
            return
        self.message.set_value("")
        self.votes.clear()
        self.vote_said.set_text(
            f"the oldest {left_out} messages no longer fit and are left out from here on" if left_out else ""
        )
        self.send_button.disable()
        try:
            await self.respond(talk, text)
        finally:
            self.send_button.enable()
        if talk.open_vote:
            self.ask_for_vote(talk)
        elif len(talk.responses) == 2:
            self.vote_said.set_text("both say the same")

    async def respond(self, talk: Conversation, text: str) -> None:
        with self.turns:
            with ui.row().classes("w-full justify-end"):
                ui.label(text).classes("bubble mine")
            columns = "grid-cols-1 sm:grid-cols-2" if len(talk.names) > 1 else "grid-cols-1"
            with ui.grid().classes(f"w-full gap-3 items-start {columns}"):
                labels = [self.response_label(i, name) for i, name in enumerate(talk.names)]
        for i, (label, note) in enumerate(labels):
            grown = _Growing(talk.speak(i))
            task = asyncio.ensure_future(run.io_bound(grown.run, self.state.talking))
            while not task.done():
                await asyncio.wait({task}, timeout=0.1)
                label.set_text(printable(grown.text))
            task.result()
            label.set_text(printable(grown.text))
            note.set_text(await run.io_bound(talk.note, i) or "")

    def response_label(self, i: int, name: str) -> tuple[ui.label, ui.label]:
        with ui.column().classes("gap-0 min-w-0"):
            ui.label(f"{i + 1} · {name}" if len(self.talk.names) > 1 else name).classes("small font-medium lines")  # type: ignore[union-attr]
            text = ui.label().classes("bubble response w-full")
            return text, ui.label().classes("small muted note")

    def ask_for_vote(self, talk: Conversation) -> None:
        with self.votes:
            ui.label("better:").classes("small muted")
            for i, name in enumerate(talk.names):
                ui.button(f"{i + 1} · {name}", on_click=lambda i=i: self.vote(i)).props(
                    "no-caps outline dense"
                ).classes(f"vote-{i + 1} px-3")
            ui.label("or say the next thing: no vote, and 1 stays").classes("small muted")

    def vote(self, better: int) -> None:
        """Append the vote to the file."""
        if self.talk is None:
            return
        try:
            self.talk.vote(better)
        except UserError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        self.votes.clear()
        count, file = self.talk.saved, self.talk.preferences
        votes = f"{count} vote{'s' * (count > 1)}"
        self.vote_said.set_text(printable(f"{votes} appended to {file}; train on them with data.rankings: {file}"))


class _Growing:
    """A response that grows in another thread."""

    def __init__(self, speaking: Iterator[str]) -> None:
        self.speaking, self.text = speaking, ""

    def run(self, alone: object) -> None:
        with alone:  # type: ignore[attr-defined]
            for text in self.speaking:
                self.text = text
