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
from pathlib import Path
from typing import Any

from typer.exceptions import Abort, Exit, TyperException

from data.common.errors import StageError, UserError
from data.common.redaction import printable, redact
from pipelines.stages.table import STAGES
from stages.safe_points.interrupts import INTERRUPTS

SETTING = re.compile(r"[\w.]+=.*", re.DOTALL)
SEVERAL: dict[str, Callable[[str], Any]] = {
    "--set": SETTING.fullmatch,
    "--input": SETTING.fullmatch,
    "--clean": SETTING.fullmatch,
    "--only": lambda word: word in STAGES,
}
"""Options that take several values, and what is one more of them."""


UNWRITABLE = tuple(os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG))


class StageFailed(Exception):
    """A stage ended with an error that is not the user's: the message names the log."""


def spread_values(arguments: Sequence[str]) -> list[str]:
    """``--set a=1 b=2`` becomes ``--set a=1 --set b=2``; the same for ``--input`` and ``--only``."""
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


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; errors become messages on standard error.

    Returns:
        The exit code.
    """
    caught: list[int] = []
    try:
        with _stoppable(caught):
            result = command()
        code = result if isinstance(result, int) else 0
    except UserError as error:
        return _report(f"trivet: {error}", 2)
    except StageFailed as error:
        return _report(f"trivet: {error}", 3)
    except TyperException as error:
        show = getattr(error, "show", None)
        show() if show is not None else _report(f"trivet: {error}", 2)
        return 2
    except Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, Abort):
        code = 130
    except Exception as error:
        log = write_traceback(Path(tempfile.mkdtemp(prefix="trivet-")))
        return _report(f"trivet: {summary_of(error, resumes=False)}\ntrivet: the log is {log}", 3)
    if caught or code == 130:  # typer turns the interrupt into a plain 130
        code = 128 + (caught[0] if caught else signal.SIGINT)
        INTERRUPTS.clear()
        return _report("trivet: stopped; finished stages are kept, and the same command resumes from there", code)
    return code


def _report(message: str, code: int) -> int:
    print(printable(message), file=sys.stderr)
    return code


@contextlib.contextmanager
def _stoppable(caught: list[int]) -> Iterator[None]:
    """SIGTERM stops a command as Ctrl-C does; ``caught`` tells them apart. Signals belong to the main thread.

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
    """A server was told to end."""


def until_stopped() -> None:
    """Wait for Ctrl-C or SIGTERM: to a server they are no failure, so nothing is said and the exit code is 0."""

    def end(*_: object) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
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
    if any(words in text for words in UNWRITABLE):  # also in the words of libraries that write files
        again = "resumes from its newest checkpoint" if resumes else "does it again; what was finished is kept"
        return f"{text}: make room (or fix the folder), then the same command {again}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def write_traceback(folder: Path) -> Path:
    """Write the current error's traceback into ``folder``, a file for each process; elsewhere where that is full."""
    rank, text = os.environ.get("RANK", "0"), redact(traceback.format_exc())
    path = folder / ("error.log" if rank == "0" else f"error-{rank}.log")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="trivet-")) / path.name
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
