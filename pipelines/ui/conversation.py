"""A conversation with one or two models and a vote: what ``trivet chat`` does, without a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data.common.errors import UserError
from data.records import Message
from models.backbone.seeds import generator
from pipelines.run.chat_models import Room
from pipelines.run.votes import append_votes, vote_row


@dataclass
class Conversation:
    """The state of a conversation.

    Args:
        room: who responds.
        preferences: where votes are appended as they come.
    """

    room: Room
    preferences: Path
    temperature: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    asked: list[Message] = field(default_factory=list)
    responses: list[tuple[str, bool]] = field(default_factory=list)
    count: int = 0
    saved: int = 0

    @property
    def names(self) -> list[str]:
        """Who responds."""
        return [speaker.name for speaker in self.room.speakers]

    @property
    def open_vote(self) -> bool:
        """Whether two different responses wait for a vote."""
        return len(self.responses) == 2 and self.responses[0][0] != self.responses[1][0]

    def messages(self) -> list[Message]:
        """The system prompt and all turns."""
        return ([Message(role="system", content=self.system)] if self.system else []) + self.turns

    def ask(self, text: str) -> int:
        """Add the user's message; the response of before that was not voted for stays as the first one's.

        Returns:
            How many of the oldest messages are left out from here on, for they no longer fit.

        Raises:
            UserError: it is too long for a model; it is not added.
        """
        before, waiting = list(self.turns), self.responses
        self._settle(0)
        self.turns.append(Message(role="user", content=text))
        try:
            self.asked = self.room.fitting(self.messages(), self.max_new_tokens)
        except UserError:
            self.turns, self.responses = before, waiting
            raise
        left_out = len(self.messages()) - len(self.asked)
        del self.turns[:left_out]
        return left_out

    def speak(self, i: int) -> Iterator[str]:
        """The response of one model as it grows."""
        self.count += 1
        said = ("", False)
        speaker = self.room.speakers[i]
        for said in speaker.answer(
            self.asked,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            generator=generator(self.seed, "chat", self.count),
        ):
            yield said[0].rstrip("\ufffd")  # a last character that is still incomplete waits
        self.responses.append(said)

    def note(self, i: int) -> str:
        """The reward of a response, and whether it was cut off."""
        return self.room.note(self.asked, *self.responses[i])

    def vote(self, better: int) -> None:
        """Append a vote for one of two responses to the file; the better one stays in the conversation.

        Raises:
            UserError: there is nothing to vote on, or the file cannot be written.
        """
        if not self.open_vote:
            raise UserError("there are no two different responses to vote on")
        row = vote_row(self.asked, [text for text, _ in self.responses], self.names, better)
        if row is not None:
            append_votes(self.preferences, [row])
            self.saved += 1
        self._settle(better)

    def _settle(self, better: int) -> None:
        if self.responses:
            self.turns.append(Message(role="assistant", content=self.responses[better][0]))
            self.responses = []

    def clear(self) -> None:
        """Start a new conversation; votes stay."""
        self.turns, self.asked, self.responses = [], [], []
