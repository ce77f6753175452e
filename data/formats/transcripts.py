"""Conversations inside one text: turns by the marks that stand before each, in the styles that people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

from data.records import Message, Role

LEAD_IN = re.compile(
    r"(?:\s|<s>|<bos>|<\|begin_of_text\|>|The conversation between human and AI assistant\."
    r"|Below is an instruction that describes a task[^\n]*)*"
)
"""What may stand before the first mark."""

_ENDS = re.compile(
    r"(?:\s|<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<\|end_of_text\|>|<end_of_turn>|<eos>|</s>|<s>|<eoh>|<eom>|<eoa>)+\Z"
)
"""What closes a turn and is no part of it."""


CLOSING = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>")


def unclosed(text: str) -> str:
    """A turn without the marks that close it; ``</s>`` stays where it closes an ``<s>``, or stands alone."""
    if not text.rstrip().endswith(CLOSING) or "<s>" in text:
        return text
    return _ENDS.sub("", text) or text


@dataclass(frozen=True, slots=True)
class Style:
    """Marks by role; with ``lines`` they count at the beginning of a line alone."""

    marks: tuple[tuple[str, Role], ...]
    lines: bool = False


_LLAMA: tuple[tuple[str, Role], ...] = (("user", "user"), ("assistant", "assistant"), ("system", "system"))
STYLES = (
    Style((("Human:", "user"), ("Assistant:", "assistant")), lines=True),
    Style((("User:", "user"), ("Assistant:", "assistant"), ("System:", "system")), lines=True),
    Style(
        (("USER:", "user"), ("ASSISTANT:", "assistant"), ("SYSTEM:", "system"), ("FUNCTION RESPONSE:", "tool")),
        lines=True,
    ),
    Style((("### Human:", "user"), ("### Assistant:", "assistant"), ("### System:", "system"))),
    Style((("### User:", "user"), ("### Assistant:", "assistant"), ("### System:", "system"))),
    Style((("[|Human|]", "user"), ("[|AI|]", "assistant"))),
    Style((("<|Human|>:", "user"), ("<|MOSS|>:", "assistant"))),
    Style((("[Human]:", "user"), ("[MOSS]:", "assistant"))),
    Style((("<|user|>", "user"), ("<|assistant|>", "assistant"), ("<|system|>", "system"))),
    Style(
        (
            ("<|im_start|>user\n", "user"),
            ("<|im_start|>assistant\n", "assistant"),
            ("<|im_start|>system\n", "system"),
            ("<|im_start|>tool\n", "tool"),
        )
    ),
    Style((("[INST]", "user"), ("[/INST]", "assistant"))),
    Style((("<human>:", "user"), ("<bot>:", "assistant")), lines=True),
    Style((("<start_of_turn>user\n", "user"), ("<start_of_turn>model\n", "assistant"))),
    Style(tuple((f"<|start_header_id|>{name}<|end_header_id|>", role) for name, role in _LLAMA)),
    Style((("### Instruction:", "user"), ("### Response:", "assistant"))),
)
_FIRST = frozenset(mark[0] for style in STYLES for mark, _ in style.marks)
_SYSTEM_INSIDE = re.compile(r"\A\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
"""Llama 2 has the system message inside the first turn of the user."""


def spoken(text: str) -> list[Message] | None:
    """The turns of a text that is a transcript from its beginning to its end, or None.

    The last turn may be empty where the assistant is to speak; one of the user that is empty is left out.
    """
    start = LEAD_IN.match(text)
    at = start.end() if start else 0
    if text[at : at + 1] not in _FIRST:
        return None
    for style in STYLES:
        if any(text.startswith(mark.rstrip("\n"), at) for mark, _ in style.marks):
            found = _turns(text[at:], style)
            if found:
                return found
    return None


@cache
def _splitter(style: Style) -> re.Pattern[str]:
    marks = "|".join(re.escape(mark) for mark, _ in style.marks)
    return re.compile(rf"^(?:{marks})" if style.lines else marks, re.MULTILINE)


def _turns(text: str, style: Style) -> list[Message] | None:
    """The turns by one style; None where they do not take turns or nobody answers."""
    roles = dict(style.marks)
    found = list(_splitter(style).finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    turns = [
        Message(role=roles[match.group()], content=_ENDS.sub("", text[match.end() : end]).strip())
        for match, end in zip(found, ends, strict=True)
    ]
    if turns and turns[0].role == "user" and (inside := _SYSTEM_INSIDE.match(turns[0].content)):
        rest = Message(role="user", content=turns[0].content[inside.end() :].strip())
        turns = [Message(role="system", content=inside[1].strip()), rest, *turns[1:]]
    turns = [replace(t, content=t.content.replace("### Input:\n", "", 1)) if t.role == "user" else t for t in turns]
    if turns and turns[-1].role == "user" and not turns[-1].content:
        turns.pop()
    return turns if _take_turns(turns) else None


def _take_turns(turns: list[Message]) -> bool:
    own = [turn.role for turn in turns if turn.role != "system"]
    follows = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
    whole = all(turn.content for turn in turns[:-1])
    led = not any(turn.role == "system" for turn in turns[1:]) and own[:1] == ["user"] and "assistant" in own
    return whole and led and all(b in follows[a] for a, b in pairwise(own))
