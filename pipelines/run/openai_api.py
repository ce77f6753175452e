"""OpenAI's protocol for the models of a run: chat and plain completions, whole or as they are sampled.

Requests and replies are those of the public API reference (platform.openai.com/docs/api-reference). A field that would
have no effect here is refused unless its value is the one by which it does nothing. One response is sampled at a time,
since all models share one base. It knows nothing of how models are loaded.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.common.errors import UserError, nearest
from data.common.loopback import Answer, as_json
from data.records import Message
from models.backbone.seeds import generator
from pipelines.run.chat_models import Room, Speaker

OK, BAD, MISSING = "200 OK", "400 Bad Request", "404 Not Found"
EVENTS = "text/event-stream; charset=utf-8"


class _Request(BaseModel):
    """What both kinds of request have; fields that have no effect here take the value by which they do nothing."""

    model_config = ConfigDict(extra="forbid")
    model: str = ""
    temperature: float = Field(1.0, ge=0, le=2)
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    top_p: Literal[1, None] = None
    presence_penalty: Literal[0, None] = None
    frequency_penalty: Literal[0, None] = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def counted(self) -> bool:
        """Whether a stream ends with the counts of its tokens."""
        return bool((self.stream_options or {}).get("include_usage"))


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant", "developer"]
    content: str | list[dict[str, str]]
    name: str | None = None

    def as_message(self) -> Message:
        text = self.content
        if not isinstance(text, str):
            if odd := [part for part in text if part.keys() != {"type", "text"} or part["type"] != "text"]:
                raise UserError(f"messages: a part of a content is no text: {str(odd[0])[:60]}")
            text = "".join(part["text"] for part in text)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class _Chat(_Request):
    messages: list[_Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False, None] = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None


class _Completion(_Request):
    prompt: str | list[int]
    echo: Literal[False, None] = None
    best_of: Literal[1, None] = None
    logprobs: Literal[None] = None
    suffix: Literal["", None] = None


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
            return routes[path](json.loads(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"][:2])
            return _error(BAD, f"{field}: {_reason(first)}", field)
        except UserError as error:
            return _error(BAD, str(error))
        except (ValueError, RecursionError) as error:
            return _error(BAD, f"not JSON: {error}")

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.created, "owned_by": "trivet"}

    def _speaker(self, asked: str) -> Speaker:
        names = [speaker.name for speaker in self.room.speakers]
        if asked in ("", self.name):
            return self.room.speakers[-1]
        if asked not in names:
            raise UserError(f"model: there is no '{asked[:80]}'; there are {', '.join(names)}.{nearest(asked, names)}")
        return self.room.speakers[names.index(asked)]

    # -- the two kinds of request --------------------------------------------------------------------------------------

    def _chat(self, body: Any) -> Answer:
        request = _Chat.model_validate(body)
        speaker = self._speaker(request.model)
        if request.messages[-1].role == "assistant":
            raise UserError("messages: the last one is the assistant's; end with what it is to respond to")
        prompt = speaker.renderer.prompt_ids([turn.as_message() for turn in request.messages])

        def whole(index: int, said: _Said) -> dict[str, Any]:
            message = {"role": "assistant", "content": said.text, "refusal": None}
            return {"index": index, "message": message, "finish_reason": said.ended, "logprobs": None}

        def part(index: int, text: str, ended: str | None, first: bool) -> dict[str, Any]:
            delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
            return {"index": index, "delta": delta, "finish_reason": ended, "logprobs": None}

        reply = _Asked(request, speaker, prompt, speaker.renderer.text, "chat.completion", whole, part)
        return self._reply(reply, request.max_completion_tokens)

    def _completion(self, body: Any) -> Answer:
        request = _Completion.model_validate(body)
        speaker = self._speaker(request.model)
        tokenizer, given = speaker.base.tokenizer, request.prompt
        prompt = tokenizer(given)["input_ids"] if isinstance(given, str) else list(given)
        if not prompt or not all(0 <= i < len(tokenizer) for i in prompt):
            raise UserError("prompt: is empty" if not prompt else "prompt: holds ids outside the vocabulary")

        def whole(index: int, said: _Said) -> dict[str, Any]:
            return {"index": index, "text": said.text, "finish_reason": said.ended, "logprobs": None}

        def part(index: int, text: str, ended: str | None, first: bool) -> dict[str, Any]:
            return {"index": index, "text": text, "finish_reason": ended, "logprobs": None}

        reply = _Asked(request, speaker, prompt, speaker.renderer.raw_text, "text_completion", whole, part)
        return self._reply(reply, None)

    def _reply(self, reply: _Asked, limit: int | None) -> Answer:
        asked, positions = limit or reply.request.max_tokens, reply.speaker.base.context_length
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
            return Answer(OK, kind=EVENTS, parts=self._streamed(reply, longest, head))
        with self.lock:
            said = [list(reply.said(index, longest))[-1] for index in range(reply.request.n)]
        choices = [reply.whole(index, one) for index, one in enumerate(said)]
        usage = _usage(len(reply.prompt), sum(one.tokens for one in said))
        return as_json(OK, head | {"object": reply.kind, "choices": choices, "usage": usage})

    def _streamed(self, reply: _Asked, longest: int, head: dict[str, Any]) -> Iterator[bytes]:
        """Server-sent events: what has settled of each response, one response after the other."""
        kind = "chat.completion.chunk" if reply.kind == "chat.completion" else reply.kind

        def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
            return f"data: {json.dumps(head | {'object': kind, 'choices': choices} | more)}\n\n".encode()

        total = 0
        with self.lock:
            for index in range(reply.request.n):
                shown, said = 0, None
                for said in reply.said(index, longest):
                    growing = reply.speaker.renderer.stop_strings.settled(settled(said.text, reply.request.stops))
                    ready = said.text if said.ended else growing
                    if len(ready) > shown or said.ended:
                        yield event([reply.part(index, ready[shown:], said.ended, shown == 0)])
                        shown = max(shown, len(ready))
                total += said.tokens if said is not None else 0
        if reply.request.counted:
            yield event([], usage=_usage(len(reply.prompt), total))
        yield b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, who responds to which ids, how ids are written, and the two forms of a choice."""

    request: _Request
    speaker: Speaker
    prompt: Sequence[int]
    text: Callable[[Sequence[int]], str]
    kind: str
    whole: Callable[[int, _Said], dict[str, Any]]
    part: Callable[[int, str, str | None, bool], dict[str, Any]]

    def said(self, index: int, longest: int) -> Iterator[_Said]:
        """The response of this number as it grows; the last one says why it ended."""
        request, speaker = self.request, self.speaker
        seed = secrets.randbits(62) if request.seed is None else request.seed
        noise = generator(seed, "serve", index)
        for ids in speaker.tokens(
            self.prompt, temperature=request.temperature, max_new_tokens=longest, generator=noise
        ):
            count = len(ids)
            text, stopped = cut(self.text(ids), request.stops)
            yield _Said(text=text, tokens=count, ended=_end(stopped or speaker.ended(ids), count == longest))
            if stopped:
                return


def _end(by_itself: bool, at_the_limit: bool) -> Literal["stop", "length"] | None:
    return "stop" if by_itself else "length" if at_the_limit else None


def _usage(prompt: int, response: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": response, "total_tokens": prompt + response}


def _reason(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "nothing reads this here"
    if error["type"] in ("literal_error", "too_long", "none_required"):
        return f"has no effect here; leave it out ({error['msg'].lower()})"
    return str(error["msg"])


def _error(status: str, message: str, field: str | None = None) -> Answer:
    kind = "invalid_request_error"
    return as_json(status, {"error": {"message": message, "type": kind, "param": field, "code": None}})
