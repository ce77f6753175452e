"""Messages to token ids: the one rendering that SFT, the reward model, PPO and evaluation share.

A conversation becomes text by a jinja chat template (``data.chat_template``), and text becomes ids without special
tokens. For every template holds:

- ``prompt_ids(m)`` is a prefix, as ids, of everything rendered from ``m``: prompt and response are tokenised together
  where the prompt's ids are then a prefix, otherwise separately (a tokenizer may merge across the border, but sampled
  tokens follow the prompt's own ids);
- there is one BOS at the start iff the tokenizer adds one by itself or the template writes one;
- a stop id occurs in a response at its very end and only in a finished one. Template text behind it (a line break after
  ``<|im_end|>``) is dropped, and where the template writes none the first stop id is appended. A response whose own
  text holds a stop token ends there, as it would when sampled; if it is marked unfinished, it ends just before;
- a prompt without any id is given one, since a causal model predicts from something: the tokenizer's BOS or else the
  first stop id.

It knows nothing of models, padding or files of records. Masks are made from lengths, never from ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data import tokens
from data.chat_template import TEXT, ChatTemplate, TemplateChoice
from data.common.errors import UserError
from data.counting import Fitted
from data.records import Message
from data.spoken import spoken
from data.stop_strings import StopStrings
from data.supervision import IGNORE, Encoded, around, carries, changed_spaces, end_of_content, spells
from data.template_sandbox import DAY

SHORTEST_PROMPT = 8
"""Ids of a prompt that an over-long response leaves standing (half of ``max_tokens`` if that is less)."""

_CACHED = 1024
_SAMPLE = "trivetprobe"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    """A rendered prompt; ``start`` counts ids that stand before those of ``text`` (an added BOS)."""

    text: str
    ids: tuple[int, ...]
    start: int


class Renderer:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: a Transformers tokenizer; it is not changed.
        template: ``auto`` (the tokenizer's chat template, or ``dialogue`` where it has none), ``chat``, ``dialogue``
            (``user : ...``, ``assistant : ...`` in ordinary words), ``text`` (contents joined, no generation prompt:
            for continuing texts and for responses without a prompt), a path ending in ``.jinja``, or a jinja string;
            with its arguments as a ``TemplateChoice``.
        stop: tokens or ids that end a response, the first of which is written. By default the token that the template
            closes a turn with, the tokenizer's EOS and ``extra_stop_ids``.
        extra_stop_ids: further default stop ids (those of the model's generation config).
        stop_strings: texts that end a response as well, wherever they stand in it. They change nothing of what is
            rendered; the text of a sampled response ends before them.

    Raises:
        UserError: no such template or token, no stop token at all, or a string that the tokenizer cannot write.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | TemplateChoice = "auto",
        stop: Sequence[str | int] = (),
        extra_stop_ids: Sequence[int] | int | None = (),
        stop_strings: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self._chat = ChatTemplate(tokenizer, template)
        self.template_name, self.template = self._chat.name, self._chat.source
        self._prompts: dict[tuple[Message, ...], _Prompt] = {}
        self._added_bos = tokens.added_bos(tokenizer)
        self._closing, self._tail = self._closing_of()
        self.stop_ids = self._find_stops(stop, extra_stop_ids)
        self._chat.stop_text = tokens.writable(tokenizer, self.stop_ids[0])
        self._closing, self._tail = self._closing_of()
        self.opening = self._opening_of()
        self._stops = frozenset(self.stop_ids)
        self.pad_id = tokens.padding_id(tokenizer, self.stop_ids[0])
        self.unknown_id = tokens.unknown_id(tokenizer)
        self._anchor = tokens.anchor(tokenizer)
        self.stop_strings = StopStrings(tokenizer, stop_strings)

    # ---- what the stages call ---------------------------------------------------------------------------------------

    def prompt_ids(self, messages: Sequence[Message | Mapping[str, Any]]) -> list[int]:
        """Ids of the conversation so far, generation prompt included; never empty."""
        return list(self._prompt(spoken(messages)).ids)

    def answer_ids(
        self, messages: Sequence[Message | Mapping[str, Any]], answer: str, finished: bool = True
    ) -> list[int]:
        """Ids that follow ``prompt_ids(messages)``; the last one is a stop id iff ``finished``.

        Raises:
            UserError: the template writes the prompt differently once a response follows.
        """
        return self._answer(spoken(messages), answer, finished)[0]

    def _answer(self, turns: tuple[Message, ...], answer: str, finished: bool) -> tuple[list[int], str]:
        """``answer_ids``, and the text that the template writes behind the prompt."""
        prompt = self._prompt(turns)
        whole = self._chat.text([*turns, Message(role="assistant", content=answer)], generate=False)
        if not whole.startswith(prompt.text):
            raise UserError(
                f"template {self.template_name}: the prompt with its generation prompt is not a prefix of prompt and "
                f"response ({around(prompt.text, whole)}); give a template for which it is, with `template:`"
            )
        tail = whole[len(prompt.text) :]
        if finished:
            ids = self._continuation(prompt, tail)
            end = self._first_stop(ids)
            if end < len(ids):
                return ids[: end + 1], tail
        ids = self._continuation(prompt, tail[: self._content_end(tail, answer)])
        ids = ids[: self._first_stop(ids)]
        return ([*ids, self.stop_ids[0]] if finished else ids), tail

    def prompt_and_answer(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        answer: str,
        finished: bool = True,
        max_tokens: int | None = None,
    ) -> tuple[list[int], list[int]]:
        """Both lists of ids, together at most ``max_tokens`` long (see ``fit``)."""
        fitted = self.fitted(messages, answer, finished, max_tokens)
        return fitted.query, fitted.response

    def fitted(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        answer: str,
        finished: bool = True,
        max_tokens: int | None = None,
        prove: bool = False,
    ) -> Fitted:
        """``prompt_and_answer``, with what was cut; ``prove`` refuses a response whose text is not in its ids, or that
        the template writes with other white space."""
        turns = spoken(messages)
        prompt = self.prompt_ids(turns)
        ids, tail = self._answer(turns, answer, finished)
        if prove:
            self._prove(ids, answer, tail)
        return Fitted.of(prompt, ids, *self.fit(prompt, ids, max_tokens))

    def conversation(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        answer: str,
        finished: bool = True,
        supervise: Literal["all", "last"] = "all",
        max_tokens: int | None = None,
    ) -> Encoded:
        """Ids and labels of a whole conversation, for SFT.

        ``last`` supervises the response, ``all`` the assistant's turns in ``messages`` too, each with the stop token
        that follows it.

        Raises:
            UserError: the template leaves out some of the response, or with ``all`` an earlier turn of the assistant
                cannot be found in the rendered text.
        """
        turns = spoken(messages)
        prompt = self._prompt(turns)
        made = self.fitted(messages, answer, finished, max_tokens, prove=True)
        labels = [IGNORE] * len(prompt.ids)
        if supervise == "all" and any(t.role == "assistant" for t in turns):
            for i in self._supervised(turns, prompt):
                labels[i] = prompt.ids[i]
        return Encoded(
            ids=made.query + made.response,
            labels=[labels[i] for i in made.kept] + made.response,
            cut=made.cut_answer,
            fitted=made,
        )

    def text(self, ids: Sequence[int]) -> str:
        """Text of a response: up to its first stop id or stop string, without special tokens.

        Decoded behind another token, since SentencePiece decoders drop the blank of the first word. Surrounding white
        space is kept for the ``text`` template, where it separates prompt and response, and removed otherwise.
        """
        decoded = self.raw_text(ids)
        return decoded if self.template == TEXT else decoded.strip()

    def raw_text(self, ids: Sequence[int]) -> str:
        """Text up to the first stop id or string with the white space around it, as it follows a text that is no
        conversation."""
        ids = list(ids)
        if self.ended_by_string(ids):
            return self.stop_strings.text_before(ids)
        return self._inner_text(ids[: self._first_stop(ids)])

    def ended_by_string(self, ids: Sequence[int]) -> bool:
        """Whether a sampled response ended with a stop string, and so not with a stop token."""
        some = bool(self.stop_strings) and self._first_stop(ids) == len(ids)
        return some and self.stop_strings.end(ids) == len(ids) - 1

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether a sampled response ended by itself."""
        return self._first_stop(ids) < len(ids) or self.ended_by_string(ids)

    def body_length(self, ids: Sequence[int]) -> int:
        """Tokens of a sampled response that stand wholly before the stop token or string which ended it."""
        return self.stop_strings.tokens_before(ids) if self.ended_by_string(ids) else self._first_stop(ids)

    def closed(self, messages: Sequence[Message | Mapping[str, Any]], ids: Sequence[int]) -> list[int]:
        """A sampled response as training writes one: where a stop string ended it, the ids of its text and the stop
        token instead of the string; otherwise its own ids."""
        return self.answer_ids(messages, self.text(ids)) if self.ended_by_string(ids) else list(ids)

    def fit(self, prompt: Sequence[int], answer: Sequence[int], max_tokens: int | None) -> tuple[list[int], int]:
        """Return the indices of ``prompt`` and the number of response ids that are kept within ``max_tokens``.

        The prompt is cut from the left, behind its BOS and never into the template's generation prompt; only when a
        minimum of it and the response are still too long is the response cut, and then it has no stop token.

        Raises:
            UserError: the template alone leaves no room for a response.
        """
        if max_tokens is None or len(prompt) + len(answer) <= max_tokens:
            return list(range(len(prompt))), len(answer)
        bos = 1 if self._starts_with_bos(prompt) else 0
        minimum = bos + self._tail
        if minimum >= max_tokens:
            raise UserError(
                f"max_tokens {max_tokens} is too small: template {self.template_name} alone takes {minimum} tokens"
            )
        floor = min(len(prompt), max(minimum, min(SHORTEST_PROMPT, max_tokens // 2)))
        room = min(len(prompt), max(max_tokens - len(answer), floor))
        kept = [*range(bos), *range(len(prompt) - room + bos, len(prompt))]
        return kept, min(len(answer), max_tokens - room)

    def fingerprint(self) -> str:
        """sha256 over everything that decides the ids: tokenizer, template, stop, pad and BOS."""
        parts = [tokens.content_hash(self.tokenizer), self.template, self.stop_ids, self.pad_id, self._added_bos]
        parts += [self.stop_strings.texts] if self.stop_strings else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    # ---- text -------------------------------------------------------------------------------------------------------

    def _prompt(self, turns: tuple[Message, ...]) -> _Prompt:
        found = self._prompts.get(turns)
        if found is None:
            text = self._chat.prompt(turns)
            ids = tokens.tokenise(self.tokenizer, text)
            added = () if ids[:1] == list(self._added_bos) else self._added_bos
            if not ids and not added:
                added = (self._start_id(),)
            found = _Prompt(text=text, ids=(*added, *ids), start=len(added))
            if len(self._prompts) >= _CACHED:
                self._prompts.clear()
            self._prompts[turns] = found
        return found

    def _closing_of(self) -> tuple[str, int]:
        """Return what the template writes after a response, and how many ids it writes after the last user message."""
        user = Message(role="user", content=_SAMPLE)
        asked = self._chat.text([user], generate=True)
        answered = self._chat.text([user, Message(role="assistant", content=_SAMPLE + "2")], generate=False)
        closing = answered.rpartition(_SAMPLE + "2")[2]
        return closing, len(tokens.tokenise(self.tokenizer, asked.rpartition(_SAMPLE)[2]))

    def _opening_of(self) -> str:
        """What the template writes before a response's text and not as a generation prompt, markup aside: a response
        begins with it, in training and when it is sampled."""
        user = Message(role="user", content=_SAMPLE)
        asked = self._chat.text([user], generate=True)
        answered = self._chat.text([user, Message(role="assistant", content=_SAMPLE + "2")], generate=False)
        found = answered.removeprefix(asked).partition(_SAMPLE + "2")[0].strip() if answered.startswith(asked) else ""
        return "" if found.startswith("<") and found.endswith(">") else found

    def _ending(self) -> str:
        """What the template writes between a response's text and its stop token, markup aside; empty where no stop
        token follows, since nothing behind the text is supervised then."""
        user = Message(role="user", content=_SAMPLE)
        asked = self._chat.text([user], generate=True)
        answered = self._chat.text([user, Message(role="assistant", content=_SAMPLE + "2")], generate=False)
        if not answered.startswith(asked):
            return ""
        ids = tokens.tokenise(self.tokenizer, answered.removeprefix(asked).partition(_SAMPLE + "2")[2])
        end = self._first_stop(ids)
        found = self._inner_text(ids[:end]).strip() if end < len(ids) else ""
        return "" if found.startswith("<") and found.endswith(">") else found.replace(_SAMPLE + "2", "...")

    def doubts(self) -> Iterator[str]:
        """Sentences about what the template does that a user may not expect."""
        if self.template_name != "'text'" and self.opening:
            yield (
                f"template {self.template_name} writes {self.opening[:60]!r} before a response, and not when it asks "
                "for one: responses are trained and sampled with it, and scored so"
            )
        if ending := self._ending():
            yield (
                f"template {self.template_name} writes {ending[:60]!r} behind a response and before its stop token: "
                "responses are trained with it, so they are sampled and scored with it"
            )
        if "strftime_now" in (self.template or ""):
            yield (
                f"template {self.template_name} writes the date of the day: here it is always {DAY:%d %B %Y}, so that "
                "results do not depend on the day"
            )

    def _content_end(self, tail: str, answer: str) -> int:
        """Where in ``tail`` (the rendered response) the template's closing begins."""
        if tail.endswith(self._closing):
            return len(tail) - len(self._closing)
        for content in (answer, answer.strip()):
            at = tail.find(content)
            if at >= 0:
                return at + len(content)
        return len(tail)

    # ---- ids --------------------------------------------------------------------------------------------------------

    def _continuation(self, prompt: _Prompt, tail: str) -> list[int]:
        """Ids of ``tail`` behind the prompt's own ids."""
        own = list(prompt.ids[prompt.start :])
        whole = tokens.tokenise(self.tokenizer, prompt.text + tail)
        if whole[: len(own)] == own:
            return whole[len(own) :]
        alone = tokens.tokenise(self.tokenizer, tail)
        if self._inner_text(alone) == tail:
            return alone
        for border in ("\n", ".", ":", "a"):  # a SentencePiece tokenizer puts a blank before a text that stands alone
            left = tokens.tokenise(self.tokenizer, border)
            both = tokens.tokenise(self.tokenizer, border + tail)
            if both[: len(left)] == left and self._inner_text(both[len(left) :]) == tail:
                return both[len(left) :]
        return alone

    def _supervised(self, turns: Sequence[Message], prompt: _Prompt) -> Iterator[int]:
        """Positions in ``prompt.ids`` of the assistant's turns and of the stop tokens that close them.

        A token that holds white space of the template and the first letters of a turn is the turn's.

        Raises:
            UserError: a turn cannot be found in the rendered text, or its tokens not told from those around it.
        """
        own = prompt.ids[prompt.start :]
        offsets = tokens.Offsets(self.tokenizer, prompt.text, len(own))
        for n, turn in enumerate(turns):
            if turn.role != "assistant" or not turn.trained:
                continue
            before = self._chat.text(turns[:n], generate=True)
            at = len(before)
            close = self._end_of_turn(turns, n, prompt.text, at)
            if close is None or not prompt.text.startswith(before):
                raise UserError(
                    f"template {self.template_name} rewrites earlier turns of the assistant, so turn {n + 1} cannot be "
                    "found in the rendered conversation; set `sft.supervise: last` or choose another `template:`"
                )
            ways = [self._by_offsets, self._by_borders]
            first: list[int] = []
            for way in ways if offsets.count_all(prompt.text) else ways[::-1]:
                found = way(own, prompt.text, offsets, at, close)
                if self._spells([own[i] for i in found], prompt.text[at:close]):
                    yield from (i + prompt.start for i in found)
                    break
                first = first or found
            else:
                raise UserError(
                    f"template {self.template_name} leaves out some of the response of turn {n + 1}: of "
                    f"{prompt.text[at:close][:60]!r} it supervises {self._inner_text([own[i] for i in first])[:60]!r}, "
                    "for want of a border between tokens there; set `sft.supervise: last` or choose another "
                    "`template:` (dialogue, text, or a .jinja file)"
                )

    def _by_offsets(self, own: Sequence[int], text: str, offsets: tokens.Offsets, at: int, close: int) -> list[int]:
        """Places in ``own`` of the turn from ``at`` to ``close`` in ``text``, and of its stop token."""
        found: list[int] = []
        waiting: list[int] = []  # white space behind the content: the turn's own only if its stop token follows
        for i, (start, end) in enumerate(zip(offsets.starts, offsets.ends, strict=True)):
            if end <= at or (start < at and (text[start:at].strip() or not text[at : min(end, close)].strip())):
                continue
            is_stop = own[i] in self._stops
            if start < close or is_stop:
                found += [*waiting, i]
                waiting = []
            elif text[start:end].strip():
                break
            else:
                waiting.append(i)
            if is_stop:
                break
        return found

    def _by_borders(self, own: Sequence[int], text: str, offsets: tokens.Offsets, at: int, close: int) -> list[int]:
        """The same by the ids of the text before each border, for a tokenizer whose offsets do not count characters
        that it drops."""
        before, inside = (tokens.tokenise(self.tokenizer, text[:border]) for border in (at, close))
        shared, other = _common(before, own), _common(inside, own)
        over = len(before) - shared  # the ids before the border that are others once the turn follows
        begins = [shared + 1, shared, *range(shared + 2, shared + over + 1)] if over else [shared]
        tries = ((b, e) for b in begins for e in range(max(b, other), max(b, other, len(inside)) + 2))
        spelled = ((b, e) for b, e in tries if e <= len(own) and self._spells(own[b:e], text[at:close]))
        begin, end = next(spelled, (shared, max(shared, other)))
        stop = begin + self._first_stop(own[begin:end])
        if stop < end:
            return [*range(begin, stop + 1)]
        behind = end
        while behind < len(own) and own[behind] not in self._stops:
            if tokens.token_text(self.tokenizer, own[behind]).strip():
                return [*range(begin, end)]
            behind += 1
        return [*range(begin, behind + 1 if behind < len(own) else end)]

    def _spells(self, ids: Sequence[int], body: str) -> bool:
        """Whether ids, up to a stop token, are those of a turn's text and of nothing else."""
        ids = ids[: self._first_stop(ids)]
        found = self._inner_text(ids)
        if spells(found, found, body):
            return True
        shorter = self._inner_text(ids[:-1])
        known = tokens.tokenise(self.tokenizer, body)  # perhaps characters that the tokenizer has no token for
        bodies = (body, self._inner_text(known[: self._first_stop(known)]))
        return any(spells(found, shorter, one) for one in bodies)

    def _end_of_turn(self, turns: Sequence[Message], n: int, text: str, at: int) -> int | None:
        """Where the content of turn ``n`` ends in ``text``; behind its calls where it has some."""
        turn = turns[n]
        if not turn.tool_calls:
            return end_of_content(text, at, turn.content)
        whole = self._chat.text(turns[: n + 1], generate=False).rstrip()
        own = whole.removesuffix(self._closing.strip()) if self._closing.strip() else whole
        return len(own) if text.startswith(own) and len(own) > at else None

    def _prove(self, ids: Sequence[int], answer: str, tail: str) -> None:
        """Refuse ids that do not hold the response's text, up to a stop token of its own, and a rendered text that
        has lost white space of it."""
        found = self._inner_text(ids[: self._first_stop(ids)])
        if not carries(found, answer):  # perhaps a word that the tokenizer does not know, or a stop token in the text
            own = tokens.tokenise(self.tokenizer, answer)
            if not carries(found, expected := self._inner_text(own[: self._first_stop(own)])):
                raise UserError(
                    f"template {self.template_name} leaves out some of the response: of {expected[:60]!r} it "
                    f"supervises {found[:60]!r}; choose another `template:` (dialogue, text, or a .jinja file)"
                )
        if changed := changed_spaces(tail, answer):
            raise UserError(
                f"template {self.template_name} changes white space inside the response: it writes {changed!r} in "
                "another way; take out what does so, such as a filter `replace`, or choose another `template:` "
                "(dialogue, text, or a .jinja file)"
            )

    def _first_stop(self, ids: Sequence[int]) -> int:
        return next((i for i, t in enumerate(ids) if t in self._stops), len(ids))

    def _inner_text(self, ids: Sequence[int]) -> str:
        return tokens.decode_inner(self.tokenizer, ids, self._anchor)

    def _start_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.stop_ids[0] if bos is None else bos

    def _starts_with_bos(self, prompt: Sequence[int]) -> bool:
        return bool(prompt) and prompt[0] in {*self._added_bos, self.tokenizer.bos_token_id}

    def _find_stops(self, stop: Sequence[str | int], extra: Sequence[int] | int | None) -> tuple[int, ...]:
        if isinstance(stop, (str, int)):
            stop = (stop,)
        if stop:
            return tuple(dict.fromkeys(tokens.named_token(self.tokenizer, s) for s in stop))
        turn_end = tokens.leading_special(self.tokenizer, self._closing)
        found = [i for i in (turn_end, self.tokenizer.eos_token_id) if i is not None]
        found += [extra] if isinstance(extra, int) else list(extra or ())
        if not found:
            raise UserError(
                "the tokenizer has no end-of-sequence token and the template writes none: name the token that ends an "
                'response, e.g. `stop: ["</s>"]`'
            )
        return tuple(dict.fromkeys(found))


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many ids two lists begin with alike."""
    pairs = enumerate(zip(some, others, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(some), len(others)))
