"""Helper processes: results in order, errors of theirs, and their end with their caller."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from itertools import count, islice
from pathlib import Path

import psutil
import pytest

from data.common.errors import UserError
from data.common.workers import helpers, mapped

ROOT = Path(__file__).parents[3]


def test_results_come_in_the_order_of_the_blocks_and_few_blocks_are_taken_ahead():
    taken = []

    def blocks():
        for i in count():
            taken.append(i)
            yield i

    found = list(islice(mapped(math.sqrt, blocks(), 2), 50))
    assert found == [(i, math.sqrt(i)) for i in range(50)]
    assert len(taken) < 50 + 2 * 2 + 1
    assert list(mapped(math.sqrt, [4, 9], 0)) == [(4, 2.0), (9, 3.0)]


def test_an_error_comes_at_its_block_and_a_helper_that_dies_is_one_message():
    found = mapped(math.sqrt, [4, -1, 9], 1)
    assert next(found) == (4, 2.0)
    with pytest.raises(ValueError, match="domain"):
        next(found)
    with pytest.raises(UserError, match="a helper process ended with exit code 3; if memory is short"):
        list(mapped(os._exit, [3], 1))


def test_no_helpers_where_cores_or_processes_are_few(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert helpers() == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert helpers() == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert helpers() == 0


SLEEPER = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from data.common.workers import mapped
print("started", flush=True)
list(mapped(time.sleep, [60, 60], 2))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_helpers_end_when_their_caller_is_stopped(how):
    caller = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert caller.stdout is not None and caller.stdout.readline() == b"started\n"
    known = psutil.Process(caller.pid)
    while len(own := known.children()) < 2:
        time.sleep(0.05)
    time.sleep(0.5)
    caller.send_signal(how)
    assert caller.wait(timeout=30) != 0
    if how == signal.SIGINT:  # killed outright, the caller cannot stop what they are at
        _, alive = psutil.wait_procs(own, timeout=10)
        assert not alive
    for one in own:
        if one.is_running():
            one.kill()
