"""What the interpreter holds for the whole process, kept from code that changes it: signals, streams, hooks, filters.

A reward's file that says ``signal.signal(SIGTERM, ...)`` would take from a run its way of saving before it stops, one
that replaces ``sys.stdout`` the run's own words, and ``warnings.simplefilter("error")`` would end the training at some
library's remark. Environment and import path are the code's own: it finds them in its next call as it left them (a key
for a service, say), and nothing else sees them. Knows nothing of functions, PyTorch or NumPy.
"""

from __future__ import annotations

import contextlib
import gc
import locale
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGPIPE", "SIGALRM")
SIGNALS = tuple(signal.Signals[name] for name in NAMES if name in signal.Signals.__members__)


class _Surroundings:
    """Environment and import path as an owner's code left them: what differs from the process's own."""

    def __init__(self) -> None:
        self.environment: dict[str, str | None] = {}
        self.path: list[str] | None = None


_OWN: dict[str, _Surroundings] = {}


@contextlib.contextmanager
def own_surroundings(owner: str) -> Iterator[None]:
    """Run code in the environment and with the import path that this owner's code left, and put back the process's."""
    own = _OWN.setdefault(owner, _Surroundings())
    environ, path = os.environ, sys.path
    variables, folders = dict(environ), list(path)
    _change(own.environment)
    path[:] = folders if own.path is None else own.path
    try:
        yield
    finally:
        after, now = dict(os.environ), list(sys.path)
        names = variables.keys() | after.keys()
        own.environment = {n: after.get(n) for n in names if variables.get(n) != after.get(n)}
        own.path = None if now == folders else now
        os.environ, sys.path = environ, path
        _change({name: variables.get(name) for name in own.environment})
        path[:] = folders


def _change(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def interpreter_kept() -> Iterator[None]:
    """Run code, and put back afterwards what it changed of ``STATE`` and of the handlers of signals."""
    before = {name: get() for name, (get, _) in STATE.items()}
    handlers = _handlers()
    try:
        yield
    finally:
        for name, (get, put) in STATE.items():
            if get() != before[name]:
                put(before[name])
        for number, handler in _handlers().items():
            if handler != handlers[number] and handlers[number] is not None:
                signal.signal(number, handlers[number])


def _handlers() -> dict[signal.Signals, Any]:
    """Handlers of signals, which belong to the main thread; None of one that Python did not set."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in SIGNALS}


def _errors() -> list[Any]:
    """The filters by which warnings are raised; others, which libraries add when they are imported, may stay."""
    return [one for one in warnings.filters if one[0] == "error"]


def _put_errors(filters: list[Any]) -> None:
    kept = [one for one in warnings.filters if one[0] != "error" or one in filters]
    warnings.resetwarnings()  # without it what was decided of a warning before would stay
    warnings.filters[:] = kept  # type: ignore[index]


def _put_streams(streams: tuple[Any, Any, Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = streams


def _put_locale(named: str) -> None:
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, named)


STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "streams": (lambda: (sys.stdin, sys.stdout, sys.stderr), _put_streams),
    "warnings that are raised": (_errors, _put_errors),
    "trace": (sys.gettrace, sys.settrace),
    "profile": (sys.getprofile, sys.setprofile),
    "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
    "collection": (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    "waiting for sockets": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), _put_locale),
}
"""What there is: how it is read, and how it is put back."""
