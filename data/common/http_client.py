"""Asking a server for JSON: time-outs, retries with growing waits, bounded concurrency; secrets never in a message.

Used by remote rewards and chat judges. A server that stays slow, wrong or dead is a ``RemoteError``, which ends a stage
with exit code 3; what the stage had finished is for its caller to save. Knows nothing of what is asked.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from data.common.errors import StageError, UserError
from data.common.redaction import HIDDEN, printable

LARGEST = 16 * 2**20  # bytes of an answer that are read
LONGEST_WAIT = 60.0  # seconds between two tries at most
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # states that may pass
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
Question = TypeVar("Question")
Answer = TypeVar("Answer")


class RemoteError(StageError):
    """A server did not give a usable answer, however often it was asked; ``refused``: and it never will."""

    refused = False


class Unusable(Exception):
    """An answer that cannot be used; the message says why."""


class Asking(Protocol):
    """Settings of how a server is asked; ``Server`` says what they mean."""

    @property
    def timeout(self) -> float: ...
    @property
    def retries(self) -> int: ...
    @property
    def backoff(self) -> float: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def token_env(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where and how to ask.

    ``timeout`` is in seconds for a whole answer, ``retries`` how often to ask again, ``backoff`` the first wait in
    seconds, which doubles each time (a ``Retry-After`` of the server's counts where it is longer). ``token_env`` names
    the environment variable whose value is sent as a bearer token; the value itself is kept out of every message.
    """

    url: str
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 0.5
    concurrency: int = 4
    token_env: str | None = None
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    @classmethod
    def of(cls, url: str, how: Asking) -> Server:
        """A server that is asked as settings say, its address and token checked.

        Raises:
            UserError: an address or token that cannot be used.
        """
        made = cls(
            url=url,
            timeout=how.timeout,
            retries=how.retries,
            backoff=how.backoff,
            concurrency=how.concurrency,
            token_env=how.token_env,
        )
        made.check()
        return made

    def check(self) -> None:
        """Raises UserError where the address or the token cannot be used, before anything is asked."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{printable(self.url)}: write the address as http://host:port/path or https://...")
        if parts.username or parts.password:
            raise UserError("an address with a name or password in it: name an environment variable in token_env")
        if self.token_env and not self._token:
            raise UserError(f"token_env: the environment variable {self.token_env} is not set; export it and run again")

    def post(self, body: Any, read: Callable[[Any], Answer]) -> Answer:
        """Send JSON and return ``read(answer)``; what ``read`` refuses with ``Unusable`` is asked again as well.

        Raises:
            RemoteError: no usable answer after all retries, or a refusal that will not pass (such as 401 or 404).
        """
        return self._answer(_as_json(body), lambda text: read(_parsed(text)))

    def get(self, read: Callable[[Any], Answer]) -> Answer:
        """Ask without a body; otherwise as ``post``."""
        return self._answer(None, lambda text: read(_parsed(text)))

    def tell(self, body: Any) -> None:
        """Send JSON to a server that answers in words, which are not read; otherwise as ``post``."""
        self._answer(_as_json(body), lambda text: None)

    def _answer(self, body: bytes | None, read: Callable[[bytes], Answer]) -> Answer:
        """``read`` of the first usable answer."""
        reason, wait = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                self.sleep(wait)
            wait = min(LONGEST_WAIT, self.backoff * 2**attempt) * random.uniform(0.75, 1.25)
            try:
                status, after, text = self._ask(body)
                if status in AGAIN:
                    wait = min(LONGEST_WAIT, max(wait, after))
                    raise Unusable(f"it answered {status}: {_excerpt(text)}")
                if status != 200:
                    error = self._error(f"it answered {status}: {_excerpt(text)}", attempt + 1)
                    error.refused = True
                    raise error
                return read(text)
            except Unusable as unusable:
                reason = str(unusable)
        raise self._error(reason, self.retries + 1)

    def post_all(
        self,
        bodies: Iterable[Question],
        ask: Callable[[Question], Answer],
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Answer]:
        """``ask`` of each, in order, at most ``concurrency`` at a time; the first failure ends the others.

        ``done`` is told of each answer, in the order of the questions.
        """
        pool = ThreadPoolExecutor(max_workers=self.concurrency, thread_name_prefix="trivet-http")
        try:
            answers = []
            for future in [pool.submit(ask, b) for b in bodies]:
                answers.append(future.result())
                done(1)
            return answers
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _error(self, reason: str, tries: int) -> RemoteError:
        often = "once" if tries == 1 else f"{tries} times"
        text = f"{self.url} was asked {often} and gave no usable answer; the last: {reason}"
        if self._token:  # a server may repeat what it was sent
            text = text.replace(self._token, HIDDEN)
        return RemoteError(printable(text))

    @property
    def _token(self) -> str:
        return os.environ.get(self.token_env, "") if self.token_env else ""

    def _ask(self, body: bytes | None) -> tuple[int, float, bytes]:
        """``(status, seconds of Retry-After, text)`` of one request."""
        import requests

        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        end = time.monotonic() + self.timeout
        with requests.Session() as session:
            session.trust_env = urlsplit(self.url).hostname not in LOOPBACK  # no proxy to this machine
            try:
                # auth: nothing from .netrc; redirects: a token goes to the named address alone
                found = session.request(
                    "GET" if body is None else "POST",
                    self.url,
                    data=body,
                    headers=headers,
                    timeout=self.timeout,
                    stream=True,
                    allow_redirects=False,
                    auth=lambda request: request,
                )
                text = b""
                for part in found.iter_content(2**16):
                    text += part
                    if len(text) > LARGEST:
                        raise Unusable(f"its answer is longer than {LARGEST >> 20} MiB")
                    if time.monotonic() > end:
                        raise Unusable(f"it did not finish an answer within {self.timeout:g} s")
            except requests.Timeout:
                raise Unusable(f"no answer within {self.timeout:g} s") from None
            except requests.RequestException as error:
                raise Unusable(_plain(error)) from None
        if found.is_redirect:
            text = f"it is at {found.headers['Location']}; name that address, for redirects are not followed".encode()
        after = found.headers.get("Retry-After", "")
        return found.status_code, float(after) if after.isdigit() else 0.0, text


def _as_json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unusable(f"its answer is not JSON: {_excerpt(text)}") from None


def _excerpt(text: bytes) -> str:
    shown = " ".join(text[:400].decode("utf-8", "replace").split())
    return repr(shown[:160]) if shown else "(nothing)"


def _plain(error: Exception) -> str:
    """A connection's failure in words; libraries nest three objects into one line."""
    said = str(error)
    for sign, words in (
        ("refused", "the connection was refused: nothing listens there"),
        ("resolve", "its name cannot be resolved"),
        ("Remote end closed", "it closed the connection without an answer"),
        ("reset by peer", "it broke the connection off"),
        ("certificate", "its certificate is not trusted"),
    ):
        if sign in said:
            return words
    return f"{type(error).__name__}: {said[:200]}"
