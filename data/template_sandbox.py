"""Renders chat templates of others in a process of its own, whose time, memory and output are bounded.

Jinja's sandbox keeps a template from reaching Python's internals, but not from looping for ever or asking for
terabytes, also inside one C call that no thread or signal handler could interrupt. So the process that renders gets
limits from the kernel; when it dies, the next text is rendered by a new one. This file is the parent's side and, run
as a script, the child's; it imports nothing else of ours.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECONDS = 3.0  # of CPU time a text
MEMORY = 2 << 30  # bytes of address space
DAY = datetime.date(2024, 7, 26)
"""What a template that asks for the date is told, as Llama's without a clock: a row has the same ids on any day."""
LARGEST = 1_000_000  # characters of a text, or ten times what went in
_SECRET = re.compile(r"(?i)token|secret|passw|credential|key$")


class RenderingError(Exception):
    """A template that fails, or takes too much; the message says which."""


class _Process:
    """The child, started when first needed and again after it died or the process forked."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            child = self._running()
            assert child.stdin is not None and child.stdout is not None
            try:
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()
                answer = child.stdout.readline()
            except OSError:
                answer = b""
            except BaseException:  # interrupted between question and answer: never mistake one for another
                self._stop(child)
                raise
            if answer.endswith(b"\n"):
                return json.loads(answer)
            self._stop(child)
            return {"error": _ended(child.returncode)}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            environment = {k: v for k, v in os.environ.items() if not _SECRET.search(k)}
            self._child = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment | {"TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the parent
            )
            self._owner = os.getpid()
        return self._child

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        self._child = None
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1.0)  # at its own end, whose reason is reported
        child.kill()
        child.wait()


_PROCESS = _Process()


def _ended(code: int | None) -> str:
    if code == -signal.SIGPROF:
        return f"it took more than {SECONDS:g} seconds of CPU time"
    if code == -signal.SIGKILL:
        return "it was killed, probably for its memory"
    return f"the process that renders ended with code {code}"


def render_foreign(
    template: str, messages: Sequence[Mapping[str, Any]], generate: bool, special: Mapping[str, Any]
) -> str:
    """Text of a conversation by a template that nobody has checked.

    Args:
        template: jinja.
        messages: with role and content, and perhaps calls of tools.
        generate: whether the generation prompt follows.
        special: further names that the template sees (special tokens, tools).

    Raises:
        RenderingError: the template fails, or exceeds time, memory or length.
    """
    size = len(template) + len(json.dumps([messages, special.get("tools")], ensure_ascii=False))
    request = {
        "template": template,
        "messages": list(messages),
        "generate": generate,
        "special": dict(special),
        "most": max(LARGEST, 10 * size),
        "seconds": SECONDS,
    }
    answer = _PROCESS.ask(request)
    if "error" in answer:
        raise RenderingError(answer["error"])
    return answer["text"]


# -- the child --------------------------------------------------------------------------------------------------------


def _limit() -> None:
    import resource

    for what, most in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
            resource.setrlimit(getattr(resource, what), (most, most))


class _Clock:
    """Stands in for ``datetime`` where Transformers tells templates the time."""

    @staticmethod
    def now() -> datetime.datetime:
        return datetime.datetime.combine(DAY, datetime.time())


def _answer(asked: dict[str, Any]) -> dict[str, str]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        text = render_jinja_template(
            [asked["messages"]],
            chat_template=asked["template"],
            add_generation_prompt=asked["generate"],
            **asked["special"],
        )[0][0]
    except MemoryError:
        return {"error": f"it asked for more than {MEMORY >> 30} GB of memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # whatever a template can raise
        return {"error": f"{error}"[:1000] or type(error).__name__}
    if len(text) > asked["most"]:
        return {"error": f"it wrote {len(text):,} characters (at most {asked['most']:,})"}
    return {"text": text}


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    import transformers.utils.chat_template_utils as templates  # before the clock runs

    vars(templates)["datetime"] = _Clock

    _limit()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, asked["seconds"])  # no handler: the kernel ends the process
        answer = json.dumps(_answer(asked)).encode() + b"\n"
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    _serve()
