"""``trivet chat``: a conversation in the terminal, alone or with two models side by side and a vote.

What the user prefers is kept as ranked responses, one JSON line each, in the form that ``data.rankings`` reads. It
knows nothing of how models are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from data.common.config import COOLEST
from data.common.errors import UserError
from data.formats.values import encodable
from data.records import Message
from models.backbone.seeds import generator
from pipelines.run.chat_models import Room
from pipelines.run.votes import append_votes, vote_row
from pipelines.workspace.run_folder import check_outside

VOTES = "preferences.jsonl"  # where they go unless somebody says otherwise
HELP = """/system TEXT       a system prompt for what follows; without TEXT, none
/temperature T     0 is greedy, 1 as trained
/tokens N          longest response
/clear             a new conversation
/save [FILE]       write the preferences so far (ranked responses, JSON lines)
/quit              the end; so is Ctrl-D
With two models, vote after the responses: 1 or 2, or Enter for neither. The better one stays in the conversation."""


@dataclass
class Chat:
    """The state of a conversation.

    Args:
        room: who responds.
        console: where to.
        ask: reads a line; raises EOFError at the end.
        preferences: where votes are appended as they come.
    """

    room: Room
    console: Console
    ask: Callable[[str], str]
    preferences: Path = Path(VOTES)
    temperature: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    votes: list[dict[str, Any]] = field(default_factory=list)
    saved: int = 0
    count: int = 0

    def run(self) -> None:
        """Talk until /quit or the end of input; votes not yet saved are saved."""
        names = " and ".join(s.name for s in self.room.speakers)
        for text in self.room.left_out:
            self._say(text)
        self._say(f"{names}: temperature {self.temperature:g}, at most {self.max_new_tokens} tokens; /help, /quit")
        while True:
            try:
                line = self.ask("> ").strip()
            except (EOFError, KeyboardInterrupt):
                break
            if line == "/quit":
                break
            if line.startswith("/"):
                self.command(line)
            elif line and not encodable(line):
                self._say("that holds bytes that are no text in UTF-8; type it again")
            elif line:
                self.turn(line)
        self._say("")
        if self.saved < len(self.votes):
            self.save(self.preferences)

    def messages(self) -> list[Message]:
        system = [Message(role="system", content=self.system)] if self.system else []
        return system + self.turns

    def command(self, line: str) -> None:
        """One /command; a wrong one is reported and changes nothing."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/help":
            self._say(HELP)
        elif name == "/system":
            self.system = rest
            self._say("system prompt: " + (rest or "none"))
        elif name == "/temperature":
            self._number(name, rest, float, 0.0, "temperature")
        elif name == "/tokens":
            self._number(name, rest, int, 1, "max_new_tokens")
        elif name == "/clear":
            self.turns.clear()
            self._say("a new conversation")
        elif name == "/save":
            self.save(Path(rest) if rest else self.preferences)
        else:
            self._say(f"{name}: no such command; /help lists them")

    def _number(self, name: str, text: str, kind: type, minimum: float, what: str) -> None:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value < 1e6 or (kind is float and 0 < value < COOLEST):
            right = f"of at least {minimum:g}" if kind is int else f"of at least {COOLEST:g}, or 0"
            self._say(f"{name} {text}: give a number {right}")
            return
        setattr(self, what, value)
        self._say(f"{what.replace('_', ' ')}: {value:g}")

    def turn(self, text: str) -> None:
        """The user's message, every speaker's response, and the vote; old messages go when room is short."""
        self.turns.append(Message(role="user", content=text))
        try:
            asked = self.room.fitting(self.messages(), self.max_new_tokens)
        except UserError as error:
            self._say(str(error))
            self.turns.pop()
            return
        if left_out := len(self.messages()) - len(asked):
            del self.turns[:left_out]
            self._say(f"the oldest {left_out} messages no longer fit and are left out from here on", style="dim")
        answers = self._side_by_side() if len(self.room.speakers) > 1 else [self._alone()]
        chosen = self._vote(asked, answers) if len(answers) > 1 else 0
        self.turns.append(Message(role="assistant", content=answers[chosen][0]))

    def _speak(self, i: int) -> Iterator[tuple[str, bool]]:
        self.count += 1
        return self.room.speakers[i].answer(
            self.messages(),
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            generator=generator(self.seed, "chat", self.count),
        )

    def _alone(self) -> tuple[str, bool]:
        """Print the response as it grows; a last character that is still incomplete waits."""
        shown, text, finished = 0, "", False
        for text, finished in self._speak(0):  # noqa: B007 (the last one is used below)
            ready = text.rstrip("\ufffd")
            if len(ready) > shown:
                self._say(ready[shown:], end="")
                shown = len(ready)
        self._say(text[shown:])
        self._say(self.room.note(self.messages(), text, finished), style="dim")
        return text, finished

    def _side_by_side(self) -> list[tuple[str, bool]]:
        speakers = self.room.speakers
        answers = [("", False)] * len(speakers)
        notes = [""] * len(speakers)

        def panels() -> Columns:
            width = max(20, self.console.width // len(speakers) - 1)
            made = zip(speakers, answers, notes, strict=True)
            return Columns(
                [
                    Panel(Text(a[0]), title=f"{i} · {s.name}", subtitle=n, width=width, title_align="left")
                    for i, (s, a, n) in enumerate(made, 1)
                ],
                padding=(0, 1),
            )

        live = Live(panels(), console=self.console, refresh_per_second=8) if self.console.is_terminal else None
        with live or _Quiet():
            for i in range(len(speakers)):
                for said in self._speak(i):
                    answers[i] = said
                    if live is not None:
                        live.update(panels())
                notes[i] = self.room.note(self.messages(), *answers[i])
                if live is not None:
                    live.update(panels())
                else:
                    self._say(f"{i + 1} {speakers[i].name} ({notes[i]}): {answers[i][0]}")
        return answers

    def _vote(self, asked: list[Message], answers: list[tuple[str, bool]]) -> int:
        """Ask which is better and note it; equal responses need no vote.

        Returns:
            The response that the conversation continues with.
        """
        if answers[0][0] == answers[1][0]:
            self._say("both say the same")
            return 0
        try:
            vote = self.ask("better: 1, 2 or Enter > ").strip()
        except EOFError:
            vote = ""
        better = {"1": 0, "2": 1}.get(vote)  # a tie of two says nothing to a reward model
        if better is None:
            return 0
        row = vote_row(asked, [a for a, _ in answers], [s.name for s in self.room.speakers], better)
        if row is not None:
            self.votes.append(row)
        return better

    def save(self, path: Path) -> None:
        """Append the votes that are not saved yet."""
        new = self.votes[self.saved :]
        if not new:
            self._say("no new preferences to save" + ("" if self.votes else "; votes need --compare-with"))
            return
        try:
            append_votes(path, new)
        except UserError as error:
            self._say(f"{error}; try /save OTHER_FILE")
            return
        self.saved = len(self.votes)
        self._say(f"{len(new)} preferences appended to {path}; train on them with data.rankings: {path}")

    def _say(self, text: str, end: str = "\n", style: str | None = None) -> None:
        self.console.print(text, end=end, style=style, markup=False, highlight=False, soft_wrap=True)


class _Quiet:
    """No live display: output goes to a file."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def talk(target: str, stage: str | None, compare_with: str | None, **settings: object) -> None:
    """Open the room and talk on standard input and output."""
    import io
    import sys

    from pipelines.run.chat_models import open_room

    if compare_with is not None:  # there will be votes
        check_outside(Path(str(settings.get("preferences") or VOTES)), "--preferences")
    room = open_room(target, stage, compare_with)
    console = Console(highlight=False)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is no text is refused, and ends no conversation
    if sys.stdin.isatty():
        import readline  # noqa: F401 (editing and history of what is typed)
    given = {k: v for k, v in settings.items() if v is not None}
    chat = Chat(room=room, console=console, ask=input, **({"max_new_tokens": room.max_new_tokens} | given))  # type: ignore[arg-type]
    chat.run()
