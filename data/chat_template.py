"""Conversations to text: which chat template is meant, and its text of turns.

Templates are run by Transformers in its sandbox, those of others in a process of their own (``data.template_sandbox``).
It knows nothing of ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.common.errors import UserError, nearest
from data.common.strict_json import read_text
from data.records import Message
from data.spoken import shown, uncarried
from data.supervision import carries, missing_in_order
from data.template_args import with_args
from data.template_sandbox import LARGEST, render_foreign

DIALOGUE = (
    "{%- for m in messages -%}"
    "{{ m.role + ' :' }}{{ ' ' + m.content | trim if m.content | trim else '' }}"
    "{{ stop_token if m.role == 'assistant' else '' }}{{ '' if loop.last else '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n' if messages else '' }}{{ 'assistant :' }}{%- endif -%}"
)
TEXT = "{%- for m in messages -%}{{ m.content }}{%- endfor -%}"
PLAIN = {"dialogue": DIALOGUE, "text": TEXT}


@dataclass(frozen=True)
class TemplateChoice:
    """A template by name, path or source, and the arguments that it is given (see ``data.template_args``)."""

    template: str
    args: Mapping[str, Any] = field(default_factory=dict)


class ChatTemplate:
    """A template by name or source, for one tokenizer; ``stop_text`` is what it writes behind a response of ours.

    Raises:
        UserError: no such template, or one that does not ask for an argument.
    """

    def __init__(self, tokenizer: Any, template: str | TemplateChoice) -> None:
        self.tokenizer = tokenizer
        chosen = template if isinstance(template, TemplateChoice) else TemplateChoice(template)
        self.name, source = _find_template(tokenizer, chosen.template)
        self.source = with_args(self.name, source, chosen.args)
        self.stop_text = ""

    def text(self, turns: Sequence[Message], *, generate: bool) -> str:
        """The text of a conversation; ``generate``: with the generation prompt.

        Raises:
            UserError: the template refuses it.
        """
        conversation = [shown(turn) for turn in turns]
        try:
            if self.source not in PLAIN.values():
                special = dict(self.tokenizer.special_tokens_map) | {"stop_token": self.stop_text}
                if turns and turns[0].tools:
                    special["tools"] = json.loads(turns[0].tools)
                return render_foreign(self.source, conversation, generate, special)
            return self.tokenizer.apply_chat_template(
                [conversation],  # as a batch of one: a lone empty conversation is an IndexError
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=generate,
                stop_token=self.stop_text,
            )[0]
        except Exception as error:
            roles = ", ".join(t.role for t in turns) or "no messages"
            raise UserError(
                f"template {self.name} cannot render a conversation of {roles}: {error}; "
                "change the data or choose another `template:` (dialogue, text, or a .jinja file)"
            ) from error

    def prompt(self, turns: Sequence[Message]) -> str:
        """The text of a prompt, generation prompt included, which holds its messages, its tools and their calls.

        Raises:
            UserError: the template leaves one of them out.
        """
        text = self.text(turns, generate=True)
        self._prove(turns, text)
        if lost := uncarried(turns, text):
            raise UserError(
                f"template {self.name} leaves out {lost}; take a base or a `template:` that writes "
                "tools and their calls, or leave these rows out"
            )
        return text

    def _prove(self, turns: Sequence[Message], text: str) -> None:
        """Refuse a rendered prompt without one of its messages, or with turns in another order.

        The thoughts of earlier turns may be left out, and a system prompt may stand anywhere.
        """
        spoken = [turn for turn in turns if turn.role in ("user", "assistant")]
        visible = [t.content.rpartition("</think>")[2] if t.role == "assistant" else t.content for t in spoken]
        lost = [spoken[i] for i in missing_in_order(text, visible)]
        lost += [turn for turn in turns if turn.role == "system" and not carries(text, turn.content)]
        if lost:
            turn = lost[0]
            raise UserError(
                f"template {self.name} leaves out the {turn.role}'s message {turn.content[:60]!r}: it writes "
                f"{text[:60]!r}; it may want content as a list of parts, or know no such role. Choose another "
                "`template:`"
            )


def template_file(path: Path) -> Path:
    """The path of a template.

    Raises:
        UserError: no file is there, or something else than a file.
    """
    if path.is_file():
        return path
    if path.exists():
        raise UserError(f"template: {path} is no regular file")
    raise UserError(
        f"template: there is no file {path}.{nearest(str(path), [str(p) for p in path.parent.glob('*.jinja')])}"
    )


def _find_template(tokenizer: Any, template: str) -> tuple[str, str]:
    """Return the name for messages to the user, and the jinja source."""
    own = tokenizer.chat_template or None
    if isinstance(own, dict):  # several by name
        if template in own:
            return f"'{template}' (of the tokenizer's)", own[template]
        if template in ("auto", "chat") and "default" not in own:
            raise UserError(
                f"template: the tokenizer has no default chat template, only {', '.join(sorted(own))}: name the one "
                f"that is meant, such as `template: {min(own)}`, or give a .jinja file"
            )
        own = own.get("default")
    if template == "auto":
        template = "chat" if own else "dialogue"
    if template == "chat":
        if not own:
            raise UserError("template 'chat': the tokenizer has no chat template; use dialogue, text or a .jinja file")
        return "'chat' (the tokenizer's own)", own
    if template in PLAIN:
        return f"'{template}'", PLAIN[template]
    if template.endswith(".jinja"):
        path = template_file(Path(template))
        return f"'{template}'", read_text(path, LARGEST)
    if "{" in template:
        return "(a jinja string in the recipe)", template
    raise UserError(
        f"template: unknown name {template!r}.{nearest(template, ['auto', 'chat', *PLAIN])} Known: auto, chat, "
        "dialogue, text, a path ending in .jinja, or a jinja string"
    )
