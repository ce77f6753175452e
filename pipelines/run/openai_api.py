"""OpenAI's protocol for the models of a run: chat and plain completions, whole or as they are sampled.

Requests (``openai_requests``) and replies are those of the public API reference
(platform.openai.com/docs/api-reference). One response is sampled at a time, since all models share one base; nothing
more is sampled for a client that has left. It knows nothing of how models are loaded.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.common.errors import UserError, nearest
from data.common.loopback import Answer, as_json
from models.backbone.seeds import generator
from pipelines.run.chat_models import Room, Speaker
from pipelines.run.openai_requests import Asked, BadRequest, Chat, Completion, read

OK, BAD, MISSING = "200 OK", "400 Bad Request", "404 Not Found"
EVENTS = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """A response so far: its text up to a stop, how many tokens, and why it ended; None while it goes on."""

    text: str
    tokens: int
    ended: Literal["stop", "length"] | None


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the stop strings, and whether there is one."""
    places = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def settled(text: str, stops: Sequence[str]) -> str:
    """The part of a growing text that stays: without half a character, or what may become a stop string."""
    text = text.rstrip("\ufffd")
    longest = max((len(stop) - 1 for stop in stops), default=0)
    held = next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)
    return text[: len(text) - held]


class Application:
    """``/v1/models``, ``/v1/chat/completions`` and ``/v1/completions``, and ``/health``.

    Args:
        room: the models; the last one responds where a request names none, or what is served as a whole.
        name: of what is served.
    """

    def __init__(self, room: Room, name: str) -> None:
        self.room, self.name, self.lock = room, name, threading.Lock()
        self.created = int(time.time())

    def __call__(self, method: str, path: str, environ: Mapping[str, Any], body: bytes) -> Answer:
        routes = {"/v1/chat/completions": self._chat, "/v1/completions": self._completion}
        if method == "GET" and path == "/health":
            return as_json(OK, {"status": "ok", "name": self.name})
        if method == "GET" and path.rstrip("/") == "/v1/models":
            return as_json(OK, {"object": "list", "data": [self._model(s.name) for s in self.room.speakers]})
        if method != "POST" or path not in routes:
            return _error(MISSING, f"{method} {path[:80]}: there are GET /v1/models and POST {', '.join(routes)}")
        if str(environ.get("CONTENT_TYPE") or "").partition(";")[0].strip().lower() != "application/json":
            return _error("415 Unsupported Media Type", "send JSON with Content-Type: application/json")
        try:
            return routes[path](body, environ.get("waitress.client_disconnected") or (lambda: False))
        except UserError as error:
            return _error(BAD, str(error), getattr(error, "field", None))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.created, "owned_by": "trivet"}

    def _speaker(self, asked: str) -> Speaker:
        names = [speaker.name for speaker in self.room.speakers]
        if asked in ("", self.name):
            return self.room.speakers[-1]
        if asked not in names:
            there = f"there are {', '.join(names)}.{nearest(asked, names)}"
            raise BadRequest(f"model: there is no '{asked[:80]}'; {there}", "model")
        return self.room.speakers[names.index(asked)]

    # -- the two kinds of request --------------------------------------------------------------------------------------

    def _chat(self, body: bytes, left: Callable[[], bool]) -> Answer:
        request = read(Chat, body)
        speaker = self._speaker(request.model)
        prompt = speaker.renderer.prompt_ids(request.conversation)

        def whole(index: int, said: _Said) -> dict[str, Any]:
            message = {"role": "assistant", "content": said.text, "refusal": None}
            return {"index": index, "message": message, "finish_reason": said.ended, "logprobs": None}

        def part(index: int, text: str, ended: str | None, first: bool) -> dict[str, Any]:
            delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
            return {"index": index, "delta": delta, "finish_reason": ended, "logprobs": None}

        return self._reply(
            _Reply(request, speaker, prompt, speaker.renderer.text, "chat.completion", whole, part, left)
        )

    def _completion(self, body: bytes, left: Callable[[], bool]) -> Answer:
        request = read(Completion, body)
        speaker = self._speaker(request.model)
        tokenizer, given = speaker.base.tokenizer, request.prompt
        prompt = tokenizer(given)["input_ids"] if isinstance(given, str) else list(given)
        if not prompt or not all(0 <= i < len(tokenizer) for i in prompt):
            raise BadRequest(f"prompt: {'holds ids outside the vocabulary' if prompt else 'is empty'}", "prompt")

        def whole(index: int, said: _Said) -> dict[str, Any]:
            return {"index": index, "text": said.text, "finish_reason": said.ended, "logprobs": None}

        def part(index: int, text: str, ended: str | None, first: bool) -> dict[str, Any]:
            return {"index": index, "text": text, "finish_reason": ended, "logprobs": None}

        text = speaker.renderer.raw_text
        return self._reply(_Reply(request, speaker, prompt, text, "text_completion", whole, part, left))

    def _reply(self, reply: _Reply) -> Answer:
        asked, positions = reply.request.limit, reply.speaker.base.context_length
        longest = asked or self.room.max_new_tokens
        if positions is not None and len(reply.prompt) + longest > positions:
            room = positions - len(reply.prompt)
            if asked is not None or room < 1:
                raise UserError(
                    f"the prompt has {len(reply.prompt)} tokens, and the model {positions} positions for it and a "
                    f"response{f' of {asked}' if asked else ''}: shorten it, or lower max_tokens"
                )
            longest = room
        head = {
            "id": f"{reply.kind[:4]}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": reply.speaker.name,
        }
        if reply.request.stream:
            return Answer(OK, kind=EVENTS, parts=_ended_by_a_word(self._streamed(reply, longest, head)))
        with self.lock:
            said = [_last(reply.said(index, longest)) for index in range(reply.request.n)]
        choices = [reply.whole(index, one) for index, one in enumerate(said)]
        usage = _usage(len(reply.prompt), sum(one.tokens for one in said))
        return as_json(OK, head | {"object": reply.kind, "choices": choices, "usage": usage})

    def _streamed(self, reply: _Reply, longest: int, head: dict[str, Any]) -> Iterator[bytes]:
        """Server-sent events: what has settled of each response, one response after the other."""
        kind = "chat.completion.chunk" if reply.kind == "chat.completion" else reply.kind

        def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
            return f"data: {json.dumps(head | {'object': kind, 'choices': choices} | more)}\n\n".encode()

        total = 0
        with self.lock:
            for index in range(reply.request.n):
                shown, said = 0, None
                for said in reply.said(index, longest):
                    growing = reply.speaker.renderer.stop_strings.settled(settled(said.text, reply.request.stop))
                    ready = said.text if said.ended else growing
                    if len(ready) > shown or said.ended:
                        yield event([reply.part(index, ready[shown:], said.ended, shown == 0)])
                        shown = max(shown, len(ready))
                total += said.tokens if said is not None else 0
        if reply.request.counted:
            yield event([], usage=_usage(len(reply.prompt), total))
        yield b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class _Reply:
    """A request, who responds to which ids, how ids are written, the two forms of a choice, whether the client left."""

    request: Asked
    speaker: Speaker
    prompt: Sequence[int]
    text: Callable[[Sequence[int]], str]
    kind: str
    whole: Callable[[int, _Said], dict[str, Any]]
    part: Callable[[int, str, str | None, bool], dict[str, Any]]
    left: Callable[[], bool]

    def said(self, index: int, longest: int) -> Iterator[_Said]:
        """The response of this number as it grows; the last one says why it ended."""
        request, speaker = self.request, self.speaker
        seed = secrets.randbits(62) if request.seed is None else request.seed
        noise = generator(seed, "serve", index)
        for ids in speaker.tokens(
            self.prompt, temperature=request.temperature, max_new_tokens=longest, generator=noise
        ):
            count = len(ids)
            text, stopped = cut(self.text(ids), request.stop)
            yield _Said(text=text, tokens=count, ended=_end(stopped or speaker.ended(ids), count == longest))
            if stopped or self.left():
                return


def _ended_by_a_word(parts: Iterator[bytes]) -> Iterator[bytes]:
    """A stream whose failure is its last event: the status was sent before."""
    try:
        yield from parts
    except Exception as error:
        said = {"message": f"{type(error).__name__}: {error}", "type": "server_error", "param": None, "code": None}
        yield f"data: {json.dumps({'error': said})}\n\n".encode()


def _last(grown: Iterator[_Said]) -> _Said:
    """A response when nothing more comes of it."""
    *_, last = grown
    return last


def _end(by_itself: bool, at_the_limit: bool) -> Literal["stop", "length"] | None:
    return "stop" if by_itself else "length" if at_the_limit else None


def _usage(prompt: int, response: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": response, "total_tokens": prompt + response}


def _error(status: str, message: str, field: str | None = None) -> Answer:
    kind = "invalid_request_error"
    return as_json(status, {"error": {"message": message, "type": kind, "param": field, "code": None}})
