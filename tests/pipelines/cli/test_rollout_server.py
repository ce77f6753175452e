"""A rollout server ends with the command that started it, whatever ends that."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.support.recipes import ROOT

DOUBLE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.conftest import make_base
from tests.support.vllm_double import VLLMDouble, serving_vllm
with serving_vllm(VLLMDouble(make_base())) as url:
    Path({file!r}).write_text(url)
    time.sleep(600)
"""
STUBBORN = """
import signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path({file!r}).write_text(str(engine.pid))
time.sleep(600)
"""
COMMAND = (
    "import sys; from pipelines.cli.rollout_server import supervised; sys.exit(supervised({line!r}, {env!r}, 1.5))"
)


def started(script: str, file: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The command, and what its server wrote once it had started."""
    line = [sys.executable, "-c", script.format(root=str(ROOT), file=str(file))]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMMAND.format(line=line, env=environment)]
    process = subprocess.Popen(command, cwd=ROOT)
    for _ in range(1200):
        if file.exists() and file.read_text():
            return process, file.read_text()
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    raise AssertionError("the server did not start within two minutes")


def test_a_signal_ends_the_server_as_well(tmp_path):
    process, url = started(DOUBLE, tmp_path / "url")
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        assert b'"base"' in answer.read()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM and time.monotonic() - began < 15
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/v1/models")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_does_not_end_is_killed_with_what_it_has_started(tmp_path, number):
    process, engine = started(STUBBORN, tmp_path / "pid")
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == 128 + number and time.monotonic() - began < 15
    for _ in range(50):
        if not psutil.pid_exists(int(engine)) or psutil.Process(int(engine)).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError("the engine is left")


def test_a_server_that_ends_by_itself_gives_its_status():
    line = [sys.executable, "-c", "import sys; sys.exit(7)"]
    process = subprocess.run([sys.executable, "-c", COMMAND.format(line=line, env={})], cwd=ROOT, check=False)
    assert process.returncode == 7
