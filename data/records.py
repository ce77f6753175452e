"""Frozen records for what people bring: prompts, demonstrations, ranked responses and plain documents.

Records are validated where they enter and never change afterwards. This module knows nothing of files, tokenizers or
models.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation.

    ``tool_calls`` are the calls of an assistant's turn and ``tools`` those on offer, which the first turn carries:
    both as JSON in OpenAI's form, empty where there are none. ``trained`` is false for an assistant's turn that its
    data marks as not to be learnt.
    """

    role: Role
    content: str
    tool_calls: str = ""
    tool_call_id: str = ""
    name: str = ""
    tools: str = ""
    trained: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Role and content, and of the rest what is there."""
        return {"role": self.role, "content": self.content} | self.extras()

    def extras(self) -> dict[str, Any]:
        """What a turn has besides role and content, as a chat template knows it."""
        if not (self.tool_calls or self.tools or self.name or self.tool_call_id) and self.trained:
            return {}
        out: dict[str, Any] = {k: v for k in ("name", "tool_call_id") if (v := getattr(self, k))}
        out |= {k: json.loads(v) for k in ("tool_calls", "tools") if (v := getattr(self, k))}
        return out if self.trained else out | {"trained": False}

    @classmethod
    def from_dict(cls, turn: Mapping[str, Any]) -> Message:
        """The message that ``as_dict`` wrote."""
        if len(turn) == 2:  # nearly all
            return cls(role=turn["role"], content=turn["content"])
        lists = {k: json.dumps(turn[k], ensure_ascii=False) for k in ("tool_calls", "tools") if turn.get(k)}
        plain: dict[str, Any] = {k: turn[k] for k in ("name", "tool_call_id", "trained") if k in turn}
        return cls(role=turn["role"], content=turn["content"], **(lists | plain))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is asked: zero or more turns (none for data without a prompt).

    ``group`` is the unit of splitting: records of one group are all in training or all held out. ``source`` names the
    file and line for messages to the user. ``category`` is an optional label to slice results by. ``columns`` are the
    row's other columns, such as a reference answer: a user's functions get them by name. They are no part of what a
    prompt is, so prompts that differ in them alone are equal.
    """

    messages: tuple[Message, ...]
    group: str
    source: str = ""
    category: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The last user message, or the empty string: what reward functions and reports show as the prompt."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and a good response. ``finished=False`` marks a response that was cut off: it gets no stop token."""

    prompt: Prompt
    answer: str
    finished: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedAnswers:
    """A prompt and k >= 2 responses with their ranks: 0 is best, equal ranks are ties.

    ``scores`` (higher is better) are the annotator's own numbers where there are any: margins come from them.

    Raises:
        ValueError: fewer than two responses, lengths that differ, or a rank below zero.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    finished: tuple[bool, ...] = ()
    weight: float = 1.0  # in the ranking loss

    def __post_init__(self) -> None:
        if len(self.answers) < 2:
            raise ValueError(f"a ranking needs at least two responses, got {len(self.answers)}")
        if not self.finished:
            object.__setattr__(self, "finished", (True,) * len(self.answers))
        scored = len(self.answers) if self.scores is None else len(self.scores)
        if not len(self.answers) == len(self.ranks) == len(self.finished) == scored:
            raise ValueError("responses, ranks, scores and finished must have the same length")
        if min(self.ranks) < 0:
            raise ValueError("ranks count from 0 (best)")

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Indices (better, worse) of every strictly ordered pair."""
        k = range(len(self.ranks))
        return [(i, j) for i in k for j in k if self.ranks[i] < self.ranks[j]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Plain text for pretraining."""

    text: str
    group: str
    source: str = ""


def normalise(text: str) -> str:
    """Case-folded NFKC text with white space runs as one blank: what a group's identity is computed from."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(plain.casefold().split())


def group_of(messages: Sequence[Message], answers: Sequence[str] = ()) -> str:
    """Return the split group: a hash of the first user message; without one, of the set of responses."""
    first = next((m.content for m in messages if m.role == "user"), None)
    if first is None and messages:
        first = messages[0].content
    parts = [normalise(first)] if first is not None else sorted({normalise(a) for a in answers})
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def ranks_from_scores(scores: Sequence[float]) -> tuple[int, ...]:
    """Dense ranks, 0 for the highest score; equal scores tie."""
    place = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return tuple(place[s] for s in scores)
