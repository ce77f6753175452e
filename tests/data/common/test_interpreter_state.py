"""What users' code sets of the interpreter ends with it; its own environment and import path it finds again."""

from __future__ import annotations

import gc
import locale
import os
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from data.common.user_functions import load_function

SETS = """
import gc, io, locale, os, signal, socket, sys, warnings
import torch

def everything():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout = sys.stderr = io.StringIO()
    warnings.simplefilter("error")
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)
    sys.setrecursionlimit(sys.getrecursionlimit() + 77)
    gc.disable()
    socket.setdefaulttimeout(0.001)
    locale.setlocale(locale.LC_ALL, "C")
    os.environ.pop("HOME", None)
    os.environ["TRIVET_CACHE"] = "/nowhere"
    sys.path = ["/nowhere"] + sys.path
    torch.set_default_device("meta")
    torch.autograd.set_detect_anomaly(True)

everything()

def f(completions):
    everything()
    return [0.0] * len(completions)
"""


def _state() -> list[Any]:
    return [
        [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        (sys.stdout, sys.stderr),
        [one for one in warnings.filters if one[0] == "error"],
        (sys.gettrace(), sys.getprofile(), sys.getrecursionlimit(), gc.isenabled()),
        (socket.getdefaulttimeout(), locale.setlocale(locale.LC_ALL)),
        (dict(os.environ), list(sys.path)),
        (torch.get_default_device(), torch.is_anomaly_enabled()),
    ]


def test_what_a_function_sets_of_the_interpreter_ends_with_it(tmp_path: Path) -> None:
    """A run goes on saving at a signal, speaking, and training through a library's warnings."""
    (tmp_path / "rewards.py").write_text(SETS)
    before, environ, path = _state(), os.environ, sys.path
    fn = load_function("rewards.py:f", tmp_path)
    assert _state() == before
    fn(["p"], ["c"])
    assert _state() == before and os.environ is environ and sys.path is path
    assert torch.zeros(1).device.type == "cpu"


def test_a_warning_is_shown_and_not_raised_behind_it(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "import warnings\nwarnings.simplefilter('error')\ndef f(completions): return [0.0]\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_function("rewards.py:f", tmp_path)(["p"], ["c"])
        warnings.warn("of some library", FutureWarning, stacklevel=1)


def test_its_own_environment_and_import_path_are_there_in_its_calls(tmp_path: Path) -> None:
    """A key that the file sets for a service, and a folder that it imports from later; another file sees neither."""
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs/weigher_of_mine.py").write_text("def weigh(text):\n    return len(text)\n")
    (tmp_path / "rewards.py").write_text(
        f"import os, sys\nos.environ['KEY_OF_MINE'] = '3'\nsys.path.insert(0, {str(tmp_path / 'libs')!r})\n"
        "def f(completions):\n"
        "    from weigher_of_mine import weigh\n"
        "    os.environ['KEY_OF_MINE'] += '1'\n"
        "    return [float(weigh(c)) + int(os.environ['KEY_OF_MINE']) for c in completions]\n"
    )
    (tmp_path / "other.py").write_text("import os\ndef f(completions): return [float('KEY_OF_MINE' in os.environ)]\n")
    fn, other = load_function("rewards.py:f", tmp_path), load_function("other.py:f", tmp_path)
    assert [fn(["p"], ["ab"]), other(["p"], ["ab"]), fn(["p"], ["ab"])] == [[33.0], [0.0], [313.0]]
    assert "KEY_OF_MINE" not in os.environ and str(tmp_path / "libs") not in sys.path
