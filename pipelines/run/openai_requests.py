"""Requests of OpenAI's protocol: which fields there are, which values they take, and what is said of others.

Types are strict: a number that stands as a text, or true for 1, is refused, as OpenAI's own server does. A field that
would have no effect here is refused unless its value is the one by which it does nothing. Null is a field's default,
as clients send it. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from data.common.config import greedy_or_warm
from data.common.errors import UserError
from data.common.strict_json import object_of
from data.records import Message

_MANY = "one prompt a request: a text, or a list of ids"


class BadRequest(UserError):
    """A request that cannot be responded to, and the field that it is about, where it is one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def _not_empty(stop: str) -> str:
    if not stop:
        raise ValueError("an empty text would end every response before it began; leave it out")
    return stop


_Stop = Annotated[str, AfterValidator(_not_empty)]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of request have; fields that have no effect here take the value by which they do nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str = ""
    temperature: Annotated[float, AfterValidator(greedy_or_warm)] = Field(1.0, ge=0, le=2)
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: _StreamOptions | None = None
    stop: Annotated[list[_Stop], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)] = []
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    top_p: Literal[1, None] = None
    presence_penalty: Literal[0, None] = None
    frequency_penalty: Literal[0, None] = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, given: Any) -> Any:
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {k: v for k, v in given.items() if v is not None or k not in optional}

    @model_validator(mode="after")
    def _counts_belong_to_streams(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: has no effect without stream; leave it out, or ask for a stream")
        return self

    @property
    def counted(self) -> bool:
        """Whether a stream ends with the counts of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def limit(self) -> int | None:
        """The longest response that is asked for, in tokens."""
        return self.max_tokens


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant", "developer"]
    content: str | Annotated[list[_Part], Field(min_length=1)]
    name: Literal[None] = None
    refusal: Literal[None] = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    def as_message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class Chat(Asked):
    """A request for the next turn of a conversation."""

    messages: list[_Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False, None] = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @model_validator(mode="after")
    def _can_be_responded_to(self) -> Chat:
        if self.messages[-1].role == "assistant":
            raise ValueError("messages: the last one is the assistant's; end with what it is to respond to")
        if None not in (both := (self.max_tokens, self.max_completion_tokens)) and both[0] != both[1]:
            raise ValueError("max_tokens: is another number than max_completion_tokens; give one of them")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def conversation(self) -> list[Message]:
        """The turns."""
        return [turn.as_message() for turn in self.messages]


class Completion(Asked):
    """A request for what comes after a text or after ids."""

    prompt: str | list[int]
    echo: Literal[False, None] = None
    best_of: Literal[1, None] = None
    logprobs: Literal[None] = None
    suffix: Literal["", None] = None


Kind = TypeVar("Kind", bound=Asked)


def read(kind: type[Kind], body: bytes) -> Kind:
    """The request in a body.

    Raises:
        BadRequest: it is no JSON object, names a key twice, holds half of a surrogate pair, or has a field that is not
            known, is of another type, or would have no effect.
    """
    try:
        given = object_of(body.decode("utf-8-sig"), "the request")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the request: is no UTF-8 text (byte {error.start})") from None
    if half := next((field for field, text in _texts(given) if any("\ud800" <= c <= "\udfff" for c in text)), None):
        raise BadRequest(f"{half}: holds half of a surrogate pair, which is no text", half)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = [str(part) for part in first["loc"]]
        field = ".".join(place[: 3 if place[:1] == ["messages"] else 1])
        reason = _reason(first, place)
        named, colon, _ = reason.partition(": ")
        if not field and colon and named in kind.model_fields:
            raise BadRequest(reason, named) from None
        raise BadRequest(f"{field}: {reason}", field) from None


def _reason(error: Any, place: list[str]) -> str:
    """What is wrong with a field, and what would be right."""
    kind, text = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if place[:1] == ["prompt"]:
        return "is missing" if kind == "missing" else _MANY
    if kind == "extra_forbidden":
        return "nothing reads this here"
    if kind == "missing":
        return "is missing"
    if place[0:1] == ["messages"] and place[2:3] == ["role"]:
        return f"there are system, developer, user and assistant ({text.lower()})"
    if place[0:1] == ["messages"] and place[2:3] == ["content"]:
        return "is no text, and no list of parts that are texts"
    if kind in ("literal_error", "too_long", "none_required"):
        return f"has no effect here; leave it out ({text.lower()})"
    return text


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in JSON values, keys included, with the field of the request that it belongs to."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield place or "the request", key
            yield from _texts(one, place or key)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, place)
