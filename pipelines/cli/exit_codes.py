"""Exit codes: what went wrong -> one message and a number. Also options that take several values.

0 done; 2 the user's input is wrong; 3 a stage failed; 130 and 143 stopped by a signal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.exceptions import Abort, Exit, TyperException

from data.common.errors import UNWRITABLE, StageError, UserError
from data.common.redaction import printable, redact
from pipelines.stages.table import STAGES
from stages.safe_points.interrupts import INTERRUPTS

SETTING = re.compile(r"[\w.]+=.*", re.DOTALL)
SEVERAL: dict[str, Callable[[str], Any]] = {
    "--set": SETTING.fullmatch,
    "--input": SETTING.fullmatch,
    "--clean": SETTING.fullmatch,
    "--columns": SETTING.fullmatch,
    "--only": lambda word: word in STAGES,
}
"""Options that take several values, and what is one more of them."""


class StageFailed(Exception):
    """A stage ended with an error that is not the user's: the message names the log."""


def spread_values(arguments: Sequence[str]) -> list[str]:
    """``--set a=1 b=2`` becomes ``--set a=1 --set b=2``; the same for all of ``SEVERAL``."""
    out: list[str] = []
    option = ""
    wants_value = False
    for word in arguments:
        if word in SEVERAL:
            option, wants_value = word, True
        elif wants_value:
            wants_value = False
        elif option and SEVERAL[option](word):
            out.append(option)
        else:
            option = ""
        out.append(word)
    return out


@dataclass
class Ended:
    """How a command ended: its exit code."""

    code: int = 0


@contextlib.contextmanager
def exit_code() -> Iterator[Ended]:
    """Errors of the command that is run within become messages on standard error, and an exit code."""
    ended, caught = Ended(), list[int]()
    try:
        with _stoppable(caught):
            yield ended
    except UserError as error:
        ended.code = _report(f"trivet: {error}", 2)
    except StageFailed as error:
        ended.code = _report(f"trivet: {error}", 3)
    except TyperException as error:
        show = getattr(error, "show", None)
        show() if show is not None else _report(f"trivet: {error}", 2)
        ended.code = 2
    except Exit as stop:
        ended.code = stop.exit_code
    except (KeyboardInterrupt, Abort):
        ended.code = _stopped(caught)
    except Exception as error:
        if unusable := _unusable_name(error):
            ended.code = _report(f"trivet: {unusable}", 2)
            return
        text = f"trivet: {summary_of(error, resumes=False)}\ntrivet: {log_line(write_traceback(None))}"
        ended.code = _report(text, 3)
    else:
        if caught or ended.code == 130:  # typer turns the interrupt into a plain 130
            ended.code = _stopped(caught)


def _unusable_name(error: Exception) -> str:
    """A sentence about a path that no file can have, or that must not be used; empty of any other error."""
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP) and error.filename:
        name = str(error.filename)
        return f"{name[:100]}{'...' * (len(name) > 100)}: cannot be a name here ({error.strerror}); choose another"
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES) and error.filename:
        return f"{error.filename}: cannot be written or read ({error.strerror}); choose another, or change its rights"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib before Python 3.13
        return f"{str(error).partition(' from ')[2]}: is a link that leads back to itself; choose another name"
    return ""


def _stopped(caught: Sequence[int]) -> int:
    INTERRUPTS.clear()
    code = 128 + (caught[0] if caught else signal.SIGINT)
    return _report("trivet: stopped; finished stages are kept, and the same command resumes from there", code)


def _report(message: str, code: int) -> int:
    print(printable(message), file=sys.stderr)
    return code


@contextlib.contextmanager
def _stoppable(caught: list[int]) -> Iterator[None]:
    """SIGTERM stops a command as Ctrl-C does; ``caught`` distinguishes them. Signals belong to the main thread.

    A stage with checkpoints is stopped at its next safe point by the first signal, at once by a second one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        caught.append(number)
        if len(caught) == 1 and INTERRUPTS.ask():
            os.write(2, b"trivet: saving at the next safe point, then stopping; once more stops at once\n")
            return
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ended(Exception):
    """A server was asked to end."""


def until_stopped(ready: Callable[[], None] = lambda: None) -> None:
    """Wait for Ctrl-C or SIGTERM: to a server they are no failure, so nothing is said and the exit code is 0.

    Args:
        ready: called once signals end the waiting.
    """

    def end(*_: object) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ready()
        threading.Event().wait()
    except _Ended:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary_of(error: BaseException, resumes: bool = True) -> str:
    """The error's type and message, without the traceback; ``resumes``: it ended a stage, which has checkpoints."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: cannot be written or read ({error.strerror})"
    if isinstance(error, StageError):
        return text
    if any(os.strerror(number) in text for number in UNWRITABLE):  # also in the words of libraries that write files
        again = "resumes from its newest checkpoint" if resumes else "does it again; what was finished is kept"
        return f"{text}: make room (or fix the folder), then the same command {again}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def write_traceback(folder: Path | None) -> Path | None:
    """Write the current error's traceback into a file for each process.

    Args:
        folder: where to; a temporary one where this is full, or for None.

    Returns:
        The file; None where no disk takes it.
    """
    rank, text = os.environ.get("RANK", "0"), redact(traceback.format_exc())
    name = "error.log" if rank == "0" else f"error-{rank}.log"
    for place in (folder, None):
        with contextlib.suppress(OSError):
            there = Path(tempfile.mkdtemp(prefix="trivet-")) if place is None else place
            there.mkdir(parents=True, exist_ok=True)
            try:
                (there / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            except OSError:
                (there / name).unlink(missing_ok=True)  # a part of it
                raise
            return there / name
    return None


def log_line(log: Path | None) -> str:
    """Where the log of an error is, in words."""
    return f"the log is {log}" if log is not None else "no log could be written: every disk is full"
