"""Asking a model in another way: an instruction, worked examples, step by step; and the final answer of what it says.

Conversations and texts in and out. Knows nothing of tokens or models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.common.errors import UserError
from data.common.regex_timeout import occurrences
from data.records import Demonstration, Message
from evaluation.settings import PromptedConfig, Shot


@dataclass(frozen=True, slots=True)
class Final:
    """A final answer: its text, whether it came to an end, and whether it was found in what the model said."""

    text: str
    finished: bool
    extracted: bool = True


@dataclass(frozen=True)
class Asking:
    """A way of asking, with its examples chosen: the same ones for every prompt."""

    config: PromptedConfig
    examples: tuple[Shot, ...] = ()

    def messages(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The conversation with the system message and the examples before it and its last request rewritten."""
        last = max((i for i, m in enumerate(messages) if m.role == "user"), default=None)
        turns = [
            replace(m, content=self.config.prompt.replace("{prompt}", m.content)) if i == last else m
            for i, m in enumerate(messages)
        ]
        own = [m for m in turns if m.role == "system"]
        system = [Message(role="system", content=self.config.system)] if self.config.system and not own else own
        shown: list[Message] = []
        for shot in self.examples:
            asked = self.config.prompt.replace("{prompt}", shot.prompt)
            shown += [Message(role="user", content=asked), Message(role="assistant", content=shot.answer)]
        return (*system, *shown, *(m for m in turns if m.role != "system"))

    def final(self, text: str, finished: bool) -> Final:
        """What counts as the answer: up to the first of ``until``, of that the last match of ``answer``.

        Without a match the whole text stands, and is counted as not extracted.
        """
        ends = [at for end in self.config.until if (at := text.find(end)) >= 0]
        if ends:
            text, finished = text[: min(ends)].rstrip(), True
        if self.config.answer is None:
            return Final(text, finished)
        found = [match[1] for match in occurrences(self.config.answer, text, "evaluation.prompted, answer")]
        return Final((found[-1] or "").strip(), finished) if found else Final(text, finished, extracted=False)


def asking(name: str, config: PromptedConfig, demonstrations: Sequence[Demonstration], seed: int) -> Asking:
    """Choose the examples: those of the settings, then ``shots`` finished demonstrations of one turn, sampled by seed.

    Raises:
        UserError: fewer demonstrations than shots.
    """
    rows = enumerate(demonstrations)
    usable = [i for i, d in rows if d.finished and [m.role for m in d.prompt.messages] == ["user"]]
    if len(usable) < config.shots:
        raise UserError(
            f"prompted:{name}: {config.shots} shots are asked for, and data.demonstrations has {len(usable)} of one "
            f"turn; write examples down instead: evaluation.prompted.{name}.examples: [{{prompt: ..., answer: ...}}]"
        )
    chosen = [demonstrations[i] for i in random.Random(f"{seed}/evaluation/{name}").sample(usable, config.shots)]
    return Asking(config, (*config.examples, *(Shot(prompt=d.prompt.text, answer=d.answer) for d in chosen)))
